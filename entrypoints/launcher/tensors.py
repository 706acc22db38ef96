"""A model's tensors as its config.json implies them, for models whose files are not here: names and shapes as in the checkpoint.

The experts of a layer are given as one tensor with the experts in front, which changes no sum. Checked against the parameter counts of
the checkpoints, and for the demo model against its file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from math import ceil, prod
from typing import Any, Final

from launcher.safetensors import Tensor

DTYPE_BYTES: Final = {
    **dict.fromkeys(("F64", "I64", "U64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("BF16", "F16", "I16", "U16"), 2),
}  # every other is one byte: F8_E4M3, F8_E5M2, F8_E8M0, U8, I8, BOOL
FP4_GROUP = 16  # numbers that share a scale: https://docs.nvidia.com/deeplearning/cudnn/backend/latest/operations/Blockscaling.html


def size(tensor: Tensor) -> int:
    """Bytes of a tensor."""
    return prod(tensor.shape) * DTYPE_BYTES.get(tensor.dtype, 1)


def of_config(config: Mapping[str, Any]) -> list[Tensor]:
    """Every tensor that a checkpoint with this config.json holds, draft layers included; empty for an architecture that is not known here."""
    shapes = SHAPES.get(str(config.get("model_type")))
    try:
        if not shapes or not _known_storage(config):
            return []
        store = _storage(config)
        found = [stored for name, shape in shapes(config) for stored in store(name, shape)]
        return found if all(isinstance(size, int) and size > 0 for tensor in found for size in tensor.shape) else []
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError):  # a config.json may hold anything
        return []


def _decoder(config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Llama, Qwen2 and Qwen3. Source: modeling_llama.py, modeling_qwen2.py and modeling_qwen3.py of transformers 4.53."""
    hidden, inner, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    size = config.get("head_dim") or hidden // heads
    groups = config.get("num_key_value_heads") or heads
    widths = {"q": heads * size, "k": groups * size, "v": groups * size}
    biased = config["model_type"] == "qwen2" or config.get("attention_bias")
    for layer in range(config["num_hidden_layers"]):
        name = f"model.layers.{layer}."
        for part, width in widths.items():
            yield f"{name}self_attn.{part}_proj.weight", (width, hidden)
            if biased:
                yield f"{name}self_attn.{part}_proj.bias", (width,)
        yield f"{name}self_attn.o_proj.weight", (hidden, heads * size)
        if config["model_type"] == "qwen3":
            yield f"{name}self_attn.q_norm.weight", (size,)
            yield f"{name}self_attn.k_norm.weight", (size,)
        yield from _mlp(f"{name}mlp.", hidden, inner)
        yield f"{name}input_layernorm.weight", (hidden,)
        yield f"{name}post_attention_layernorm.weight", (hidden,)
    yield from _ends(config)


def _latent(config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """DeepSeek V3 and R1, with their draft layers. Source: modeling_deepseek.py of the checkpoint."""
    hidden, heads, rope = config["hidden_size"], config["num_attention_heads"], config["qk_rope_head_dim"]
    query, latent, nope, value = config["q_lora_rank"], config["kv_lora_rank"], config["qk_nope_head_dim"], config["v_head_dim"]
    experts, inner = config["n_routed_experts"], config["moe_intermediate_size"]
    layers, drafts = config["num_hidden_layers"], min(config.get("num_nextn_predict_layers") or 0, config["num_hidden_layers"])
    for layer in range(layers + drafts):
        name = f"model.layers.{layer}."
        yield f"{name}self_attn.q_a_proj.weight", (query, hidden)
        yield f"{name}self_attn.q_a_layernorm.weight", (query,)
        yield f"{name}self_attn.q_b_proj.weight", (heads * (nope + rope), query)
        yield f"{name}self_attn.kv_a_proj_with_mqa.weight", (latent + rope, hidden)
        yield f"{name}self_attn.kv_a_layernorm.weight", (latent,)
        yield f"{name}self_attn.kv_b_proj.weight", (heads * (nope + value), latent)
        yield f"{name}self_attn.o_proj.weight", (hidden, heads * value)
        yield f"{name}input_layernorm.weight", (hidden,)
        yield f"{name}post_attention_layernorm.weight", (hidden,)
        if layer < config["first_k_dense_replace"]:
            yield from _mlp(f"{name}mlp.", hidden, config["intermediate_size"])
        else:
            yield f"{name}mlp.gate.weight", (experts, hidden)
            yield f"{name}mlp.gate.e_score_correction_bias", (experts,)
            for part, shape in _mlp(f"{name}mlp.experts.", hidden, inner):
                yield part, (experts, *shape)
            yield from _mlp(f"{name}mlp.shared_experts.", hidden, inner * config["n_shared_experts"])
        if layer >= layers:
            yield f"{name}eh_proj.weight", (hidden, 2 * hidden)
            for norm in ("enorm", "hnorm", "shared_head.norm"):
                yield f"{name}{norm}.weight", (hidden,)
            for table in ("embed_tokens", "shared_head.head"):
                yield f"{name}{table}.weight", (config["vocab_size"], hidden)
    yield from _ends(config)


def _mlp(name: str, hidden: int, inner: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}gate_proj.weight", (inner, hidden)
    yield f"{name}up_proj.weight", (inner, hidden)
    yield f"{name}down_proj.weight", (hidden, inner)


def _ends(config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """What is before the first layer and after the last."""
    hidden, vocabulary = config["hidden_size"], config["vocab_size"]
    yield "model.embed_tokens.weight", (vocabulary, hidden)
    yield "model.norm.weight", (hidden,)
    if not config.get("tie_word_embeddings"):
        yield "lm_head.weight", (vocabulary, hidden)


SHAPES: Final[Mapping[str, Callable[[Mapping[str, Any]], Iterator[tuple[str, tuple[int, ...]]]]]] = {
    "llama": _decoder,
    "qwen2": _decoder,
    "qwen3": _decoder,
    "deepseek_v3": _latent,
}


LINEAR = ("_proj.weight", "_proj_with_mqa.weight", ".w1.weight", ".w2.weight", ".w3.weight")


def is_linear(name: str) -> bool:
    """Whether a tensor is the weight of a linear layer that quantisation applies to: not embeddings, norms, routers, the last layer and a draft layer's first."""
    return name.endswith((*LINEAR, "experts.gate_up_proj", "experts.down_proj")) and "eh_proj" not in name


def _known_storage(config: Mapping[str, Any]) -> bool:
    """Whether the way in which the weights are stored is one of `_storage`. A checkpoint names what it leaves alone in other words than the catalog."""
    quantised = config.get("quantization_config") or {}
    blocks = quantised.get("quant_method") == "fp8" and bool(quantised.get("weight_block_size"))
    return not quantised or blocks or (quantised.get("quant_algo") == "NVFP4" and "exclude" in quantised)


def _storage(config: Mapping[str, Any]) -> Callable[[str, tuple[int, ...]], Iterator[Tensor]]:
    """How this checkpoint stores a tensor: 16 bits, FP8 in blocks with their scales, or NVIDIA's FP4."""
    quantised = config.get("quantization_config") or {}
    method, block = quantised.get("quant_method"), quantised.get("weight_block_size")
    four_bits = quantised.get("quant_algo") == "NVFP4"
    skipped = tuple(quantised.get("exclude") or ())

    def store(name: str, shape: tuple[int, ...]) -> Iterator[Tensor]:
        if name.endswith("e_score_correction_bias"):
            yield Tensor(name, shape, "F32")
        elif method == "fp8" and block and is_linear(name):
            yield Tensor(name, shape, "F8_E4M3")
            *front, rows, columns = shape
            yield Tensor(f"{name}_scale_inv", (*front, ceil(rows / block[0]), ceil(columns / block[1])), "F32")
        elif four_bits and is_linear(name) and not any(part in name for part in skipped):
            *front, rows, columns = shape
            yield Tensor(name, (*front, rows, columns // 2), "U8")
            yield Tensor(f"{name}_scale", (*front, rows, columns // FP4_GROUP), "F8_E4M3")
        else:
            yield Tensor(name, shape, "BF16")

    return store

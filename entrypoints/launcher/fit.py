"""What every GPU of a stack must hold to serve a model, and what is left for the KV cache. Sizes in bytes, contexts in tokens.

Weights and KV cache are counted exactly. What the engine needs beside them is estimated: see `activations`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any, Final, NamedTuple

from launcher.flags import whole_number
from launcher.safetensors import Tensor
from launcher.tensors import is_linear, size

GIB: Final = 2**30
MIB: Final = 2**20
BLOCK = 16  # tokens that vLLM's KV cache is given out by; SGLang's and TensorRT-LLM's blocks are no larger than 64
WIDENED_TOKENS = 65_536  # the workspace of chunked prefill with latent attention: vllm/v1/attention/backends/mla/common.py
LARGEST, MOST_LAYERS = 10**7, 10**4  # of any size in a config.json: a typing error must not keep us counting
LATENT_HEAD = (
    "qk_nope_head_dim",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "v_head_dim",
)  # keys, values, and the keys once more with positions
STEP = 1024  # contexts are proposed in such steps


class Shape(NamedTuple):
    """A model as far as memory depends on it.

    `windows` has the attention window of every layer, 0 for the whole context; `latent` is the size of a compressed key and value (MLA),
    0 without; `routed` how many experts compute a token, 0 without; `drafts` how many layers draft tokens, beside the others.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    latent: int
    latent_head: int
    windows: tuple[int, ...]
    vocabulary: int
    inner: int
    routed: int
    routed_inner: int
    block: int
    context: int
    drafts: int = 0


class Engine(NamedTuple):
    """How an engine release deals memory out.

    `share` says what `fraction` is a share of: `all` memory, activations included (vLLM); `held`, for weights and cache (SGLang); `left`, of
    what weights and activations leave (TensorRT-LLM). `tokens` and `seqs` are what a step takes at most, unless set; `tokens` 0 means the
    whole context. `fixed` is what the process takes beside all that, and `graphs` its CUDA graphs, where the release counts them; `logit` is
    the bytes that its sampler takes for a number of the vocabulary and a request.
    """

    share: str
    fraction: float
    tokens: int
    seqs: int
    logit: float
    fixed: int
    graphs: int = 0


STRETCHED = ("su", "longrope", "llama3")  # kinds of rope_scaling with which a config.json gives the context as stretched

# What engines call these.
FRACTION = ("gpu-memory-utilization", "mem-fraction-static", "free-gpu-memory-fraction", "kv-cache-free-gpu-memory-fraction")
TOKENS = ("max-num-batched-tokens", "chunked-prefill-size", "max-num-tokens")
NO_GRAPHS = ("enforce-eager", "disable-cuda-graph")


def engine(memory: Mapping[str, Any], flag: Callable[..., str]) -> Engine:
    """How a release deals memory out, with what its flags change of it.

    `memory` is the release's row in engines.toml; `flag` gives the text of the first of some flags that is set, "" where none is.
    Raises ValueError for a flag with a value that cannot be.
    """
    fraction = float(flag(*FRACTION) or memory["fraction"])
    if not 0 < fraction <= 1:
        raise ValueError(f"{fraction} is no share of a GPU's memory, which is between 0 and 1")
    graphs = 0 if flag(*NO_GRAPHS).lower() == "true" else memory["graphs_mib"] * MIB
    return Engine(
        share=memory["share"],
        fraction=fraction,
        tokens=max(whole_number(flag(*TOKENS) or str(memory["tokens"])), 0),
        seqs=memory["seqs"],
        logit=memory["logit_bytes"],
        fixed=memory["fixed_mib"] * MIB,
        graphs=graphs,
    )


class Layout(NamedTuple):
    """How the model is cut and held.

    `weights` is how linear weights are held: as `stored`, `fp8` or `half`; `cache` is the bytes of a cached number; `drafts` says that the
    model's own draft layers are loaded. `parts` are the GPUs that share each routed expert's layer, each attention and the rest, where
    those are not `tp`.
    """

    tp: int
    pp: int
    weights: str = "stored"
    cache: int = 2
    drafts: bool = False
    parts: tuple[int, int, int] | None = None

    @property
    def experts(self) -> int:
        """GPUs over which the routed experts are spread."""
        return self.parts[0] if self.parts else self.tp

    @property
    def attention(self) -> int:
        """GPUs that share each attention, and its cache."""
        return self.parts[1] if self.parts else self.tp

    @property
    def rest(self) -> int:
        """GPUs that share the other layers."""
        return self.parts[2] if self.parts else self.tp

    @property
    def ranks(self) -> int:
        """Groups of GPUs within the tensor-parallel ones that have requests of their own, each with a cache of its own."""
        return max(self.tp // self.attention, 1)


def layout(kind: str, flag: Callable[..., str], tp: int, pp: int, weights: str) -> Layout:
    """How an engine of this kind cuts and holds the model, by its flags.

    Data-parallel copies of vLLM share the routed experts among them; SGLang's and TensorRT-LLM's attention data parallel divides the
    tensor-parallel GPUs into groups that have attention whole, the second with all but the experts. Draft layers are those of vLLM's
    methods whose names end in mtp. Source: FusedMoEParallelConfig.make in vllm/model_executor/layers/fused_moe/config.py, 0.25.1;
    sglang/srt/layers/dp_attention.py, 0.5.23; tensorrt_llm/_torch/models/modeling_deepseekv3.py, 1.2.1.
    """
    cache = 1 if flag("kv-cache-dtype").startswith("fp8") else 2
    drafts = 'mtp"' in flag("speculative-config") or flag("speculative-config.method").endswith("mtp")
    asked = flag("data-parallel-size", "dp-size")
    size = max(int(asked), 1) if asked.isdigit() else 1
    parts = None
    if flag("enable-attention-dp").lower() == "true":
        parts = (tp, 1, 1)
    elif flag("enable-dp-attention").lower() == "true" and tp % size == 0:
        parts = (tp, tp // size, tp)
    elif kind == "vllm" and size > 1:
        parts = (tp * size, tp, tp)
    return Layout(tp, pp, weights, cache, drafts, parts)


class Limits(NamedTuple):
    """What is set: the longest context in tokens, and requests at once; 0 is not set."""

    context: int = 0
    seqs: int = 0


UNLIMITED: Final = Limits()


class Stage(NamedTuple):
    """One GPU of a pipeline stage: what it holds, what is left for the cache, and the cache by token and, for layers with a window, by request."""

    weights: int
    activations: int
    free: int
    token: int
    request: int


class Fit(NamedTuple):
    """What a layout leaves.

    `budget` is what the engine may use of a GPU; `tokens` fit in the cache, of which there is one for each of `ranks`, with `seqs` requests at once at most; `context` is
    the longest request, at most the model's or the limit that was set; a negative `free` of a stage is what is missing there.
    """

    budget: int
    stages: tuple[Stage, ...]
    tokens: int
    context: int
    seqs: int
    ranks: int = 1

    def requests(self, context: int) -> int:
        """How many requests of so many tokens run at once."""
        return self.ranks * max(min(self.seqs, *(stage.free // (context * stage.token + stage.request or 1) for stage in self.stages)), 0)

    @property
    def missing(self) -> int:
        """Bytes that the fullest GPU lacks, before the first token is cached; 0 if it lacks none."""
        return max(-min(stage.free for stage in self.stages), 0)


def shape(config: Mapping[str, Any]) -> Shape | None:
    """The shape that a config.json gives; None when it leaves out what is needed, or has values that cannot be. Names as in transformers."""
    try:
        layers, hidden, heads = (_count(config[name]) for name in ("num_hidden_layers", "hidden_size", "num_attention_heads"))
        latent = config.get("kv_lora_rank")
        inner = _count(config["intermediate_size"])
        quantised = config.get("quantization_config") or {}
        return Shape(
            layers=layers if layers <= MOST_LAYERS else _count(0),
            hidden=hidden,
            heads=heads,
            kv_heads=_count(config.get("num_key_value_heads") or heads),
            head_dim=_count(config.get("head_dim") or hidden // heads),
            latent=_count(latent) + _count(config["qk_rope_head_dim"]) if latent else 0,
            latent_head=sum(_count(config[name]) for name in LATENT_HEAD) if latent else 0,
            windows=tuple(_windows(config, layers)),
            vocabulary=_count(config["vocab_size"]),
            inner=inner,
            routed=_count(config.get("num_experts_per_tok") or 0, 0),
            routed_inner=_count(config.get("moe_intermediate_size") or inner),
            block=_count((quantised.get("weight_block_size") or [1])[0]),
            context=_context(config),
            drafts=_count(config.get("num_nextn_predict_layers") or 0, 0),
        )
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        return None


def _count(value: object, least: int = 1) -> int:
    """A whole number that can be. Raises ValueError."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= LARGEST:
        raise ValueError(f"{value!r} is no size")
    return value


def _context(config: Mapping[str, Any]) -> int:
    """The longest context, stretched where positions are, with YaRN from the original one, as vLLM reads it.

    Source: _get_and_verify_max_len in vllm/config/model.py, 0.25.1.
    """
    rope = config.get("rope_scaling") or {}
    kind, context = rope.get("rope_type", rope.get("type")), _count(config["max_position_embeddings"])
    if kind in STRETCHED or "gemma3" in str(config.get("model_type")):
        return context
    if kind == "yarn":
        context = _count(rope.get("original_max_position_embeddings") or context)
    return _count(int(context * (rope.get("factor") or 1)))


def _windows(config: Mapping[str, Any], layers: int) -> list[int]:
    """The attention window of every layer, as transformers reads these fields; 0 is the whole context. Raises ValueError."""
    window = _count(config.get("sliding_window") or 0, 0)
    if kinds := config.get("layer_types"):
        if len(kinds) != layers:
            raise ValueError("layer_types does not have every layer")
        return [window if kind == "sliding_attention" else 0 for kind in kinds]
    if not config.get("use_sliding_window", config.get("model_type") == "mistral"):
        return [0] * layers
    first = _count(config.get("max_window_layers") or 0, 0)
    return [window if layer >= first else 0 for layer in range(layers)]


def split(layers: int, stages: int) -> list[int]:
    """Layers of each pipeline stage: as equal as can be; what is over goes to the stages before the last, which has the output layer.

    Source: get_pp_indices in vllm/distributed/utils.py, the same from 0.8.5 to 0.25.1.
    """
    counts = [layers // stages] * stages
    for over in range(layers % stages):
        counts[-(over + 2) % stages] += 1
    return counts


def weights(tensors: Sequence[Tensor], model: Shape, layout: Layout) -> list[int]:
    """Bytes of the weights on one GPU of each stage. Draft layers are on the last, and share their tables with the model where it has them.

    Source of the last: load_eagle_model in vllm/v1/worker/gpu/spec_decode/eagle/utils.py, 0.25.1.
    """
    shared = ("shared_head.head.weight", *(("embed_tokens.weight",) if layout.pp == 1 else ()))
    counts = split(model.layers, layout.pp)
    stage_of = [stage for stage, count in enumerate(counts) for _ in range(count)]
    held = [0.0] * layout.pp
    tied = not any(tensor.name.startswith("lm_head") for tensor in tensors)
    for tensor in tensors:
        bytes_here = _held(tensor, layout.weights) * _share(tensor, model, layout)
        layer = layer_of(tensor.name)
        if layer is None:
            ends = {0, layout.pp - 1} if tied and "embed_tokens" in tensor.name else {0 if "embed" in tensor.name else layout.pp - 1}
            for stage in ends:
                held[stage] += bytes_here
        elif layer < model.layers:
            held[stage_of[layer]] += bytes_here
        elif layout.drafts and not tensor.name.endswith(shared):
            held[-1] += bytes_here
    return [round(stage) for stage in held]


def layer_of(name: str) -> int | None:
    """The number of the layer that a tensor belongs to: `model.layers.7.mlp.…` is 7; None for what is outside of the layers."""
    front, found, rest = name.partition("layers.")
    number = rest.partition(".")[0]
    return int(number) if found and number.isdecimal() and not front.startswith("vision") else None


def _held(tensor: Tensor, how: str) -> int:
    """Bytes of a tensor in the engine: weights in 32 bits are cast to 16; linear ones may be quantised while they load, or widened.

    The second half of latent attention's keys and values is held twice, once more in 16 bits for decoding (W_UK and W_UV in vLLM's
    vllm/v1/attention/backends/mla/common.py; SGLang does the same).
    """
    if tensor.name.endswith("kv_b_proj.weight"):
        return _in_engine(tensor, how) + 2 * prod(tensor.shape)
    return _in_engine(tensor, how)


def _in_engine(tensor: Tensor, how: str) -> int:
    if how == "fp8" and is_linear(tensor.name) and tensor.dtype in ("BF16", "F16", "F32"):
        return prod(tensor.shape)
    if how == "half" and tensor.dtype.startswith("F8"):
        return 2 * prod(tensor.shape)
    if tensor.dtype == "F32" and len(tensor.shape) > 1 and "scale" not in tensor.name:
        return 2 * prod(tensor.shape)
    return size(tensor)


def _share(tensor: Tensor, model: Shape, layout: Layout) -> float:
    """The part of a tensor that one GPU holds.

    Column-parallel layers are cut with their biases, row-parallel ones without; norms, routers and the first half of latent attention
    are on every GPU, and a key or value head is on several where there are fewer of them than GPUs.
    """
    name = tensor.name
    if any(part in name for part in ("_a_proj", "eh_proj", ".gate.weight", "norm")):
        return 1.0
    tp = layout.experts if ".experts." in name else layout.attention if "attn" in name or "embed" in name else layout.rest
    if ".k_proj" in name or ".v_proj" in name:
        return max(1 / tp, 1 / model.kv_heads)
    if len(tensor.shape) == 1 and not any(part in name for part in (".q_proj", ".gate_proj", ".up_proj", "qkv", "gate_up")):
        return 1.0
    return 1 / tp


def cache(model: Shape, layout: Layout) -> list[tuple[int, int]]:
    """Bytes of the KV cache on one GPU of each stage: by token, and by request for layers with a window.

    A latent cache is the same on every tensor-parallel GPU. Source: https://arxiv.org/abs/2405.04434, section 2.1. A draft layer has its own.
    """
    numbers = model.latent or 2 * max(model.kv_heads // layout.attention, 1) * model.head_dim
    found, start = [], 0
    for count in split(model.layers, layout.pp):
        windows = model.windows[start : start + count]
        start += count
        found.append((numbers * layout.cache * windows.count(0), numbers * layout.cache * sum(windows)))
    if layout.drafts:
        token, request = found[-1]
        found[-1] = token + numbers * layout.cache * model.drafts, request
    return found


def activations(model: Shape, layout: Layout, engine: Engine, tokens: int, seqs: int) -> int:
    """Estimated peak of what one GPU holds for a moment while it computes `tokens` tokens of `seqs` requests, in 16 bits.

    The largest of three: a layer (gate, up and their product beside four hidden states; with experts, every expert's answer), the
    sampler's work on the logits, and the CUDA graphs where the release counts them. Latent attention widens the context that it reads,
    64 Ki tokens at a time. Held against logs and measurements: tests/data/memory.toml.
    """
    layer = 2 * tokens * (4 * model.hidden + 3 * model.inner // layout.tp)
    routed = 2 * tokens * model.routed * max(model.hidden, 2 * model.routed_inner // layout.tp)
    logits = int(seqs * model.vocabulary * engine.logit)
    widened = 2 * WIDENED_TOKENS * model.latent_head * model.heads // layout.tp
    return max(layer + routed, logits, engine.graphs) + widened


def shares(model: Shape, size: int) -> bool:
    """Whether so many GPUs can share each layer.

    They divide the attention heads and the width of the MLP, in whole blocks where it is quantised in blocks; of KV heads each has some, or
    a copy of one. Source: QKVParallelLinear and MergedColumnParallelLinear in vllm/model_executor/layers/linear.py, and validate_fp8_block_shape.
    """
    widths = {model.inner, model.routed_inner} if size > 1 else set()
    return (
        model.heads % size == 0
        and all(width % size == 0 and width // size % model.block == 0 for width in widths)
        and (model.kv_heads % size == 0 or size % model.kv_heads == 0)
    )


def tensor_parallel(model: Shape, gpus: int, nodes: int) -> int:
    """The most GPUs of a node that can share each layer; over several nodes they also divide the node's GPUs."""
    sizes = range(max(gpus, 1), 0, -1)
    return next(size for size in sizes if size == 1 or (shares(model, size) and (nodes == 1 or gpus % size == 0)))


def fit(tensors: Sequence[Tensor], model: Shape, layout: Layout, engine: Engine, memory: int, limits: Limits = UNLIMITED) -> Fit:  # noqa: PLR0917 - a formula of six figures
    """What GPUs of `memory` bytes each, as CUDA reports them, hold of a model in this layout.

    An engine that takes a prompt in one step (`tokens` 0) pays for a longer context with its activations: then the longest that leaves
    room for itself is looked for.
    """
    held, cached = weights(tensors, model, layout), cache(model, layout)

    def at(longest: int) -> Fit:
        step, seqs = engine.tokens or longest, limits.seqs or engine.seqs
        working = activations(model, layout, engine, step, min(seqs, step)) + engine.fixed
        stages = tuple(
            Stage(here, working, _free(engine, memory, here, working), token, request)
            for here, (token, request) in zip(held, cached, strict=True)
        )
        tokens = max(min(_tokens(stage, longest) for stage in stages), 0) // BLOCK * BLOCK
        budget = memory if engine.share == "left" else int(memory * engine.fraction)
        return Fit(budget, stages, tokens, min(longest, tokens), seqs, layout.ranks)

    longest = limits.context or model.context
    if engine.tokens or limits.context:
        return at(longest)
    steps = (*range(STEP, longest, STEP), longest)
    return at(steps[max(bisect_left(steps, True, key=lambda context: at(context).context < context) - 1, 0)])


def _tokens(stage: Stage, longest: int) -> int:
    """Tokens that a stage's cache holds; where every layer has a window, as many as its requests may have; without layers, any number."""
    if stage.token:
        return (stage.free - stage.request) // stage.token
    return stage.free // stage.request * longest if stage.request else (LARGEST if stage.free > 0 else 0)


def _free(engine: Engine, memory: int, held: int, working: int) -> int:
    """Bytes for the cache; negative when weights and activations alone are too much."""
    left = memory - held - working
    if engine.share == "all":
        return int(memory * engine.fraction) - held - working
    if engine.share == "held":
        return min(int(memory * engine.fraction) - held, left)
    return int(left * engine.fraction) if left > 0 else left

"""Which attention vLLM chooses on a GPU that is not there: `python3 attention.py CAPABILITY [FLAG…]`, as in `attention.py 70`.

vLLM's own code decides: the flags go through its parser and `create_engine_config`, and the attention layer that its
Qwen2 model imports is built with the shapes of R1-Distill-Qwen-7B. What is faked: torch's answers about the device,
and an empty libcuda.so.1, so that vLLM's real kernel libraries load. Needs gcc, as Triton does in these images.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from engine_parsers import answer, vllm

FLAGS = ("--dtype", "half", "--max-model-len", "8192", "--no-enable-chunked-prefill", "--no-enable-prefix-caching")
HEADS, KV_HEADS, HEAD_SIZE = 28, 4, 128
MODEL: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_act": "silu",
    "hidden_size": HEADS * HEAD_SIZE,
    "intermediate_size": 18944,
    "max_position_embeddings": 131072,
    "num_attention_heads": HEADS,
    "num_hidden_layers": 28,
    "num_key_value_heads": KV_HEADS,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 152064,
}


def load_empty_driver(folder: Path) -> None:
    """Load a library that has libcuda.so.1's name and nothing else; what is missing is looked for only when called."""
    library = folder / "libcuda.so.1"
    subprocess.run(
        ["gcc", "-shared", "-x", "c", os.devnull, f"-Wl,-soname,{library.name}", "-o", str(library)], check=True, stdin=subprocess.DEVNULL
    )
    ctypes.CDLL(str(library), mode=os.RTLD_GLOBAL | os.RTLD_LAZY)
    sys.setdlopenflags(os.RTLD_LAZY)


def fake_device(major: int, minor: int) -> None:
    """Let torch say that there is one GPU of this compute capability."""
    import torch

    def always(value: object) -> Callable[..., object]:
        return lambda *_: value

    properties = SimpleNamespace(name="none", major=major, minor=minor, total_memory=32 << 30, multi_processor_count=80)
    torch.cuda.is_available = always(True)
    torch.cuda.device_count = always(1)
    torch.cuda.get_device_capability = always((major, minor))
    torch.cuda.get_device_properties = always(properties)
    torch.cuda.get_device_name = always(properties.name)


def cuda_platform() -> object:
    """The CUDA platform of vLLM, in the variant that asks torch: without a driver NVML does not start."""
    from vllm.platforms import cuda

    return cuda.NonNvmlCudaPlatform()


def engine_config(model: Path, flags: Sequence[str]) -> Any:
    """The whole configuration that `vllm serve` would start the engine with."""
    server = vllm(cuda_platform)
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext

    found = server.parse(["serve", str(model), *flags])
    found.model = found.model_tag
    return AsyncEngineArgs.from_cli_args(found).create_engine_config(UsageContext.OPENAI_API_SERVER)


def attention_layer(config: Any) -> Any:
    """One attention layer, as the Qwen2 model builds it under a configuration."""
    import torch
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.models.qwen2 import Attention

    torch.set_default_dtype(config.model_config.dtype)
    with set_current_vllm_config(config):
        return Attention(
            HEADS,
            HEAD_SIZE,
            HEAD_SIZE**-0.5,
            num_kv_heads=KV_HEADS,
            cache_config=config.cache_config,
            quant_config=config.quant_config,
            prefix="model.layers.0.self_attn.attn",
        )


def report(capability: int, config: Any, layer: Any) -> dict[str, Any]:
    """What was chosen. The engine is V0 where the worker is not one of V1's."""
    worker = config.parallel_config.worker_cls
    return {
        "capability": capability,
        "backend": layer.backend.name,
        "implementation": f"{type(layer.impl).__module__}.{type(layer.impl).__qualname__}",
        "flash_attention": getattr(layer.impl, "vllm_flash_attn_version", None),
        "engine": "V1" if ".v1." in worker else "V0",
        "worker": worker,
        "dtype": str(config.model_config.dtype).removeprefix("torch."),
        "block_size": config.cache_config.block_size,
        "max_model_len": config.model_config.max_model_len,
        "chunked_prefill": config.scheduler_config.enable_chunked_prefill,
        "prefix_caching": config.cache_config.enable_prefix_caching,
    }


def choose(capability: int, flags: Sequence[str]) -> dict[str, Any]:
    """Fake a device and ask vLLM."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        load_empty_driver(folder)
        fake_device(*divmod(capability, 10))
        (folder / "config.json").write_text(json.dumps(MODEL), encoding="utf-8")
        config = engine_config(folder, flags)
        return report(capability, config, attention_layer(config))


def main() -> None:
    """Print what vLLM chooses."""
    given = argparse.ArgumentParser(description=__doc__)
    given.add_argument("capability", type=int, help="70 is a V100, 80 an A100, 90 an H100 or H200")
    given.add_argument("flags", nargs=argparse.REMAINDER, help=f"as after `vllm serve MODEL`; by default {' '.join(FLAGS)}")
    found = given.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")
    with answer() as stream:
        json.dump(choose(found.capability, found.flags or FLAGS), stream, indent=1)
        stream.write("\n")


if __name__ == "__main__":
    main()

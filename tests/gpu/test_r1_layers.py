"""R1's architecture on one GPU: four of its layers with all 256 experts, in block FP8 with made-up weights, as the stack r1-h200 starts it.

`make test-gpu TEST=test_r1_layers.py`, with vLLM installed; each start may take 200 seconds. What it says of the kernels is what one GPU can say of eight.
"""

from __future__ import annotations

import json
import os
import tomllib
from pathlib import Path
from typing import Any

import pytest
import shapes
from bench.gpu_sweep import NAME, Load, said, stop
from gpus import REHEARSAL, figure, is_freed, keep, memory
from launched import ROOT, Launched

GIB = 2**30
READY = 200  # seconds
STACK = tomllib.loads((ROOT / "compose/stacks.toml").read_text())["r1-h200"]
R1 = tomllib.loads((ROOT / "images/models.toml").read_text())["r1"]
LAYERS = {"num_hidden_layers": 4, "first_k_dense_replace": 1}
# What the checkpoint's config.json says beside the sizes in the catalog.
REST = {
    "n_group": 8, "topk_group": 4, "topk_method": "noaux_tc", "norm_topk_prob": True, "scoring_func": "sigmoid", "routed_scaling_factor": 2.5,
    "moe_layer_freq": 1, "hidden_act": "silu", "rms_norm_eps": 1e-6, "attention_bias": False, "rope_theta": 10000,
    "rope_scaling": {
        "type": "yarn", "factor": 40, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096,
    },
}  # fmt: skip
VARIANTS: dict[str, dict[str, str]] = {
    "r1-h200": {},
    "r1-h200, latency": {"LAUNCH_PROFILE": "latency"},  # with its draft layer
    "r1-h200, throughput": {"LAUNCH_PROFILE": "throughput"},  # with an FP8 cache
    # With a CUDA toolkit on the PATH, which the image has not. It would compile for every number of tokens first, for minutes.
    "r1-h200 with DeepGEMM": {"VLLM_USE_DEEP_GEMM": "1", "VLLM_DEEP_GEMM_WARMUP": "skip"},
}
pytestmark = [
    pytest.mark.skipif(not (REHEARSAL or memory()), reason="no GPU here"),
    pytest.mark.timeout(READY + 200),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shapes and a tokenizer."""
    quantised = {**R1["config"]["quantization_config"], "fmt": "e4m3", "activation_scheme": "dynamic"}
    config = {**R1["config"], **REST, **LAYERS, "quantization_config": quantised}
    return shapes.write(tmp_path_factory.mktemp("r1"), "DeepseekV3ForCausalLM", config)


def settings(model: Path, variant: str) -> dict[str, str]:
    """What the stack sets, on one GPU instead of eight."""
    return {
        "LAUNCH_IMAGE": str(ROOT / "images/h200-fp8/image.json"), "LAUNCH_MODEL": str(model), "LAUNCH_MODEL_NAME": NAME, "LAUNCH_TP": "1",
        "LAUNCH_MAX_MODEL_LEN": str(STACK["max_model_len"]), "LAUNCH_ARG_REASONING_PARSER": R1["reasoning"],
        **{f"LAUNCH_ARG_{row['flag'].replace('-', '_').upper()}": str(row["value"]) for row in STACK.get("args", ())},
        "LAUNCH_ARG_LOAD_FORMAT": "dummy", "HF_HUB_OFFLINE": "1", **VARIANTS[variant],
    }  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_four_layers(variant: str, model: Path, tmp_path: Path) -> None:
    """The engine takes the stack's flags, its kernels load and answer, and it holds what the plan says, layer by layer."""
    server, env = Launched("r1", tmp_path / "r1"), settings(model, variant)
    if REHEARSAL:
        env |= {
            "STUB_GPUS": "NVIDIA H200:90:141",
            "PYTHONPATH": str(ROOT / "tests/stubs"),
            "PATH": f"{ROOT}/tests/stubs:{os.environ['PATH']}",
        }
    printed = server.ask("serve", "--dry-run", "--json", **env)
    assert printed.returncode == 0, printed.stdout + printed.stderr
    plan = json.loads(printed.stdout)["sizing"]["fit"]
    stage = plan["stages"][0]
    if REHEARSAL:
        env |= {"STUB_LOG": str(tmp_path / "stub.log")}
        lines = (
            f"Model loading took {stage['weights'] / GIB:.2f} GiB and 2 seconds\nAvailable KV cache memory: {stage['free'] / GIB:.2f} GiB"
        )
        (tmp_path / "stub.log").write_text(f"{lines}\nGPU KV cache size: {plan['tokens']:,} tokens\n")
    try:
        server.launch("serve", **env)
        figure(f"{variant}: ready, s", round(server.wait_for("ready after", READY), 1))
        found = said(server)
        figure(f"{variant}: engine", found)
        figure(f"{variant}: plan", {"weights_gib": stage["weights"] / GIB, "cache_gib": stage["free"] / GIB, "token": stage["token"]})
        if not REHEARSAL:
            loads(variant, model)
    finally:
        stop(server)
        keep(server.log, variant.replace(" ", "-"))
        is_freed()

    assert found["weights_gib"] == pytest.approx(stage["weights"] / GIB, rel=0.01)
    assert found["cache_gib"] * GIB / found["cache_tokens"] == pytest.approx(stage["token"], rel=0.001)
    # vLLM's older runner, which has these models, sets memory for graphs aside; with a draft layer and graphs for every batch that is 8 GiB
    assert found["cache_gib"] == pytest.approx(stage["free"] / GIB, rel=0.1 if "latency" in variant else 0.05)


def loads(variant: str, model: Path) -> None:
    """Output tokens a second of one request, and of 32 at once."""
    generator = Load(model)
    generator.run(32, 32, 16)
    for at_once in (1, 32):
        found: dict[str, Any] = generator.run(at_once, 2 * at_once, 300)
        figure(
            f"{variant}: {at_once} at once", {name: found[name] for name in ("output_throughput", "mean_ttft_ms", "mean_tpot_ms", "failed")}
        )
        assert found["failed"] == 0

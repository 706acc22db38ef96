"""What tests on real GPUs share: how much memory is in use, a large model without weights, and figures for the docs.

With ENGINEROOM_REHEARSAL=1 the stub engine stands in, without GPUs: that rehearses what is done, and says nothing about vLLM.
ENGINEROOM_FIGURES names a file that gets one figure a line, as JSON; logs are put beside it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import tomllib
from pathlib import Path

import shapes
from launched import ROOT

REHEARSAL = os.environ.get("ENGINEROOM_REHEARSAL") == "1"
FIGURES = Path(os.environ.get("ENGINEROOM_FIGURES", "/dev/null"))
ARCHITECTURES = {"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
CONFIGS = {name: row["config"] for name, row in tomllib.loads((ROOT / "images/models.toml").read_text()).items()}
MODELS = {name: config for name, config in CONFIGS.items() if config["model_type"] in ARCHITECTURES}
READY = 240  # seconds; the first start on a machine reads everything from its disk


def figure(name: str, value: object) -> None:
    """One measured figure, for the table in the docs."""
    with FIGURES.open("a") as file:
        file.write(json.dumps({name: value}) + "\n")
    print(f"{name}: {value}", flush=True)


def keep(log: Path, name: str) -> None:
    """Put a log beside the figures, where figures are wanted."""
    if FIGURES.name != "null" and log.exists():
        shutil.copy(log, FIGURES.parent / f"{name}.log")


def without_weights(folder: Path, name: str = "r1-7b") -> Path:
    """The shapes of one of MODELS."""
    return shapes.write(folder, ARCHITECTURES[MODELS[name]["model_type"]], MODELS[name])


def memory() -> list[int]:
    """MiB in use on each GPU; none in a rehearsal, and where there is no GPU."""
    if REHEARSAL or not shutil.which("nvidia-smi"):
        return []
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    return [int(line) for line in subprocess.run(command, capture_output=True, text=True, check=False).stdout.split() if line.isdigit()]


def is_freed(seconds: float = 15) -> None:
    """Within some seconds nothing is left on any GPU: a driver without a process takes a few MiB."""
    deadline = time.monotonic() + seconds
    while max(memory(), default=0) > 50:
        assert time.monotonic() < deadline, f"MiB in use: {memory()}"
        time.sleep(0.5)

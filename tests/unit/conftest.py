"""Unit tests start nothing, and which machine runs them does not show: they see rows, texts and lists."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from engineroom.catalog import Catalog
from launcher import hardware, network
from launcher.checks import machine

ROOT = Path(__file__).parents[2]
SCHEDULERS = ("LWS_", "VC_", "SLURM_", "KUBERAY_", "RAY_", "FQ_RAY_", "JOB_COMPLETION_", "MASTER_", "RANK", "WORLD_SIZE")
USERS = ("LAUNCH_", "HF_", "HUGGINGFACE_", "VLLM_", "CUDA_", "NVIDIA_", "XDG_", "COMPOSE_", "ENGINEROOM_", "UPSTREAM_", "GATEWAY_")


@pytest.fixture(autouse=True)
def nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **_: object) -> NoReturn:
        pytest.fail(f"a unit test tried to run {args}")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    monkeypatch.setattr(os, "execvpe", refuse)
    for name in list(os.environ):
        if name.startswith(SCHEDULERS + USERS):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(autouse=True)
def a_machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shared memory, room, an interface and free ports for the launcher, as on a machine for engines."""
    if request.node.get_closest_marker("this_machine"):
        return
    monkeypatch.setattr(hardware, "shm_bytes", lambda: 16 << 30)
    monkeypatch.setattr(machine, "free_bytes", lambda _: 100 << 30)
    monkeypatch.setattr(machine, "busy", lambda *_: "")
    monkeypatch.setattr(network, "interfaces", lambda: {"eth0": "10.0.0.1"})


@pytest.fixture
def stub_gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """GPUs for the launcher, as tests/stubs/pynvml.py spells them: `8*NVIDIA H200:90:141`."""
    monkeypatch.syspath_prepend(str(ROOT / "tests/stubs"))
    monkeypatch.delitem(sys.modules, "pynvml", raising=False)
    return lambda gpus: monkeypatch.setenv("STUB_GPUS", gpus)


@pytest.fixture(scope="session")
def catalog() -> Catalog:
    return Catalog(ROOT)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A checkout to change: everything that rendering reads and writes."""
    for part in ("images", "compose", "docs", "entrypoints"):
        shutil.copytree(ROOT / part, tmp_path / part)
    for file in ("compose.yaml", "README.md"):
        shutil.copy(ROOT / file, tmp_path)
    return tmp_path

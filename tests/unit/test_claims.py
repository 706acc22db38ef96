"""What guides claim and is wrong, each held against what this project says or does. Sizes and precisions are in test_planner.py."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoints import small_model
from click.testing import CliRunner

from launcher import cli, hardware

ROOT = Path(__file__).parents[2]
POPEN = subprocess.Popen


def test_eager_is_no_setting_for_throughput(stub_gpus: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """R9: `--enforce-eager` is taken, and what it costs is said; without it there is nothing to say."""
    monkeypatch.setattr(hardware, "shm_bytes", lambda: 16 << 30)
    stub_gpus("NVIDIA H200:90:141")
    env = {"LAUNCH_IMAGE": str(ROOT / "images/h200-fp8/image.json"), "LAUNCH_MODEL": str(small_model(tmp_path)), "LAUNCH_PORT": "20996"}

    eager, graphs = (CliRunner().invoke(cli.cli, ["serve", "--dry-run", *flags], env=env).output for flags in (["--enforce-eager"], []))

    assert "WARNING graphs: CUDA graphs are switched off: an H200 gave 1.8 to 2.8 times the tokens with them" in eager
    assert "graphs" not in graphs


def test_an_unquoted_version_is_a_redirection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`pip install vllm>=0.6.0` asks for no version and makes a file `=0.6.0`; nothing of ours is written so."""
    monkeypatch.setattr(subprocess, "Popen", POPEN)

    said = subprocess.run(["bash", "-c", "echo pip install vllm>=0.6.0"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    assert said == ""
    assert (tmp_path / "=0.6.0").read_text() == "pip install vllm\n"
    for file in (
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("scripts/*"),
        *ROOT.glob("images/*/Dockerfile"),
        ROOT / "Makefile",
    ):
        assert not re.search(r"pip3? install[^\"'\n]*\w[<>]=?\d", file.read_text()), file

"""`engineroom bench` on the real demo stack: its figures against what the engine itself counted."""

from __future__ import annotations

import json
import os
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from demo import ROOT, Demo

from launcher import probe

pytestmark = pytest.mark.containers
SCENARIOS = """
[few]
input_tokens = 64
output_tokens = 32
concurrency = 2
rounds = 2
minutes = 3
why = "seconds, also on a busy machine"
source = "this test"
[huge]
input_tokens = 100000
output_tokens = 500
concurrency = 1
rounds = 1
shorten = false
minutes = 1
why = "more than the demo's context"
source = "this test"
"""
COUNTERS = ("vllm:prompt_tokens_total", "vllm:generation_tokens_total", "vllm:request_success_total")


def bench(*arguments: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    """The command, in another Compose project where that is said."""
    command = [ROOT / ".venv/bin/engineroom", "bench", *arguments]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **env}, capture_output=True, text=True, timeout=300, check=False)


def counted(demo: Demo) -> list[float]:
    """Tokens in, tokens out and answers, since the engine's start."""
    with urllib.request.urlopen(demo.api.replace("/v1", "/metrics"), timeout=10) as response:
        text = response.read().decode()
    return [probe.total(text, name) or 0 for name in COUNTERS]


def test_figures_are_what_the_engine_counted(demo: Demo, tmp_path: Path) -> None:
    """Each token in and out is counted once. The proof before it and the launcher's own probes are the rest: a token in each, 16 and 1 out."""
    scenarios, file = tmp_path / "few.toml", tmp_path / "run.json"
    scenarios.write_text(SCENARIOS)
    before = counted(demo)
    result = bench("demo-cpu", "--scenarios", scenarios, "--to", file, **demo.env)
    tokens_in, tokens_out, answers = (after - was for after, was in zip(counted(demo), before, strict=True))
    assert result.returncode == 0, result.stdout + result.stderr
    run: dict[str, Any] = json.loads(file.read_text())
    (step,) = run["results"]["few"]["steps"]
    others = answers - step["completed"]

    assert (step["requests"], step["completed"], step["failed"], step["errors"]) == (4, 4, 0, {})
    assert (step["input_tokens"], step["output_tokens"]) == (4 * 64, 4 * 32)
    assert (tokens_in, tokens_out) == (step["input_tokens"] + others, step["output_tokens"] + 16 + others - 1)
    assert step["output_tokens_per_second"] == pytest.approx(step["output_tokens"] / step["seconds"])
    assert run["results"]["huge"]["note"].startswith("skipped: it wants 100,500 tokens, and the server's context has 2,048")
    assert run["results"]["huge"]["steps"] == []
    assert file.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    for field in ("engine", "release", "model", "image", "image_id", "cpu", "generator", "command", "context", "date", "stack"):
        assert run["conditions"][field], field
    assert "--reasoning-parser deepseek_r1" in run["conditions"]["command"]
    assert bench("compare", file, file).stdout.count("1.00") == 3


def test_a_stack_that_does_not_run() -> None:
    """69, and what to type."""
    result = bench("demo-cpu", COMPOSE_PROJECT_NAME="engineroom-nothing")

    assert (result.returncode, result.stdout) == (69, "")
    assert "Type: make up STACK=demo-cpu" in result.stderr

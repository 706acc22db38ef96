"""The phases of a start, from the lines of real ones."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from launcher import log, phases
from launcher.engines import ENGINES

LOGS = Path(__file__).parents[1] / "data/logs/healthy"
TIME = re.compile(r"(\d\d):(\d\d):(\d\d)")


class Start:
    """A start whose clock goes by the times in its log; what stands before the first of them took `imports` seconds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, engine: str = "vllm") -> None:
        self.now = 0.0
        monkeypatch.setattr(phases.time, "monotonic", lambda: self.now)
        self.phases = phases.Phases(engine)

    def lines(self, text: str, imports: int) -> Start:
        first = None
        for line in text.splitlines():
            if found := TIME.search(line):
                hours, minutes, seconds = map(int, found.groups())
                at = hours * 3600 + minutes * 60 + seconds
                first = at if first is None else first
                self.now = imports + at - first
            self.phases.line(line.encode())
        return self

    def ready(self, after: float) -> dict[str, float]:
        self.now += after
        self.phases.ready()
        return self.phases.spent


def test_a_start_on_two_gpus(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Three generations of processes import; each phase is told once, as it ends, although every rank prints its own line."""
    start = Start(monkeypatch).lines((LOGS / "vllm-0.25-h200-start.log").read_text(), imports=15)

    assert [line.split("[launch] ")[1] for line in capsys.readouterr().err.splitlines()] == [
        "phase     imports 15.0 s, at 15 s",
        "phase     imports 14.0 s, at 29 s",
        "phase     devices 1.0 s, at 44 s",
        "phase     weights 1.0 s, at 45 s",
        "phase     compile 16.0 s, at 61 s",
        "phase     profile 3.0 s, at 64 s",
        "phase     capture 3.0 s, at 67 s",
        "phase     warm-up 13.0 s, at 80 s",
        "phase     server 2.0 s, at 82 s",
    ]
    spent = start.ready(after=1)
    assert spent["imports"] == 43
    assert capsys.readouterr().err == (
        "INFO [launch] started   83.0 s: imports 43.0, devices 1.0, weights 1.0, compile 16.0, profile 3.0, capture 3.0, warm-up 13.0, "
        "server 2.0, first token 1.0\n"
    )


def test_a_start_without_compiler_and_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a release does not do takes no time, and none of it is `other`."""
    spent = Start(monkeypatch).lines((LOGS / "vllm-0.32-cpu-start.log").read_text(), imports=8).ready(after=2)

    assert spent == {"imports": 30, "devices": 0, "weights": 0, "profile": 1, "warm-up": 0, "server": 2, "first token": 2}


def test_what_is_not_known_is_other(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A release that prints other lines gives fewer phases, and no phase gets another's time. JSON has the figures."""
    monkeypatch.setattr(log, "form", "json")
    start = Start(monkeypatch)
    start.now = 20
    start.phases.line(b"Model loading took 7.18 GiB and 1.1 seconds")
    start.now = 30
    start.phases.line(b"Graph capturing finished in 4 secs")
    spent = start.ready(after=5)

    assert spent == {"other": 35}
    told = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(line["event"], line["seconds"]) for line in told] == [("phase", 20), ("phase", 10), ("started", 35)]
    assert {line["phase"] for line in told[:-1]} == {"other"}
    assert told[-1]["phases"] == {"other": 35}


def test_an_engine_that_nothing_is_known_of(monkeypatch: pytest.MonkeyPatch) -> None:
    start = Start(monkeypatch, "another")
    start.phases.line(b"Application startup complete.")

    assert start.ready(after=3) == {"other": 3}


def test_tensorrt_llm_tunes_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """It captures, sizes its cache, then tunes and captures again: lines in the wording of a log of 1.1.0rc3."""
    text = """\
[12/20/2025-04:20:04] [TRT-LLM] [I] Using LLM with PyTorch backend
[12/20/2025-04:20:19] [TRT-LLM] [I] ATTENTION RUNTIME FEATURES:  AttentionRuntimeFeatures(chunked_prefill=False)
[12/20/2025-04:21:08] [TRT-LLM] [I] Model init total -- 49.14s
[12/20/2025-04:21:37] [TRT-LLM] [I] [Autotuner] Autotuning process ends
[12/20/2025-04:21:49] [TRT-LLM] [I] Run generation only CUDA graph warmup for batch size=1, draft_len=0
[12/20/2025-04:21:53] [TRT-LLM] [I] [Autotuner] Autotuning process ends
[12/20/2025-04:21:56] [TRT-LLM] [I] Run generation only CUDA graph warmup for batch size=1, draft_len=0
INFO:     Application startup complete."""
    spent = Start(monkeypatch, "trtllm").lines(text, imports=5).ready(after=1)

    assert spent == {"imports": 5, "processes": 15, "weights": 49, "tuning": 29, "capture": 19, "server": 0, "first token": 1}


def test_the_file_agrees_with_itself() -> None:
    """Each engine has lines; each phase may come after phases that stand before it."""
    for engine in ENGINES:
        seen = ["start"]
        for row in phases.rows(engine):
            assert set(row.after) <= set(seen), row
            seen.append(row.phase)
        assert "weights" in seen

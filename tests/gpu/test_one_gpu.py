"""One GPU, vLLM under the launcher: refusals, memory against the plan, right answers in three precisions, faults, a warm start.

`make test-gpu` runs it where a GPU and vLLM are; docs/gpu-tests.md. With ENGINEROOM_REHEARSAL=1 the stub engine stands in. The order is
that of worth, and such that each test ends the engine that the ones before it have used: nine starts in all, none twice by mistake.
"""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gpu.stand import Stand, below, core_of, server_of
from gpus import REHEARSAL, figure, memory
from launched import ROOT, Launched

WHOLE = os.environ.get("ENGINEROOM_WHOLE")
SUMS = 500
pytestmark = [
    pytest.mark.skipif(not (REHEARSAL or memory()), reason="no GPU here"),
    pytest.mark.timeout(360),
]


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """The GPU, empty before and after."""
    made = Stand(tmp_path_factory.mktemp("stand"))
    yield made
    made.end()


# -------------------------------------------------------------------------------------------------------- exit codes


@pytest.mark.parametrize(
    ("env", "arguments", "text"),
    [
        ({"LAUNCH_IMAGE": str(ROOT / "images/v100-half/image.json")}, [], "h200-fp8"),
        ({}, ["--quantisation", "fp8"], "--quantization"),
        ({"LAUNCH_ARG_DTYPE": "fp7"}, [], "fp7"),
        ({"LAUNCH_ARG_GPU_MEMORY_UTILIZATION": "0.05"}, [], "GiB"),
        ({"LAUNCH_GPUS": "3"}, [], "sees 1"),
    ],
    ids=["image of another GPU", "unknown flag", "no such precision", "too little memory", "too many GPUs"],
)
def test_refused_before_anything_loads(stand: Stand, env: dict[str, str], arguments: list[str], text: str) -> None:
    """78 within seconds, with what to type."""
    stand.end()
    began = time.monotonic()
    ended = stand.here.ask("serve", *arguments, **{**stand.settings("7b bf16"), **env})
    figure(f"refused, s: {text}", round(time.monotonic() - began, 1))

    assert ended.returncode == 78, ended.stdout + ended.stderr
    assert text in ended.stdout + ended.stderr
    assert "stub: argv" not in ended.stdout


def test_refused_for_a_port_in_use(stand: Stand) -> None:
    """78, and the port is named."""
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        ended = stand.here.ask("serve", **stand.settings("demo bf16"), LAUNCH_PORT=port)

    assert ended.returncode == 78, ended.stdout + ended.stderr
    assert port in ended.stderr


# ----------------------------------------------------------------------------------------- memory, and the ends of 7 B


def check_memory(stand: Stand, name: str) -> None:
    """Weights and cache as vLLM logs them, against what the plan had said before: within 5 %."""
    planned = stand.plan(name)
    said = stand.serve(name).said()
    figure(f"{name}: in use, MiB", memory())
    patterns = {
        "weights": r"Model loading took ([\d.]+) GiB",
        "cache": r"Available KV cache memory: ([\d.]+) GiB",
        "tokens": r"GPU KV cache size: ([\d,]+) tokens",
    }
    seen = {what: float(re.findall(pattern, said)[-1].replace(",", "")) for what, pattern in patterns.items()}
    for what, value in seen.items():
        figure(f"{name}: {what}", {"planned": round(planned[what], 2), "seen": value, "ratio": round(planned[what] / value, 4)})

    assert planned == pytest.approx(seen, rel=0.05)


def answers(engine: Launched) -> list[Any]:
    """What the engine says to eight prompts, one after the other, at temperature 0: tokens and their log probabilities."""
    rng, found = random.Random(7), []
    for _ in range(8):
        prompt = [rng.randrange(300, 150_000) for _ in range(300)]
        body = {"model": "m", "prompt": prompt, "max_tokens": 64, "temperature": 0, "ignore_eos": True, "logprobs": 1}
        choice = engine.post("/v1/completions", body).result(timeout=120)["choices"][0]
        found.append((choice["text"], choice["logprobs"]["token_logprobs"]))
    return found


def test_memory_fp8(stand: Stand) -> None:
    check_memory(stand, "7b fp8")


@pytest.mark.skipif(not WHOLE, reason="ENGINEROOM_WHOLE names no folder with whole libraries")
def test_pruned_libraries_answer_as_whole_ones_do(stand: Stand) -> None:
    """The engine under test has pruned libraries, the folder the same release unpruned: the same tokens at temperature 0."""
    assert WHOLE
    pruned = answers(stand.serve("7b fp8"))
    whole = answers(stand.serve("7b fp8", site=Path(WHOLE).resolve()))
    differences = [abs(a - b) for (_, ours), (_, theirs) in zip(pruned, whole, strict=True) for a, b in zip(ours, theirs, strict=True)]
    figure("pruned and whole: answers alike", f"{sum(a[0] == b[0] for a, b in zip(pruned, whole, strict=True))} of {len(whole)}")
    figure("pruned and whole: largest difference of log probabilities", max(differences))

    assert [text for text, _ in pruned] == [text for text, _ in whole]


@pytest.mark.fault(6)
def test_fault_06_sigterm_when_idle(stand: Stand) -> None:
    """0 within 10 s, and the GPU is empty."""
    engine = stand.serve("7b fp8")
    ask_to_stop(engine)
    began = time.monotonic()
    code, _ = stand.ended(10)
    figure("SIGTERM when idle: ended, s", round(time.monotonic() - began, 1))

    assert code == 0


def test_memory_fp8_with_fp8_cache(stand: Stand) -> None:
    check_memory(stand, "7b fp8, fp8 cache")


@pytest.mark.fault(2)
def test_fault_02_engine_killed(stand: Stand) -> None:
    """70 within 5 s, with the last 50 lines."""
    engine = stand.serve("7b fp8, fp8 cache")
    os.kill(server_of(engine), signal.SIGKILL)
    code, said = stand.ended(5)

    assert code == 70
    assert "killed by SIGKILL" in said
    assert len(re.findall(r"^  \| ", said.partition("Its last 50 lines:")[2], re.MULTILINE)) == 50


def test_memory_bf16(stand: Stand) -> None:
    check_memory(stand, "7b bf16")


@pytest.mark.fault(7)
def test_fault_07_sigterm_in_mid_stream(stand: Stand) -> None:
    """The stream finishes, a new request gets 503, and the launcher ends with 0."""
    engine = stand.serve("7b bf16")
    body: dict[str, Any] = {"model": "m", "prompt": "1 + 1", "max_tokens": 60 if REHEARSAL else 1500, "temperature": 0}
    body |= {"ignore_eos": True, "stream_options": {"include_usage": True}}
    stream = engine.post("/v1/completions", body, stream=True)
    time.sleep(2)
    assert not stream.done()
    ask_to_stop(engine)
    engine.wait_for("draining", 600)
    refused = engine.status("POST", "/v1/completions", {"model": "m", "prompt": "1", "max_tokens": 1})
    still_running = not stream.done()
    tokens, _, how = stream.result(timeout=60)
    figure("SIGTERM in mid-stream: tokens, end, a new request's status", (tokens, how, refused))
    code, _ = stand.ended(20)

    assert (still_running, refused, tokens, how, code) == (True, 503, body["max_tokens"], "[DONE]", 0)


# ------------------------------------------------------------------------------------ right answers, and the ends of the demo


def sums() -> list[tuple[int, str, int]]:
    """Distinct sums that the demo model was not trained on: one pair in twenty, by the hash in scripts/train-demo-model."""
    rng = random.Random(20)
    found: dict[tuple[int, str, int], None] = {}
    while len(found) < SUMS:
        a, b = (rng.randint(0, 999) % rng.choice((10, 100, 1000, 1000)) for _ in range(2))
        if zlib.crc32(f"{min(a, b)} {max(a, b)}".encode()) % 20 == 0:
            found[a, rng.choice("+-"), b] = None
    return list(found)


def check_sums(stand: Stand, name: str) -> None:
    """The share of right answers is that of bf16 within a point, and every answer has a thought that is parsed."""
    engine = stand.serve(name)
    began = time.monotonic()
    body = {"model": "m", "max_tokens": 512, "temperature": 0}
    asked = [
        (a + b if sign == "+" else a - b, engine.post("/v1/chat/completions", {**body, "messages": [message(f"What is {a} {sign} {b}?")]}))
        for a, sign, b in sums()
    ]
    found = [(result, future.result(timeout=120)["choices"][0]["message"]) for result, future in asked]
    right = sum(re.findall(r"\\boxed\{(-?\d+)\}", text["content"] or "") == [str(result)] for result, text in found)
    thoughts = sum(bool((text.get("reasoning") or "").strip()) and "think>" not in str(text) for _, text in found)
    stand.right[name] = right / SUMS
    figure(f"{name}: right", {"right": right, "of": SUMS, "with a thought": thoughts, "seconds": round(time.monotonic() - began, 1)})

    assert right / SUMS > 0.95
    assert stand.right.get("demo bf16", right / SUMS) == pytest.approx(right / SUMS, abs=0.01 + 1e-9)
    assert thoughts == SUMS


def message(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def test_sums_bf16(stand: Stand) -> None:
    check_sums(stand, "demo bf16")


@pytest.mark.fault(1)
def test_fault_01_engine_exits_0_uninvited(stand: Stand) -> None:
    """Somebody else's SIGTERM makes vLLM end with 0, which nobody had asked the launcher for: 70."""
    engine = stand.serve("demo bf16")
    os.kill(server_of(engine), signal.SIGTERM)
    code, said = stand.ended(30)

    assert code == 70
    assert "ended with status 0" in said


def test_sums_fp16(stand: Stand) -> None:
    check_sums(stand, "demo fp16")


@pytest.mark.fault(3)
def test_fault_03_worker_process_dies(stand: Stand) -> None:
    """The process in which vLLM keeps the GPU is killed under the API: not ready within 30 s, and 70."""
    engine = stand.serve("demo fp16")
    os.kill(core_of(engine), signal.SIGKILL)
    died = time.monotonic()
    while engine.health():
        assert time.monotonic() - died < 30
        time.sleep(0.2)
    figure("EngineCore killed: not ready, s", round(time.monotonic() - died, 1))
    code, _ = stand.ended(30)
    figure("EngineCore killed: ended, s", round(time.monotonic() - died, 1))

    assert code == 70


def test_sums_fp8(stand: Stand) -> None:
    check_sums(stand, "demo fp8")


@pytest.mark.fault(4)
def test_fault_04_hangs_while_health_says_200(stand: Stand) -> None:
    """The process in which vLLM keeps the GPU stands still and /health says 200: no token comes out, and that is 70."""
    engine = stand.serve("demo fp8")
    os.kill(core_of(engine), signal.SIGSTOP)
    stopped = time.monotonic()
    assert engine.status("GET", "/health") == 200
    code, said = stand.ended(60)
    figure("EngineCore stopped: ended, s", round(time.monotonic() - stopped, 1))

    assert code == 70
    assert "no token comes out" in said


def test_sums_fp8_with_fp8_cache(stand: Stand) -> None:
    check_sums(stand, "demo fp8, fp8 cache")


# --------------------------------------------------------------------------------------------- starts, warm and broken off


def test_warm_start(stand: Stand) -> None:
    """The same stack once more with the caches that its first start filled: faster. The first had none of them; the disk was warm for both."""
    if not any(name == "7b bf16" for name, _ in stand.starts):
        stand.serve("7b fp8")  # reads vLLM from the disk
        stand.serve("7b bf16")
    stand.end()
    stand.serve("7b bf16")
    cold, *_, warm = [seconds for name, seconds in stand.starts if name == "7b bf16"]
    figure("7b bf16: warm start", {"cold": round(cold, 1), "warm": round(warm, 1), "ratio": round(warm / cold, 3)})

    assert REHEARSAL or warm < cold


@pytest.mark.fault(5)
def test_fault_05_launcher_killed(stand: Stand) -> None:
    """Nothing outlives a launcher that was killed, and the GPU is empty."""
    engine = stand.serve("7b bf16")
    assert engine.process
    started = below(engine.process.pid)
    engine.process.kill()
    engine.process.wait()
    deadline = time.monotonic() + 15
    while left := started.keys() & below(1).keys():
        assert time.monotonic() < deadline, {pid: started[pid] for pid in left}
        time.sleep(0.2)


@pytest.mark.fault(9)
def test_fault_09_sigterm_while_loading(stand: Stand) -> None:
    """0 within 10 s, and the GPU is empty."""
    stand.end()
    engine = Launched("loading", stand.folder / "loading")
    engine.launch(**stand.settings("7b bf16"), STUB_LOADS="60")
    try:
        engine.wait_for("stub: argv" if REHEARSAL else "Loading model from scratch", 120)
        ask_to_stop(engine)
        assert engine.exit_code(10) == 0
    finally:
        engine.close()
    stand.end()


def ask_to_stop(engine: Launched) -> None:
    """As `docker stop` does."""
    assert engine.process
    engine.process.terminate()

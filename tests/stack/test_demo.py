"""The demo as a newcomer meets it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
import urllib.request

import pytest
from demo import ROOT, Demo, free_port

from engineroom.catalog import Catalog

pytestmark = pytest.mark.containers


def test_it_ends_with_what_to_do_next(demo: Demo) -> None:
    """The last lines name the page, how to sign in, a request and how to stop."""
    assert f"Chat    {demo.page}" in demo.output
    assert "The first account that signs up owns the page" in demo.output
    assert "Stop    make down" in demo.output


def test_the_printed_curl_streams_thought_and_answer(demo: Demo) -> None:
    """The printed command, pasted into a shell, streams the thought and then the boxed sum."""
    text = subprocess.run(["bash", "-c", demo.curl], capture_output=True, text=True, timeout=60, check=True).stdout
    deltas = [json.loads(line[6:])["choices"][0]["delta"] for line in text.splitlines() if line.startswith("data: {")]
    thought = "".join(delta.get("reasoning") or delta.get("reasoning_content") or "" for delta in deltas)
    answer = "".join(delta.get("content") or "" for delta in deltas)

    assert thought.strip()
    assert r"\boxed{623}" in answer
    assert text.rstrip().endswith("data: [DONE]")


def test_the_openai_client_gets_the_same(demo: Demo) -> None:
    """The official client, pointed at the API, gets the boxed sum."""
    import openai  # a second, which runs without containers need not wait for

    client = openai.OpenAI(base_url=demo.api, api_key="none")
    model = client.models.list().data[0].id

    reply = client.chat.completions.create(model=model, messages=[{"role": "user", "content": "What is 905 - 48?"}])

    assert model == "demo-r1"
    assert r"\boxed{857}" in (reply.choices[0].message.content or "")


def test_the_gauges_of_autoscaling_are_there(demo: Demo) -> None:
    """The names in the release's row are gauges of the running server."""
    gauges = Catalog(ROOT).release_of("cpu").metrics
    with urllib.request.urlopen(f"{demo.api.removesuffix('/v1')}/metrics") as response:
        text = response.read().decode()

    for name in (gauges.waiting, gauges.cache):
        assert f"# TYPE {name} gauge\n{name}{{" in text


def test_nothing_listens_beyond_this_machine(demo: Demo) -> None:
    """Page and API are published on 127.0.0.1 alone."""
    for service in ("demo-cpu", "demo-cpu-engine"):
        rows = json.loads(
            subprocess.run(
                ["docker", "inspect", demo.compose("ps", "--quiet", service).stdout.strip()], capture_output=True, text=True, check=True
            ).stdout
        )
        bindings = [binding["HostIp"] for port in rows[0]["HostConfig"]["PortBindings"].values() for binding in port]
        assert bindings == ["127.0.0.1"]


def test_a_second_run_uses_what_is_there(demo: Demo) -> None:
    """`make demo` again changes nothing and takes less than two minutes."""
    before = demo.compose("ps", "--quiet").stdout
    began = time.monotonic()
    result = demo.make("demo")

    assert result.returncode == 0, result.stderr
    assert time.monotonic() - began < 120
    assert demo.compose("ps", "--quiet").stdout == before


def test_an_interrupted_run_goes_on(demo: Demo) -> None:
    """Ctrl-C at any point leaves nothing broken: the next run ends well."""
    demo.compose("rm", "--stop", "--force", "--volumes", "demo-cpu-engine")
    try:
        for seconds in (0.5, 2, 5, 15):  # before Docker is asked, in a build, at the start of the engine, while it loads
            process = subprocess.Popen(
                ["make", "demo"],
                cwd=ROOT,
                env=demo.env,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            time.sleep(seconds)
            os.killpg(process.pid, signal.SIGINT)
            stderr = process.communicate(timeout=60)[1]
            assert "Traceback" not in stderr
    finally:  # other tests want the demo, whatever has failed here
        again = demo.make("demo")

    assert again.returncode == 0, again.stderr


def test_a_taken_port_is_named(demo: Demo) -> None:
    """A port that something else has is named, with the setting that changes it."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        env = {**demo.env, "COMPOSE_PROJECT_NAME": "engineroom-test-other", "WEBUI_PORT": free_port(), "API_PORT": str(port)}
        result = subprocess.run([".venv/bin/engineroom", "up", "demo-cpu"], cwd=ROOT, env=env, capture_output=True, text=True, check=False)

    assert result.returncode == 70
    assert f"Port {port} is in use" in result.stderr
    assert "set API_PORT" in result.stderr

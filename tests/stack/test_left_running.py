"""The demo's server as Compose runs it, with secrets in it and with nothing right in it. Its project is its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import containers
import docker
import pytest
from demo import ROOT, free_port
from docker.models.containers import Container

from engineroom import build, resolve
from engineroom.catalog import Catalog
from engineroom.host import Host

pytestmark = [pytest.mark.containers, pytest.mark.timeout(600)]
CATALOG = Catalog(ROOT)
SERVICE = "demo-cpu-engine"
SECRETS = ("HF_TOKEN", "LAUNCH_API_KEY", "LAUNCH_CLUSTER_TOKEN")


class Stack:
    """The server of the demo's stack in a Compose project of its own, with what a second file adds."""

    def __init__(self, folder: Path) -> None:
        build.build(CATALOG, Host.load(ROOT), ["cpu"], lambda _: None)
        self.folder, self.port = folder, free_port()
        self.env = {**os.environ, "COMPOSE_PROJECT_NAME": f"engineroom-test-{uuid.uuid4().hex[:8]}", "API_PORT": self.port}

    def compose(self, *arguments: str, more: dict[str, Any] | None = None) -> str:
        """A Compose command; `more` is laid over the stack's file. Returns all that it says."""
        over = self.folder / "over.json"
        if more is not None:
            over.write_text(json.dumps(more))
        files = ["--file", "compose/demo-cpu.yaml", *(["--file", str(over)] if over.exists() else [])]
        result = subprocess.run(
            ["docker", "compose", *files, *arguments], cwd=ROOT, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300, check=False
        )  # fmt: skip
        return result.stdout

    def start(self, more: dict[str, Any]) -> Container:
        """Start the server with what is laid over its file."""
        said = self.compose("--profile", "demo-cpu", "up", "--detach", "--no-build", SERVICE, more=more)
        name = self.compose("ps", "--all", "--quiet", SERVICE).strip()
        assert name, said
        return docker.from_env().containers.get(name)

    def get(self, path: str, key: str = "") -> int:
        """The status of a request; 0 where nothing answers."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", headers={"Authorization": f"Bearer {key}"} if key else {})
        try:
            return int(urllib.request.urlopen(request, timeout=30).status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    """A stack that is removed afterwards, with its volumes."""
    running = Stack(tmp_path)
    yield running
    running.compose("--profile", "*", "down", "--volumes", "--timeout", "5")


def until(condition: Callable[[], bool], container: Container, seconds: float) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, container.logs().decode("utf-8", "replace")[-4000:]
        time.sleep(0.5)


def state(container: Container) -> dict[str, Any]:
    container.reload()
    return dict(container.attrs["State"])


@pytest.mark.fault(26)
def test_fault_26_canary_secrets_show_nowhere(stack: Stack, tmp_path: Path) -> None:
    """A hub token, an API key and a cluster token are used, and neither shown nor kept: while it serves, when it dies, and when it is refused."""
    tmp_path.chmod(0o755)
    canaries = {name: f"canary{uuid.uuid4().hex}" for name in SECRETS}
    for name, canary in canaries.items():
        (tmp_path / name).write_text(f"{canary}\n")
        (tmp_path / name).chmod(0o444)
    more = {
        "services": {
            SERVICE: {
                "environment": {f"{name}_FILE": f"/run/secrets/{name}" for name in SECRETS},
                "secrets": list(SECRETS),
                "restart": "no",
            }
        },
        "secrets": {name: {"file": str(tmp_path / name)} for name in SECRETS},
    }
    container = stack.start(more)
    until(lambda: b"ready after" in container.logs(), container, 240)
    assert (stack.get("/v1/models"), stack.get("/v1/models", canaries["LAUNCH_API_KEY"])) == (401, 200), "the key is in use"

    client = docker.from_env()
    image = client.images.get(resolve.tag("cpu", CATALOG.release_of("cpu")))
    shown = {
        "processes": json.dumps(container.top(ps_args="-eo pid,args")),
        "inspect": json.dumps(container.attrs),
        "the image": json.dumps([image.attrs, image.history()]),
        "compose config": stack.compose("--profile", "*", "config"),
        "what it would do": containers.execute(container, "launch", "serve", "--dry-run", "--port", "8001")[1],
        "the same as JSON": containers.execute(container, "launch", "serve", "--dry-run", "--json", "--port", "8001")[1],
        "its health": json.dumps(state(container)),
        "changed files": json.dumps(container.diff()),
        "a refused setting": containers.execute(container, "launch", "serve", "--no-such-flag", "x")[1],
    }
    assert "LAUNCH_API_KEY" in shown["inspect"]
    assert "VLLM_API_KEY" in shown["what it would do"]

    kill_core(container)
    until(lambda: state(container)["Status"] == "exited", container, 60)
    shown["logs to the end"] = container.logs().decode("utf-8", "replace")
    shown["the end"] = json.dumps(state(container))
    assert state(container)["ExitCode"] == 70
    assert "ready after" in shown["logs to the end"]
    kept = subprocess.run(
        ["docker", "run", "--rm", "--network=none", "--volumes-from", container.id, "--entrypoint=grep", image.id, "-rlE", "|".join(canaries.values()), "/cache"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    shown["files in the cache"] = kept.stdout

    assert [(place, name) for place, text in shown.items() for name, canary in canaries.items() if canary in text] == []


def kill_core(container: Container) -> None:
    """End the engine's inner process from outside, as the kernel does for want of memory."""
    (pid,) = (int(pid) for pid, command in container.top(ps_args="-eo pid,args")["Processes"] if "EngineCore" in command)
    os.kill(pid, signal.SIGKILL)


@pytest.mark.fault(38)
def test_fault_38_a_crash_loop_ends_with_its_cause(stack: Stack) -> None:
    """What cannot start is tried again three times, later each time, and then left alone with the status and the cause as the last words."""
    began = time.time()
    container = stack.start({"services": {SERVICE: {"environment": {"LAUNCH_MODEL": "/models/no-such-folder"}}}})
    until(lambda: state(container)["Status"] == "exited" and container.attrs["RestartCount"] == 3, container, 120)
    time.sleep(5)  # longer than Docker would wait for a fourth

    end = state(container)
    assert (end["ExitCode"], container.attrs["RestartCount"]) == (78, 3)
    said = container.logs(timestamps=True, since=int(began) - 1).decode("utf-8", "replace")
    causes = [line for line in said.splitlines() if "/models/no-such-folder" in line]
    assert len(causes) >= 4
    assert "/models/no-such-folder" in "\n".join(said.splitlines()[-6:]), said
    assert "Traceback" not in said
    assert stack.compose("ps", "--all", "--format", "{{.State}} {{.ExitCode}}", SERVICE).split() == ["exited", "78"]

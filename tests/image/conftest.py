"""The real `cpu` image in real containers. Each test file builds it first; a build with nothing to do takes a second."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import docker
import pytest
from docker.models.containers import Container

from engineroom import build, resolve
from engineroom.catalog import Catalog
from engineroom.host import Host

ROOT = Path(__file__).parents[2]
HARDENED = {"user": "12345:0", "read_only": True, "cap_drop": ["ALL"], "security_opt": ["no-new-privileges"]}
ADDITION = {"model": "demo-r1", "messages": [{"role": "user", "content": "What is 348 + 275?"}]}


@pytest.fixture(scope="session")
def image() -> str:
    """The name of the built `cpu` image."""
    catalog = Catalog(ROOT)
    build.build(catalog, Host.load(ROOT), ["cpu"], lambda _: None)
    return resolve.tag("cpu", catalog.release_of("cpu"))


class Server:
    """A container that serves, with its API on a port of this machine."""

    def __init__(self, container: Container) -> None:
        self.container = container

    @property
    def url(self) -> str:
        self.container.reload()
        return f"http://127.0.0.1:{self.container.ports['8000/tcp'][0]['HostPort']}"

    @property
    def logs(self) -> str:
        return self.container.logs().decode("utf-8", "replace")

    def wait_for(self, text: str, seconds: float = 300) -> None:
        """Wait until the log holds a text."""
        deadline = time.monotonic() + seconds
        while text not in self.logs:
            self.container.reload()
            assert self.container.status == "running", self.logs
            assert time.monotonic() < deadline, f"no {text!r} after {seconds} s:\n{self.logs}"
            time.sleep(0.5)

    def exit_code(self, seconds: float) -> int:
        """Wait for the end; more than `seconds` is a failure."""
        return int(self.container.wait(timeout=seconds)["StatusCode"])

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """An open request."""
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
        return urllib.request.urlopen(request, timeout=60)

    def processes(self, name: str) -> list[int]:
        """Host pids of the container's processes whose command holds a name."""
        rows = self.container.top(ps_args="-eo pid,args")["Processes"]
        return [int(pid) for pid, command in rows if name in command]


@pytest.fixture(scope="module")
def serve(image: str) -> Iterator[Callable[..., Server]]:
    """Start containers of the image; all are removed afterwards."""
    client = docker.from_env()
    started: list[Container] = []

    def start(*command: str, **options: Any) -> Server:
        options = {"ports": {"8000/tcp": ("127.0.0.1", None)}, **options}
        started.append(client.containers.run(image, list(command), detach=True, **options))
        return Server(started[-1])

    yield start
    for container in started:
        container.remove(force=True, v=True)


def run(image: str, *command: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """One command in a fresh container."""
    flags = [part for name, value in options.items() for part in ("--" + name.replace("_", "-"), str(value))]
    return subprocess.run(["docker", "run", "--rm", *flags, image, *command], capture_output=True, text=True, timeout=120, check=False)

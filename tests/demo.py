"""`make demo`, for real, in a Compose project and on ports of its own, so that a demo that is in use stays untouched."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


class Demo:
    """The running demo: what `make demo` printed, and how to run more commands beside it."""

    def __init__(self) -> None:
        ports = {name: free_port() for name in ("WEBUI_PORT", "API_PORT", "GATEWAY_PORT", "PROMETHEUS_PORT")}
        self.env = {**os.environ, "COMPOSE_PROJECT_NAME": "engineroom-test", "GATEWAY_ADDRESS": "127.0.0.1", **ports}
        self.output = ""

    def make(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A target of the Makefile, with its variables, in the demo's environment."""
        return subprocess.run(["make", *words], cwd=ROOT, env=self.env, capture_output=True, text=True, timeout=1500, check=False)

    def compose(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A Compose command on the demo's project."""
        return subprocess.run(
            ["docker", "compose", *arguments], cwd=ROOT, env=self.env, capture_output=True, text=True, timeout=300, check=False
        )

    def inspect(self, service: str) -> str:
        """What Docker knows about a service's container, as JSON."""
        command = ["docker", "inspect", self.compose("ps", "--quiet", service).stdout.strip()]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    @property
    def page(self) -> str:
        return f"http://localhost:{self.env['WEBUI_PORT']}"

    @property
    def api(self) -> str:
        return f"http://localhost:{self.env['API_PORT']}/v1"

    @property
    def curl(self) -> str:
        """The request that `make demo` prints for pasting."""
        found = re.search(r"^API +(curl .*)$", self.output, re.MULTILINE)
        assert found, self.output
        return found[1]


@pytest.fixture(scope="session")
def demo() -> Iterator[Demo]:
    """A fresh demo, with no volumes from before; stopped and removed afterwards."""
    running = Demo()
    running.compose("--profile", "*", "down", "--volumes")
    began = time.monotonic()
    result = running.make("demo")
    assert result.returncode == 0, result.stdout + result.stderr
    running.output = result.stdout
    print(f"make demo: {time.monotonic() - began:.0f} s\n{result.stderr}")
    yield running
    running.compose("--profile", "*", "down", "--volumes")

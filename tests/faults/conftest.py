"""A launcher on this machine with a stub engine that fails on command."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from checkpoints import small_model
from launched import LAUNCH, ROOT, STUB_FACTS


class Launched:
    """A running launcher: its port, its output so far, its exit code."""

    def __init__(self, folder: Path, port: int, start: str, arguments: list[str], env: dict[str, str]) -> None:
        self.port = port
        self.output_file = folder / "output"
        path = f"{ROOT / 'tests/stubs'}:{os.environ['PATH']}"
        base = {"PATH": path, "PYTHONPATH": str(ROOT / "entrypoints"), "TMPDIR": str(folder), "LAUNCH_PORT": str(port)}
        with self.output_file.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-c", start, *arguments],
                env={**base, **env},
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def output(self) -> str:
        return self.output_file.read_text()

    def wait_for(self, text: str, seconds: float = 20) -> None:
        """Wait until the output holds a text."""
        deadline = time.monotonic() + seconds
        while text not in self.output:
            assert time.monotonic() < deadline, f"no {text!r} after {seconds} s in:\n{self.output}"
            assert self.process.poll() is None or text in self.output, self.output
            time.sleep(0.05)

    def exit_code(self, seconds: float) -> int:
        """Wait for the end; more than `seconds` is a failure."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            pytest.fail(f"still running after {seconds} s:\n{self.output}")

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def engine_pid(self) -> int:
        """The engine is the launcher's first child."""
        return int(Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()[0])

    def stream(self, tokens: int) -> urllib.response.addinfourl:  # type: ignore[name-defined]
        """An open streaming request of so many tokens, a tenth of a second each."""
        body = json.dumps({"max_tokens": tokens}).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/v1/completions", body, {"Content-Type": "application/json"})
        return urllib.request.urlopen(request, timeout=30)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., Launched]]:
    """Start launchers; all that are left are killed afterwards. `before` is Python to run first."""
    started: list[Launched] = []

    def start(*arguments: str, before: str = "", **env: str) -> Launched:
        image = tmp_path / "image.json"
        image.write_text(json.dumps(STUB_FACTS))
        defaults = {"LAUNCH_IMAGE": str(image), "LAUNCH_MODEL": str(small_model(tmp_path / "model"))}
        started.append(Launched(tmp_path, free_port(), before + LAUNCH, list(arguments), {**defaults, **env}))
        return started[-1]

    yield start
    for launched in started:
        launched.process.kill()
        launched.process.wait()

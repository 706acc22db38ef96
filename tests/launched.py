"""A launcher as a process on this machine: its settings, its log, its API, its end, and whatever it has started."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
MARK = "ENGINEROOM_TEST_MACHINE"
LAUNCH = "from launcher.cli import main; main()"
STUB_FACTS = {
    "image": "stub", "engine": "vllm", "release": "stub", "version": "0", "precision": "auto", "gpus": {"cpu": 0}, "cuda": "",
    "min_driver": "", "executors": ["ray", "native"], "model": "", "model_name": "", "args": {}, "env": {},
}  # fmt: skip


class Launched:
    """A launcher, not started yet. `name` marks every process that it starts; `folder` gets its log; `port` is its API's."""

    def __init__(self, name: str, folder: Path, port: int = 8000, threads: ThreadPoolExecutor | None = None) -> None:
        self.name, self.folder, self.port = name, folder, port
        folder.mkdir(parents=True)
        self.log = folder / "log"
        self.threads = threads or ThreadPoolExecutor(64)
        self.process: subprocess.Popen[bytes] | None = None

    def command(self, *command: str) -> list[str]:
        """A command as it is run where this launcher is."""
        return list(command)

    def environment(self, env: dict[str, str]) -> dict[str, str]:
        """What every program here sees."""
        path = os.pathsep.join(filter(None, (str(ROOT / "entrypoints"), env.get("PYTHONPATH", os.environ.get("PYTHONPATH", "")))))
        return {**os.environ, MARK: self.name, **env, "PYTHONPATH": path}

    def launch(self, *arguments: str, **env: str) -> None:
        """Start the launcher here; its output goes to `log`."""
        self.start(sys.executable, "-c", LAUNCH, *arguments, **env)

    def start(self, *command: str, **env: str) -> None:
        """Start a program here, the launcher or another in its place; its output goes to `log`."""
        self.env, self.began = env, time.monotonic()
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                self.command(*command), env=self.environment(env), stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def ask(self, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Another command of the launcher, to its end."""
        command = self.command(sys.executable, "-c", LAUNCH, *arguments)
        return subprocess.run(command, env=self.environment(env), capture_output=True, text=True, timeout=60, check=False)

    def health(self) -> bool:
        """Whether `launch health --ready` says so here."""
        return self.ask("health", "--ready", **self.env).returncode == 0

    def said(self) -> str:
        """The log so far."""
        return self.log.read_text(errors="replace")

    def wait_for(self, text: str, seconds: float) -> float:
        """Wait until the log holds a text; returns the seconds since the start."""
        while text not in self.said():
            assert self.process
            assert self.process.poll() is None, self.said()[-6000:]
            assert time.monotonic() - self.began < seconds, f"no {text!r} after {seconds} s:\n{self.said()[-6000:]}"
            time.sleep(0.2)
        return time.monotonic() - self.began

    def exit_code(self, seconds: float) -> int:
        """Wait for the end; more than `seconds` is a failure."""
        assert self.process
        return self.process.wait(seconds)

    def processes(self) -> list[int]:
        """Every process that was started here, however it has detached itself."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if f"{MARK}={self.name}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
        return found

    def send(self, number: signal.Signals) -> None:
        """A signal to every process here: SIGKILL is a power cut, SIGSTOP a machine that hangs."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def post(self, path: str, body: dict[str, Any], *, stream: bool = False) -> Future[Any]:
        """A request from here to its own API: the answer as JSON, or what `_stream` returns."""
        return self.threads.submit(self._stream if stream else self._post, path, body)

    def status(self, method: str, path: str, body: dict[str, Any] | None = None) -> int:
        """The status of an answer; 0 where nobody answers."""
        try:
            return self._response(method, path, body, 10).status
        except (OSError, http.client.HTTPException):
            return 0

    def close(self) -> None:
        """End whatever is left; the launcher first, whose end also kills an engine that hides its environment behind a title."""
        if self.process:
            self.process.kill()
            self.process.wait(30)
            time.sleep(0.2)
        self.send(signal.SIGKILL)

    def _response(self, method: str, path: str, body: dict[str, Any] | None, timeout: float) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        connection.request(method, path, json.dumps(body) if body else None, {"Content-Type": "application/json"})
        return connection.getresponse()

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        return json.loads(self._response("POST", path, {"stream": False, **body}, 300).read())

    def _stream(self, path: str, body: dict[str, Any]) -> tuple[int, float, str]:
        """Tokens (chunks unless the server counts), the moment of the end, and how it ended: `[DONE]`, an error, or a cut connection."""
        chunks, ended = 0, "cut off"
        try:
            for line in self._response("POST", path, {**body, "stream": True}, 300):
                if line.startswith(b"data: [DONE]"):
                    ended = "[DONE]"
                elif line.startswith(b"data: "):
                    chunks = json.loads(line[6:])["usage"]["completion_tokens"] if b'"usage":{' in line else chunks + 1
                    ended = "error" if b'"error"' in line else ended
        except (OSError, http.client.HTTPException) as error:
            ended = type(error).__name__
        return chunks, time.monotonic(), ended

"""Two machines on one host with two GPUs: each has a network, a host name, a temporary folder and a GPU of its own, as containers would.

Wants root, `nsenter` and `unshare` (util-linux), and pyroute2 for the cable between the two.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute, NetNS, netns

ROOT = Path(__file__).parents[2]
MARK = "ENGINEROOM_TEST_MACHINE"
NAMED = 'hostname "$1" && shift && exec "$@"'
LAUNCH = "from launcher.cli import main; main()"


class Machine:
    """One of the two. `gpu` is its number on the host."""

    def __init__(self, name: str, ip: str, gpu: int, folder: Path) -> None:
        self.name, self.ip, self.gpu, self.folder = name, ip, gpu, folder
        self.space = f"engineroom-{name}"
        folder.mkdir(parents=True)
        self.log = folder / "log"
        self.temporary = Path(f"/tmp/er-{name}")  # a short name: sockets are made there
        self.temporary.mkdir(exist_ok=True)
        self.threads = ThreadPoolExecutor(16, initializer=netns.setns, initargs=(self.space,))
        self.process: subprocess.Popen[bytes] | None = None

    def command(self, *command: str) -> list[str]:
        """A command that runs on this machine."""
        return ["nsenter", f"--net=/run/netns/{self.space}", "unshare", "--uts", "sh", "-c", NAMED, "sh", self.name, *command]

    def environment(self, env: dict[str, str]) -> dict[str, str]:
        """What every program on this machine sees."""
        path = os.pathsep.join(filter(None, (str(ROOT / "entrypoints"), os.environ.get("PYTHONPATH", ""))))
        return {
            **os.environ,
            "PYTHONPATH": path,
            "CUDA_VISIBLE_DEVICES": str(self.gpu),
            MARK: self.name,
            "TMPDIR": str(self.temporary),
            **env,
        }

    def launch(self, *arguments: str, **env: str) -> None:
        """Start the launcher here; its output goes to `log`."""
        self.env, self.began = env, time.monotonic()
        with self.log.open("wb") as log:
            command = self.command(sys.executable, "-c", LAUNCH, *arguments)
            self.process = subprocess.Popen(
                command, env=self.environment(env), stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def health(self) -> bool:
        """Whether `launch health --ready` says so on this machine."""
        command = self.command(sys.executable, "-c", LAUNCH, "health", "--ready")
        return subprocess.run(command, env=self.environment(self.env), capture_output=True, timeout=60, check=False).returncode == 0

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
        """A request from this machine to its own API: the answer as JSON, or what `Stream` holds."""
        return self.threads.submit(_stream if stream else _post, path, body)

    def close(self) -> None:
        """End whatever is left."""
        self.send(signal.SIGKILL)
        if self.process:
            self.process.wait(30)
        shutil.rmtree(self.temporary, ignore_errors=True)


def _connection(path: str, body: dict[str, Any], timeout: float) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", 8000, timeout=timeout)
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    return connection.getresponse()


def _post(path: str, body: dict[str, Any]) -> Any:
    return json.loads(_connection(path, body, 300).read())


def _stream(path: str, body: dict[str, Any]) -> tuple[int, float, str]:
    """Chunks, the moment of the end, and how it ended: `[DONE]`, an error that the server sent, or a cut connection."""
    chunks, ended = 0, "cut off"
    try:
        for line in _connection(path, {**body, "stream": True}, 300):
            if line.startswith(b"data: [DONE]"):
                ended = "[DONE]"
            elif line.startswith(b"data: "):
                chunks += 1
                ended = "error" if b'"error"' in line else ended
    except (OSError, http.client.HTTPException) as error:
        ended = type(error).__name__
    return chunks, time.monotonic(), ended


@contextlib.contextmanager
def pair(folder: Path) -> Iterator[tuple[Machine, Machine]]:
    """Two machines with a cable between them, and nothing else."""
    first, second = Machine("first", "10.77.0.1", 0, folder / "first"), Machine("second", "10.77.0.2", 1, folder / "second")
    try:
        for machine in (first, second):
            netns.create(machine.space)
        with IPRoute() as here:
            here.link("add", ifname="er-first", kind="veth", peer={"ifname": "er-second"})
            for machine in (first, second):
                here.link("set", index=here.link_lookup(ifname=f"er-{machine.name}")[0], net_ns_fd=machine.space)
        for machine in (first, second):
            with NetNS(machine.space) as there:
                index = there.link_lookup(ifname=f"er-{machine.name}")[0]
                there.addr("add", index=index, address=machine.ip, prefixlen=24)
                for number in (1, index):
                    there.link("set", index=number, state="up")
        yield first, second
    finally:
        for machine in (first, second):
            machine.close()
            machine.threads.shutdown()
            with contextlib.suppress(OSError):
                netns.remove(machine.space)

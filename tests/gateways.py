"""The gateway's real image in front of recording upstreams, and requests to it byte by byte."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import docker
import pytest
from demo import Demo

from engineroom import build, resolve
from engineroom.catalog import Catalog
from engineroom.host import Host

ROOT = Path(__file__).parents[1]
KEYS = {"alice": "alice-key-canary-0123456789", "bob": "bob-key-canary-0123456789"}
HARDENED = {
    "user": "12345:0", "read_only": True, "cap_drop": ["ALL"], "security_opt": ["no-new-privileges"],
    "tmpfs": {"/tmp": ""},
}  # fmt: skip
BLIND = ssl._create_unverified_context()  # noqa: S323 - its certificate is looked at where a test is about it


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Upstream:
    """A server in a thread that records every request that reaches it.

    A chat's body says what to answer: `chunks` of an event stream, `gap` seconds between them, after `wait` seconds, with `status`.
    """

    def __init__(self, port: int = 0, host: str = "127.0.0.1") -> None:
        self.requests: list[str] = []  # request lines
        self.headers: list[str] = []  # the rest of each head
        self.sent: list[float] = []  # when each chunk left
        self.cut = 0  # streams whose reader went away
        self.always = 0  # a status to answer everything with
        self._loop = asyncio.new_event_loop()
        self._server = self._loop.run_until_complete(asyncio.start_server(self._serve, host, port, backlog=4096))
        self.place = f"{host}:{self._server.sockets[0].getsockname()[1]}"
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def stop(self) -> None:
        """Close the port and every connection."""

        def close() -> None:
            self._server.close()
            for task in asyncio.all_tasks(self._loop):
                task.cancel()

        self._loop.call_soon_threadsafe(close)
        time.sleep(0.1)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := (await reader.readuntil(b"\r\n\r\n")).decode("latin-1"):
                line, _, headers = head.partition("\r\n")
                self.requests.append(line)
                self.headers.append(headers)
                fields = {name.lower(): value.strip() for name, _, value in (row.partition(":") for row in headers.splitlines())}
                body = await reader.readexactly(int(fields.get("content-length", 0)))
                if "upgrade" in fields:
                    writer.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
                    writer.write(await reader.read(64))
                    break
                await self._answer(writer, line, json.loads(body) if body.startswith(b"{") else {})
        except (asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        except (ConnectionError, asyncio.LimitOverrunError):
            self.cut += 1
        finally:
            writer.close()

    async def _answer(self, writer: asyncio.StreamWriter, line: str, wanted: dict[str, Any]) -> None:
        await asyncio.sleep(wanted.get("wait", 0))
        if status := self.always or wanted.get("status"):
            writer.write(f"HTTP/1.1 {status} Of The Engine\r\nRetry-After: 5\r\nContent-Length: 6\r\n\r\nengine".encode())
            return
        cors = "Access-Control-Allow-Origin: *\r\n"
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n{cors}Transfer-Encoding: chunked\r\n\r\n".encode())
        if line.startswith("HEAD "):  # has no body, which would be taken for the next answer
            return
        for number in range(wanted.get("chunks", 1)):
            text = f"data: {number}\n\n".encode()
            writer.write(b"%x\r\n%s\r\n" % (len(text), text))
            await writer.drain()
            self.sent.append(time.monotonic())
            await asyncio.sleep(wanted.get("gap", 0))
        writer.write(b"0\r\n\r\n")
        await writer.drain()


class Answer(NamedTuple):
    """What came back. `body` is as sent, chunk marks and all."""

    status: int
    head: str
    body: str

    def header(self, name: str) -> str:
        """A header's value; empty when it is not there."""
        return next((line.partition(": ")[2] for line in self.head.splitlines() if line.lower().startswith(f"{name.lower()}: ")), "")


class Door:
    """A gateway's port on this machine, and requests to it."""

    def __init__(self, port: int) -> None:
        self.port = port

    def connect(self) -> ssl.SSLSocket:
        return BLIND.wrap_socket(socket.create_connection(("127.0.0.1", self.port), timeout=30), server_hostname="localhost")

    def raw(self, request: bytes, seconds: float = 30) -> bytes:
        """Send bytes and read until the other side hangs up, or says nothing for so long."""
        parts = []
        with self.connect() as line:
            line.settimeout(seconds)
            with contextlib.suppress(OSError):  # refused before all was sent: the answer is there
                line.sendall(request)
            with contextlib.suppress(ConnectionResetError, ssl.SSLEOFError, TimeoutError):
                while part := line.recv(65536):
                    parts.append(part)
        return b"".join(parts)

    def ask(self, line: str, key: str = "", body: Any = None, seconds: float = 30, **headers: str) -> Answer:
        """One request; `line` is method and target. Silence for so long ends the answer."""
        sent = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        fields = {
            "Host": f"localhost:{self.port}",
            "Connection": "close",
            "Content-Length": str(len(sent)),
            "Content-Type": "application/json",
        }
        fields |= {"Authorization": f"Bearer {key}"} if key else {}
        fields |= {name.replace("_", "-"): value for name, value in headers.items()}
        text = f"{line} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in fields.items()) + "\r\n"
        head, _, rest = self.raw(text.encode("latin-1") + sent, seconds).decode("utf-8", "replace").partition("\r\n\r\n")
        return Answer(int(head.split()[1]) if head else 0, head, rest)

    def status(self, line: str) -> int:
        """The status of an answer; 0 when nothing listens."""
        try:
            return self.ask(line).status
        except OSError:
            return 0


class Gateway(Door):
    """A running container of the image, on this machine's network so that it reaches upstreams of a test."""

    def __init__(self, folder: Path, engines: str, keys: dict[str, str] | None = None, **settings: str) -> None:
        super().__init__(free_port())
        self.folder = folder
        self.keys_file = folder / "keys"
        environment = {"GATEWAY_LISTEN": f"127.0.0.1:{self.port}", "GATEWAY_ENGINES": engines, "GATEWAY_KEY_RATE": "5000", **settings}
        volumes = {}
        if keys is not None:
            self.write_keys(keys)
            environment["GATEWAY_KEYS_FILE"] = "/secrets/keys"
        if "GATEWAY_KEYS_FILE" in environment:
            volumes = {str(folder): {"bind": "/secrets", "mode": "ro"}}
        self.container = docker.from_env().containers.run(
            image_name(), detach=True, network_mode="host", environment=environment, volumes=volumes,
            name=f"engineroom-test-gateway-{uuid.uuid4().hex[:8]}", **HARDENED,
        )  # fmt: skip

    def write_keys(self, keys: dict[str, str]) -> None:
        self.folder.chmod(0o755)
        self.keys_file.write_text("# names and keys\n" + "".join(f"{name}:{key}\n" for name, key in keys.items()))
        self.keys_file.chmod(0o644)

    def started(self) -> Gateway:
        """Itself, once it answers."""
        deadline = time.monotonic() + 20
        while self.status("GET /health") != 200:
            self.container.reload()
            assert self.container.status == "running", self.logs
            assert time.monotonic() < deadline, self.logs
            time.sleep(0.1)
        return self

    @property
    def logs(self) -> str:
        return str(self.container.logs().decode())

    def wait_for(self, text: str, count: int = 1, seconds: float = 15) -> None:
        """Wait until the log holds a text so many times."""
        deadline = time.monotonic() + seconds
        while self.logs.count(text) < count:
            assert time.monotonic() < deadline, f"no {text!r} after {seconds} s:\n{self.logs}"
            time.sleep(0.1)

    def access(self) -> list[dict[str, Any]]:
        """The access log."""
        return [json.loads(line) for line in self.logs.splitlines() if line.startswith("{")]

    def chat(self, body: dict[str, Any], who: str = "alice") -> Answer:
        """A chat, streamed as the upstream is asked to."""
        return self.ask("POST /v1/chat/completions", KEYS[who], body)

    def remove(self) -> None:
        self.container.remove(force=True, v=True)


@pytest.fixture(scope="session")
def door(demo: Demo) -> Iterator[Door]:
    """The gateway of the demo, started as a person would."""
    page = demo.compose("ps", "--quiet", "demo-cpu").stdout
    result = demo.make("up", "GATEWAY=1")
    assert result.returncode == 0, result.stderr
    assert demo.compose("ps", "--quiet", "demo-cpu").stdout == page, "who is at the page must not notice"
    found = Door(int(demo.env["GATEWAY_PORT"]))
    assert f"Others  https://127.0.0.1:{found.port} has both" in result.stdout
    assert (found.status("GET /health"), found.status("GET /")) == (200, 200)
    yield found
    demo.compose("rm", "--stop", "--force", "--volumes", "demo-cpu-gateway")


def image_name() -> str:
    catalog = Catalog(ROOT)
    return resolve.tag("gateway", catalog.release_of("gateway"))


def build_image() -> None:
    """Build the image; with nothing to do that takes a second."""
    build.build(Catalog(ROOT), Host.load(ROOT), ["gateway"], lambda _: None)

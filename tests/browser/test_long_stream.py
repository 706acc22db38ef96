"""A thought of five minutes through gateway and page, as a browser gets it: by the page's web socket, and by its API."""

from __future__ import annotations

import http.client
import itertools
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import docker
import pytest
from browser.test_chat import PASSWORD, ask, browser, visit
from gateways import BLIND, HARDENED, Gateway, build_image, free_port
from playwright.sync_api import Browser, expect

from engineroom import build, resolve
from engineroom.catalog import Catalog
from engineroom.host import Host

__all__ = ["browser"]
ROOT = Path(__file__).parents[2]
SECONDS = 301  # one chunk each, and the first at once
THOUGHT = 250  # chunks of it: the rest is the answer
pytestmark = [pytest.mark.containers, pytest.mark.slow, pytest.mark.timeout(900)]


class Engine(BaseHTTPRequestHandler):
    """Lists a model, and thinks slowly: a word a second, at times that count from the answer's beginning, so that no delay adds up."""

    protocol_version = "HTTP/1.1"
    sent: list[list[float]] = []  # noqa: RUF012 - of each answer, when its words left

    def do_GET(self) -> None:
        self.reply("application/json", json.dumps({"object": "list", "data": [{"id": "slow", "object": "model"}]}).encode())

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        times: list[float] = []
        type(self).sent.append(times)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        began = time.monotonic()
        for number in range(SECONDS + 1):
            time.sleep(max(0.0, began + number - time.monotonic()))
            self.event({"reasoning_content" if number < THOUGHT else "content": f"word-{number}. "})
            times.append(time.monotonic())
        self.event({}, "stop")
        self.wfile.write(b"data: [DONE]\n\n")
        self.close_connection = True

    def event(self, delta: dict[str, str], finish: str | None = None) -> None:
        row = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "slow"}
        self.wfile.write(f"data: {json.dumps({**row, 'choices': [{'index': 0, 'delta': delta, 'finish_reason': finish}]})}\n\n".encode())

    def reply(self, kind: str, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name in the library
        """Nothing."""


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    """Our gateway's image in front of Open WebUI's with the stacks' own settings, and that in front of the engine."""
    build_image()
    catalog = Catalog(ROOT)
    build.build(catalog, Host.load(ROOT), [resolve.PAGE_IMAGE], lambda _: None)
    page = catalog.release_of(resolve.PAGE_IMAGE)
    Engine.sent = []
    engine = ThreadingHTTPServer(("127.0.0.1", 0), Engine)
    threading.Thread(target=engine.serve_forever, daemon=True).start()
    port = free_port()
    settings = {variable.name: variable.value for variable in page.settings}
    settings |= {"OPENAI_API_BASE_URLS": f"http://127.0.0.1:{engine.server_port}/v1", "HOST": "127.0.0.1", "PORT": str(port)}
    settings |= {"WEBUI_URL": f"http://localhost:{port}", "CORS_ALLOW_ORIGIN": f"http://localhost:{port}"}
    container = docker.from_env().containers.run(
        resolve.tag(resolve.PAGE_IMAGE, page),
        detach=True,
        network_mode="host",
        environment=settings,
        name=f"engineroom-test-long-page-{port}",
        **{**HARDENED, "tmpfs": {"/tmp": "", "/app/backend/data": "mode=777"}},
    )
    running = None
    try:
        running = Gateway(tmp_path, f"127.0.0.1:{engine.server_port}", GATEWAY_PAGE=f"127.0.0.1:{port}").started()
        deadline = time.monotonic() + 180
        while running.status("GET /health") != 200 or running.status("GET /api/config") != 200:
            assert time.monotonic() < deadline, container.logs().decode()
            time.sleep(1)
        yield running
    finally:
        container.remove(force=True, v=True)
        if running:
            running.remove()
        engine.shutdown()
        engine.server_close()


def request(gateway: Gateway, path: str, body: dict[str, Any], token: str = "") -> http.client.HTTPResponse:
    """A request to the page through the gateway; its answer may take its time."""
    line = http.client.HTTPSConnection("127.0.0.1", gateway.port, context=BLIND, timeout=60)
    line.request("POST", path, json.dumps(body), {"Content-Type": "application/json", "Authorization": f"Bearer {token}"})
    return line.getresponse()


def widest(times: list[float]) -> float:
    return max(after - before for before, after in itertools.pairwise(times))


@pytest.mark.fault(41)
def test_fault_41_five_minutes_through_gateway_and_page(gateway: Gateway, browser: Browser) -> None:
    """Every word comes, in the browser and from the API at the same time, and no pause is half as long again as the longest at the source."""
    account = {"name": "First", "email": "first@example.com", "password": PASSWORD, "profile_image_url": "/user.png"}
    token = json.load(request(gateway, "/api/v1/auths/signup", account))["token"]
    by_api: list[float] = []

    def read() -> None:
        body = {"model": "slow", "stream": True, "messages": [{"role": "user", "content": "Think."}]}
        answer = request(gateway, "/api/chat/completions", body, token)
        by_api.extend(time.monotonic() for line in answer if b"word-" in line)

    by_socket: dict[int, float] = {}

    def came(frame: str | bytes) -> None:
        number = len(by_socket)
        if f"word-{number}." in (frame if isinstance(frame, str) else frame.decode("utf-8", "replace")):
            by_socket[number] = time.monotonic()

    page = visit(browser, f"https://127.0.0.1:{gateway.port}")
    page.evaluate("token => { localStorage.token = token }", token)
    page.on("websocket", lambda socket: socket.on("framereceived", came))
    page.reload()
    expect(page.locator("#chat-input")).to_be_visible()
    reader = threading.Thread(target=read)
    reader.start()
    ask(page)
    deadline = time.monotonic() + SECONDS + 60
    while (len(by_socket) <= SECONDS or reader.is_alive()) and time.monotonic() < deadline:
        page.wait_for_timeout(200)  # its events come while it waits
    expect(page.locator(".chat-assistant").last).to_contain_text(f"word-{SECONDS}.")
    page.context.close()

    at_source = [widest(times) for times in Engine.sent]
    for name, times in (("socket", list(by_socket.values())), ("API", by_api)):
        print(
            f"{name}: {len(times)} words in {times[-1] - times[0]:.1f} s, widest gap {widest(times):.3f} s; at the source {max(at_source):.3f} s"
        )
    assert (len(by_socket), len(by_api)) == (SECONDS + 1, SECONDS + 1)
    assert max(widest(list(by_socket.values())), widest(by_api)) < 1.5 * max(at_source)

"""The gateway's real image in front of recording upstreams: who gets in, what gets through, and how it behaves when something changes."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import re
import socket
import ssl
import subprocess
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import containers
import pytest
from gateways import BLIND, KEYS, Gateway, Upstream, build_image

pytestmark = [pytest.mark.containers, pytest.mark.timeout(420)]
SERVED = {"GET /v1/models HTTP/1.1", "POST /v1/chat/completions HTTP/1.1", "POST /v1/completions HTTP/1.1"}
UNSERVED = (
    "/metrics", "/load", "/version", "/tokenize", "/detokenize", "/invocations", "/pooling", "/classify", "/score", "/rerank", "/pause", "/resume",
    "/collective_rpc", "/update_weights", "/scale_elastic_ep", "/abort_requests", "/docs", "/openapi.json", "/sleep", "/reset_prefix_cache",
    "/v1/embeddings", "/v1/responses", "/v1/load_lora_adapter", "/v1/rerank", "/v1/audio/transcriptions", "/v2/rerank", "/inference/v1/generate",
    "/generate", "/flush_cache", "/server_info", "/get_model_info", "/v1", "/v1/", "/",
)  # fmt: skip


@pytest.fixture(scope="session", autouse=True)
def image() -> None:
    build_image()


@pytest.fixture
def upstreams() -> Iterator[Callable[..., Upstream]]:
    """Make recording upstreams; all are stopped afterwards."""
    made: list[Upstream] = []

    def make(*arguments: Any) -> Upstream:
        made.append(Upstream(*arguments))
        return made[-1]

    yield make
    for upstream in made:
        upstream.stop()


@pytest.fixture
def gateways(tmp_path: Path) -> Iterator[Callable[..., Gateway]]:
    """Make gateways; all are removed afterwards."""
    made: list[Gateway] = []

    def make(engines: str, keys: dict[str, str] | None = KEYS, **settings: str) -> Gateway:
        made.append(Gateway(tmp_path, engines, keys, **settings))
        return made[-1]

    yield make
    for gateway in made:
        gateway.remove()


def test_a_key_opens_what_is_served(upstreams: Callable[..., Upstream], gateways: Callable[..., Gateway]) -> None:
    """With a right key every served path answers; without one, or with a wrong one, none does, and the engine sees nothing of it."""
    engine = upstreams()
    gateway = gateways(engine.place).started()
    for line in sorted(SERVED):
        target, key = line.removesuffix(" HTTP/1.1"), KEYS["bob"]
        body = {"chunks": 1} if target.startswith("POST") else None
        wrong = (key[:-1], key + "x", key.upper(), f" {key}x", "", "default", f"{key},{key}")
        answers = [gateway.ask(target, bad, body) for bad in wrong]
        answers += [
            gateway.ask(target, "", body, Authorization=value) for value in (key, f"Basic {key}", f"Bearer{key}", f"Bearer {key} x")
        ]
        answers += [gateway.ask(target, "", body, X_Api_Key=key, Cookie=f"Authorization=Bearer {key}")]

        assert {answer.status for answer in answers} == {401}
        assert {answer.header("WWW-Authenticate") for answer in answers} == {"Bearer"}
        assert json.loads(answers[0].body)["error"]["code"] == 401
        assert engine.requests == []
        assert gateway.ask(target, key, body).status == 200
        assert gateway.ask(target, "", body, Authorization=f"bearer {key}").status == 200  # the scheme has no case
        assert engine.requests == [line, line]
        engine.requests.clear()
    assert gateway.ask("GET /health")[::2] == (200, "live\n")
    assert engine.requests == []


@pytest.mark.fault(26)
def test_fault_26_names_are_logged_and_keys_nowhere(upstreams: Callable[..., Upstream], gateways: Callable[..., Gateway]) -> None:
    """Whatever is asked, and wherever somebody puts a key by mistake: the log has the name alone, Docker and the engine nothing."""
    engine, page = upstreams(), upstreams()
    gateway = gateways(f"{engine.place} 127.0.0.1:1", GATEWAY_PAGE=page.place).started()
    key = KEYS["alice"]
    statuses = [gateway.chat({"chunks": 2}).status, gateway.ask("GET /v1/models", key + "x").status]
    targets = (
        f"/v1/models?api_key={key}",
        f"/v1/{key}",
        f"/{key}",
        f"/?key={key}",
        f"/v1/models/{key}",
        f"https://{key}@localhost/v1/models",
    )
    statuses += [gateway.ask(f"GET {target}", key).status for target in targets]
    gateway.raw(f"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nAuthorization : Bearer {key}\r\n\r\n".encode())
    gateway.raw(f"GET /v1/models HTTP/1.1\r\nHost: {key}\r\nBroken {key}\r\n\r\n".encode())
    gateway.raw(f"GET /{key}".encode() + b"\r\n\r\n")
    gateway.ask("POST /v1/chat/completions", key, b"x", Content_Length=str(10**9))
    engine.stop()
    page.stop()
    statuses += [gateway.chat({}).status, gateway.ask(f"GET /page/{key}?{key}", key).status]
    container = gateway.container
    container.reload()
    seen = gateway.logs + json.dumps([container.attrs, container.top(), container.image.history()]) + "".join(engine.headers + page.headers)

    assert statuses[:2] == [200, 401]
    assert statuses[-2:] == [503, 503]
    assert "alice" in {row["key"] for row in gateway.access()}
    assert [value for value in KEYS.values() if value in seen or value[6:] in seen] == []
    assert "Authorization" not in "".join(engine.headers + page.headers)


def tricks() -> list[bytes]:
    """Known ways to spell a path so that two programs read it differently."""
    found = []
    for path in (*UNSERVED, "/v1/models", "/v1/chat/completions"):
        bare = path.lstrip("/")
        spellings = (
            f"//{bare}", f"///{bare}", f"/./{bare}", f"/x/../{bare}", f"/%2e/{bare}", f"/x/%2e%2e/{bare}", f"/%2f{bare}", f"/%2F/{bare}", f"{path}/",
            f"{path}//", f"{path}/.", f"{path}/..", f"{path};x", f"{path}%00", f"{path}%20", f"{path}%0a", f"{path}%09", f"{path}#x", f"{path}%23", f"{path}?x=1",
            f"{path}%3fx", f"/v1/models/..{path}", f"/v1/models/%2e%2e{path}", f"/v1/models%2f..{path}", f"/v1/chat/completions/../..{path}",
            f"/v1/models;/..{path}", f"/v1/models?{path}", f"/v1/models#{path}", f"/v1/models%0d%0aGET%20{path}", f"/health/..{path}", f"/health{path}",
            f"\\{bare}", f"/\\{bare}", f"/%5c{bare}", f"/..%5c{bare}", f"/{bare}".upper(), f"/{bare}".title(), "/" + "".join(f"%{ord(c):02x}" for c in bare),
            "/" + "".join(f"%25{ord(c):02x}" for c in bare), f"http://127.0.0.1{path}", f"https://localhost{path}", f"http://localhost@127.0.0.1{path}",
            f"//127.0.0.1{path}", bare, f"*{path}", f"/%c0%ae/{bare}", f"/%u002e/{bare}", f"/{bare}\xa0", f"\t{path}", f"/v1/models/{bare}", f"/V1/{bare}",
        )  # fmt: skip
        found += [
            f"{method} {spelling} HTTP/1.1".encode("latin-1") for spelling, method in zip(spellings, itertools.cycle(("GET", "POST")))
        ]
        found += [
            f"{method} {path} HTTP/1.1".encode()
            for method in ("PUT", "DELETE", "PATCH", "TRACE", "CONNECT", "OPTIONS", "HEAD", "PROPFIND", "get", "G")
        ]
    found += [
        b"GET  /v1/models HTTP/1.1",
        b"GET /v1/models  HTTP/1.1",
        b"GET\t/v1/models\tHTTP/1.1",
        b"GET /v1/models HTTP/1.2",
        b"GET /v1/models HTTP/0.9",
    ]
    return [line for line in found if line.decode("latin-1") not in SERVED]


def made_up(count: int) -> list[bytes]:
    """Paths of the engines put together from pieces and then spoiled, always the same ones."""
    chance = random.Random(23)
    pieces = [
        "v1",
        "models",
        "chat",
        "completions",
        "load",
        "metrics",
        "tokenize",
        "..",
        ".",
        "",
        "%2e",
        "%2f",
        "%5c",
        "V1",
        "%00",
        "health",
        "x",
        "static",
    ]
    found: list[bytes] = []
    while len(found) < count:
        path = "/" + chance.choice(["/", "/", "//", "\\", "%2f"]).join(chance.choices(pieces, k=chance.randint(1, 6)))
        for _ in range(chance.randint(0, 2)):
            place = chance.randrange(len(path))
            spoiled = chance.choice([f"%{ord(path[place]):02X}", path[place].swapcase(), "", "%", chr(chance.randint(33, 255)), ";", "?"])
            path = path[:place] + spoiled + path[place + 1 :]
        method = chance.choice(["GET", "POST", "POST", "PUT", "OPTIONS"])
        line = f"{method} {path} HTTP/1.{chance.randint(0, 1)}".encode("latin-1")
        if line.decode("latin-1").replace("HTTP/1.0", "HTTP/1.1") not in SERVED:
            found.append(line)
    return found


@pytest.mark.fault(23)
@pytest.mark.parametrize("with_page", [True, False], ids=["with page", "without page"])
def test_fault_23_nothing_else_reaches_the_engine(
    upstreams: Callable[..., Upstream], gateways: Callable[..., Gateway], with_page: bool
) -> None:
    """More than 2,000 spellings, each with a right key: the engine sees none, the page none that leads to a path of the engine's API."""
    engine, page = upstreams(), upstreams()
    gateway = gateways(engine.place, **({"GATEWAY_PAGE": page.place} if with_page else {})).started()
    rest = f"\r\nHost: localhost\r\nAuthorization: Bearer {KEYS['alice']}\r\nX-Original-URL: /load\r\nX-Rewrite-URL: /load\r\n".encode()
    lines = [*tricks(), *made_up(300)] if with_page else random.Random(1).sample(tricks(), 500)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda line: gateway.raw(line + rest + b"Connection: close\r\n\r\n"), lines))
    statuses = [int(answer.split()[1]) if answer.startswith(b"HTTP/") else 0 for answer in answers]

    assert len(set(lines)) > (2000 if with_page else 400)
    assert engine.requests == []
    assert gateway.ask("GET /v1/models", KEYS["alice"]).status == 200  # the recorder records
    assert engine.requests == ["GET /v1/models HTTP/1.1"]
    if with_page:
        reached = [urllib.parse.unquote(line.split()[1]).lower() for line in page.requests]
        assert len(reached) > 100
        assert [path for path in reached if path == "/v1" or path.startswith(("//", "/v1/", "/v2/"))] == []
        assert statuses.count(200) == len(page.requests)
    else:
        assert page.requests == []
        assert set(statuses) <= {400, 404, 405, 0, 204} | {501}
        assert [line for line, status in zip(lines, statuses, strict=True) if status == 204 and not line.startswith(b"OPTIONS /v1/")] == []


@pytest.mark.fault(23)
def test_fault_23_no_request_hides_in_another(upstreams: Callable[..., Upstream], gateways: Callable[..., Gateway]) -> None:
    """Two lengths, chunks with more behind them, pipelines, broken line ends: the engine sees allowed requests or nothing."""
    engine = upstreams()
    gateway = gateways(engine.place).started()
    key = f"Authorization: Bearer {KEYS['alice']}\r\n"
    start = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n{key}"
    hidden = f"GET /load HTTP/1.1\r\nHost: x\r\n{key}Connection: close\r\n\r\n"
    for request in (
        f"{start}Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{hidden}",
        f"{start}Transfer-Encoding: chunked\r\nContent-Length: {len(hidden) + 5}\r\n\r\n0\r\n\r\n{hidden}",
        f"{start}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n{hidden}",
        f"{start}Transfer-Encoding:\x0bchunked\r\nContent-Length: 2\r\n\r\n{{}}{hidden}",
        f"{start}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n{hidden}",
        f"{start}Content-Length: 2\r\nContent-Length: {len(hidden) + 2}\r\n\r\n{{}}{hidden}",
        f"{start}Content-Length: +2\r\n\r\n{{}}{hidden}",
        f"{start}Content-Length: 2\r\n\r\n{{}}{hidden}",
        f"{start}Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\nContent-Length: 2\r\n\r\n{{}}{hidden}",
        f"{start}X: a\rGET /load HTTP/1.1\r\nContent-Length: 2\r\n\r\n{{}}{hidden}",
        f"{start}X: a\n\nGET /load HTTP/1.1\nHost: x\n{key}\n",
        f"GET /v1/models HTTP/1.1\r\nHost: x\r\n{key}Content-Length: {len(hidden)}\r\n\r\n{hidden}{hidden}",
    ):  # fmt: skip
        gateway.raw(request.encode("latin-1"), 2)

    assert engine.requests
    assert set(engine.requests) <= SERVED


def arrivals(gateway: Gateway, body: dict[str, Any]) -> list[float]:
    """When each chunk of a streamed chat came."""
    text = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEYS['alice']}\r\nContent-Length: {len(text)}\r\n\r\n"
    times, rest = [], b""
    with gateway.connect() as line:
        line.settimeout(60)
        line.sendall(head.encode() + text)
        while not rest.endswith(b"\r\n0\r\n\r\n"):
            part = line.recv(65536)
            assert part, f"cut after {len(times)} chunks"
            times += [time.monotonic()] * part.count(b"data: ")
            rest = (rest + part)[-64:]
    return times


def widest(times: list[float]) -> float:
    return max(after - before for before, after in itertools.pairwise(times))


@pytest.mark.fault(41)
@pytest.mark.parametrize(("chunks", "gap"), [(15, 0.2), pytest.param(302, 1.0, marks=[pytest.mark.slow, pytest.mark.timeout(400)])])
def test_fault_41_chunks_come_as_they_leave(
    upstreams: Callable[..., Upstream], gateways: Callable[..., Gateway], chunks: int, gap: float
) -> None:
    """Every chunk of a stream arrives, and no pause between two is half as long again as the longest at the source."""
    engine = upstreams()
    gateway = gateways(engine.place).started()
    times = arrivals(gateway, {"chunks": chunks, "gap": gap})
    print(f"{chunks} chunks in {times[-1] - times[0]:.1f} s: widest gap {widest(times):.3f} s, at the source {widest(engine.sent):.3f} s")

    assert len(times) == chunks
    assert widest(times) < 1.5 * widest(engine.sent)


def test_who_leaves_ends_the_answer(upstreams: Callable[..., Upstream], gateways: Callable[..., Gateway]) -> None:
    """A client that hangs up in mid-stream: the engine is told, and computes no further."""
    engine = upstreams()
    gateway = gateways(engine.place).started()
    with gateway.connect() as line:
        line.sendall(
            f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEYS['bob']}\r\nContent-Length: 30\r\n\r\n".encode()
            + b'{"chunks": 1000, "gap": 0.050}'
        )
        assert line.recv(10)
    deadline = time.monotonic() + 10
    while not engine.cut:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_limits_are_each_keys_own(upstreams: Callable[..., Upstream], gateways: Callable[..., Gateway]) -> None:
    """More at once, or more a second, than a key may: 429 with Retry-After; another key goes on, and so does the same one later."""
    engine = upstreams()
    gateway = gateways(engine.place, GATEWAY_KEY_STREAMS="2", GATEWAY_KEY_RATE="5").started()
    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(gateway.chat, {"chunks": 50, "gap": 0.1}) for _ in range(2)]
        while len(engine.requests) < 2:
            time.sleep(0.02)
        third, other = gateway.chat({}), gateway.chat({}, "bob")
    assert (third.status, third.header("Retry-After"), json.loads(third.body)["error"]["type"]) == (429, "5", "rate_limit_error")
    assert other.status == 200
    assert [answer.result().body.count("data: ") for answer in running] == [50, 50]
    assert gateway.chat({}).status == 200

    answers = [gateway.ask("GET /v1/models", KEYS["alice"]) for _ in range(40)]
    refused = [answer for answer in answers if answer.status == 429]
    assert {answer.status for answer in answers} == {200, 429}
    assert {answer.header("Retry-After") for answer in refused} == {"1"}
    assert gateway.ask("GET /v1/models", KEYS["bob"]).status == 200
    assert len([line for line in engine.requests if line.startswith("GET")]) == 40 - len(refused) + 1


def test_a_request_that_is_too_large_is_refused(upstreams: Callable[..., Upstream], gateways: Callable[..., Gateway]) -> None:
    """Over the limit: 413, announced or not, and the engine sees nothing; just under it the engine gets all of it."""
    engine = upstreams()
    gateway = gateways(engine.place, GATEWAY_BODY_MIB="1").started()
    large = b" " * (2**20 + 1)
    start = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {KEYS['alice']}\r\n"
    chunked = gateway.raw(start.encode() + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(large), large))

    assert gateway.ask("POST /v1/completions", KEYS["alice"], large).status == 413
    assert chunked.split()[1] == b"413"
    assert engine.requests == []
    assert gateway.ask("POST /v1/completions", KEYS["alice"], large[1:]).status == 200
    assert "Content-Length: 1048576" in engine.headers[0]


def test_an_engine_that_loads_or_drains(upstreams: Callable[..., Upstream], gateways: Callable[..., Gateway]) -> None:
    """Not there yet, or answering 503 itself: 503 with Retry-After, and live all the same; its other errors pass as they are."""
    engine = upstreams()
    place = engine.place
    engine.stop()
    gateway = gateways(place).started()
    loading = gateway.chat({})
    engine = upstreams(int(place.split(":")[1]))
    draining, unknown = gateway.chat({"status": 503}), gateway.chat({"status": 404})
    assert draining.head.lower().count("retry-after") == 1  # a client would join two into a word that is no number

    assert (loading.status, loading.header("Retry-After"), json.loads(loading.body)["error"]["type"]) == (503, "10", "server_error")
    assert (draining.status, draining.header("Retry-After"), draining.body) == (503, "10", "engine")
    assert (unknown.status, unknown.header("Retry-After"), unknown.body) == (404, "", "engine")
    assert gateway.ask("GET /health").status == 200


def test_replicas_stand_in_for_each_other(upstreams: Callable[..., Upstream], gateways: Callable[..., Gateway]) -> None:
    """Of three replicas one is gone and one drains: every request is answered by the third; a stream in mid-air is cut, not repeated."""
    gone, draining, good = upstreams(), upstreams(), upstreams()
    draining.always = 503
    gateway = gateways(f"{gone.place} {draining.place} {good.place}").started()
    gone.stop()
    answers = [gateway.chat({"chunks": 2}) for _ in range(12)]

    assert [answer.status for answer in answers] == [200] * 12
    assert len(good.requests) == 12
    assert len(draining.requests) < 12  # left alone after two failures

    draining.always = 0
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(gateway.chat, {"chunks": 1000, "gap": 0.05})
        while len(good.sent) < 12 * 2 + 3:
            time.sleep(0.02)
        good.stop()
        cut = running.result()
    assert cut.status == 200
    assert not cut.body.endswith("0\r\n\r\n")
    assert len(good.requests) == 13


def test_load_goes_to_the_least_busy(upstreams: Callable[..., Upstream], gateways: Callable[..., Gateway]) -> None:
    """Ten long streams at once: five for each of two replicas."""
    engines = upstreams(), upstreams()
    gateway = gateways(" ".join(engine.place for engine in engines)).started()
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda _: gateway.chat({"chunks": 10, "gap": 0.3}), range(10)))

    assert [answer.body.count("data: ") for answer in answers] == [10] * 10
    assert [len(engine.requests) for engine in engines] == [5, 5]


def test_addresses_are_looked_up_again(upstreams: Callable[..., Upstream], gateways: Callable[..., Gateway]) -> None:
    """A name that is not known yet, then is, then moves: requests follow within seconds, and nothing is restarted."""
    first = upstreams(0, "127.0.0.2")
    port = int(first.place.split(":")[1])
    second = upstreams(port, "127.0.0.3")
    gateway = gateways(f"engine.test:{port}").started()
    hosts = Path(gateway.container.attrs["HostsPath"])
    before = hosts.read_text()

    assert gateway.chat({}).status == 503
    for count, (address, engine) in enumerate((("127.0.0.2", first), ("127.0.0.3", second)), 1):
        hosts.write_text(f"{before}{address} engine.test\n")
        gateway.wait_for("settings changed", count)
        wait_until(lambda server=engine: gateway.chat({}).status == 200 and server.requests)


def wait_until(holds: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_keys_change_while_streams_run(upstreams: Callable[..., Upstream], gateways: Callable[..., Gateway]) -> None:
    """A changed file of keys holds at once on SIGHUP; the stream of a key that went ends whole; a broken file changes nothing."""
    engine = upstreams()
    gateway = gateways(engine.place).started()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(gateway.chat, {"chunks": 80, "gap": 0.1})
        while not engine.sent:
            time.sleep(0.02)
        gateway.write_keys({"bob": KEYS["bob"], "carol": "carol-key-canary-0123456789"})
        gateway.container.kill("HUP")
        gateway.wait_for("settings changed")
        wait_until(lambda: gateway.ask("GET /v1/models", "carol-key-canary-0123456789").status == 200)
        wait_until(lambda: gateway.ask("GET /v1/models", KEYS["alice"]).status == 401)
        assert not running.done()
        assert running.result().body.count("data: ") == 80

    gateway.write_keys({"dave": "short"})
    gateway.container.kill("HUP")
    gateway.wait_for("/secrets/keys, line 2: a key is 20 to 200")
    assert gateway.ask("GET /v1/models", KEYS["bob"]).status == 200


def test_stopping_waits_for_streams(upstreams: Callable[..., Upstream], gateways: Callable[..., Gateway]) -> None:
    """SIGTERM: what runs ends whole, nothing new is taken, exit code 0; at the deadline what still runs is cut."""
    engine = upstreams()
    gateway = gateways(engine.place).started()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(gateway.chat, {"chunks": 20, "gap": 0.1})
        while not engine.sent:
            time.sleep(0.02)
        gateway.container.kill("TERM")
        time.sleep(0.5)
        with pytest.raises(OSError, match="refused"):
            gateway.chat({})
        assert running.result().body.endswith("0\r\n\r\n")
    assert gateway.container.wait(timeout=10)["StatusCode"] == 0

    gateway = gateways(engine.place, GATEWAY_DRAIN_SECONDS="1").started()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(gateway.chat, {"chunks": 1000, "gap": 0.1})
        wait_until(lambda: len(engine.requests) == 2)
        gateway.container.kill("TERM")
        assert gateway.container.wait(timeout=10)["StatusCode"] == 0
        assert not running.result().body.endswith("0\r\n\r\n")


def fingerprint(gateway: Gateway) -> str:
    """Of the certificate that it shows, as OpenSSL writes it."""
    with gateway.connect() as line:
        shown = line.getpeercert(binary_form=True) or b""
    return ":".join(re.findall("..", hashlib.sha256(shown).hexdigest().upper()))


def test_certificate_and_key_are_made_once(upstreams: Callable[..., Upstream], gateways: Callable[..., Gateway], tmp_path: Path) -> None:
    """Where none is given the log says so, with the fingerprint and the way to the key, never the key; both survive a restart."""
    engine = upstreams()
    gateway = gateways(engine.place, None, GATEWAY_NAMES="localhost gateway.test 127.0.0.1").started()
    shown, log = fingerprint(gateway), gateway.logs
    _, kept = containers.execute(gateway.container, "cat", "/data/keys")
    name, _, key = kept.strip().partition(":")
    trusted = tmp_path / "trusted.pem"
    trusted.write_text(ssl.get_server_certificate(("127.0.0.1", gateway.port)))
    context = ssl.create_default_context(cafile=trusted)
    for host in ("localhost", "gateway.test", "127.0.0.1"):  # a client that was told to trust it takes it by any of its names
        with socket.create_connection(("127.0.0.1", gateway.port)) as plain, context.wrap_socket(plain, server_hostname=host):
            pass

    assert f"fingerprint: {shown}" in log
    assert "made here, signed by itself" in log
    assert "docker compose exec SERVICE cat /data/keys" in log
    assert name == "default"
    assert len(key) > 40
    assert key not in log
    assert gateway.ask("GET /v1/models", key).status == 200
    gateway.container.restart()
    gateway.started()
    assert fingerprint(gateway) == shown
    assert gateway.ask("GET /v1/models", key).status == 200
    assert gateway.logs.count("made one key") == 1
    _, modes = containers.execute(gateway.container, "sh", "-c", "stat -c %a /data/*")
    assert set(modes.split()) == {"660"}, "another user id of the group may take the volume over"
    assert key not in gateway.logs


def test_a_certificate_of_ones_own(upstreams: Callable[..., Upstream], gateways: Callable[..., Gateway], tmp_path: Path) -> None:
    """The one that is given is shown; replaced and told by SIGHUP, the new one is."""
    engine = upstreams()
    own_certificate(tmp_path)
    files = {"GATEWAY_CERTIFICATE_FILE": "/secrets/own.pem", "GATEWAY_CERTIFICATE_KEY_FILE": "/secrets/own-key.pem"}
    gateway = gateways(engine.place, **files).started()
    first = fingerprint(gateway)
    assert f"fingerprint: {first}" in gateway.logs
    assert "certificate /secrets/own.pem" in gateway.logs

    own_certificate(tmp_path)
    gateway.container.kill("HUP")
    gateway.wait_for("fingerprint", 2)
    wait_until(lambda: fingerprint(gateway) != first)
    assert f"fingerprint: {fingerprint(gateway)}" in gateway.logs


def own_certificate(folder: Path) -> None:
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "3", "-subj", "/CN=mine", "-keyout", folder / "own-key.pem", "-out", folder / "own.pem"],
        check=True, capture_output=True,
    )  # fmt: skip
    for file in ("own.pem", "own-key.pem"):
        (folder / file).chmod(0o644)


@pytest.mark.fault(27)
@pytest.mark.parametrize(
    ("settings", "prepare", "message"),
    [
        (
            {},
            lambda folder: (folder / "keys").chmod(0o600),
            "user 12345 may not read /secrets/keys. On the machine that has it, type: chmod 644",
        ),
        ({}, lambda folder: (folder / "keys").write_text("# none\n"), "/secrets/keys has no key. Add one: echo NAME:"),
        ({}, lambda folder: (folder / "keys").unlink(), "/secrets/keys cannot be read: No such file"),
        ({"GATEWAY_KEY_STREAM": "1"}, lambda _: None, "GATEWAY_KEY_STREAM is no setting. Did you mean GATEWAY_KEY_STREAMS?"),
        ({"GATEWAY_BODY_MIB": "all"}, lambda _: None, "GATEWAY_BODY_MIB is 'all': set it to a whole number"),
        ({"GATEWAY_PAGE": "a;b"}, lambda _: None, "GATEWAY_PAGE holds 'a;b': write host:port"),
        (
            {"GATEWAY_CERTIFICATE_FILE": "/secrets/keys"},
            lambda _: None,
            "set both GATEWAY_CERTIFICATE_FILE and GATEWAY_CERTIFICATE_KEY_FILE",
        ),
        (
            {"GATEWAY_CERTIFICATE_FILE": "/secrets/keys", "GATEWAY_CERTIFICATE_KEY_FILE": "/secrets/keys"},
            lambda _: None,
            "/secrets/keys holds no certificate in PEM form",
        ),
    ],
)
def test_fault_27_what_it_refuses(
    gateways: Callable[..., Gateway], tmp_path: Path, settings: dict[str, str], prepare: Callable[[Path], Any], message: str
) -> None:
    """A secret that cannot be read and settings that cannot be: exit code 78, a line with what to type, no traceback, no key."""
    (tmp_path / "keys").write_text(f"alice:{KEYS['alice']}\n")
    tmp_path.chmod(0o755)
    prepare(tmp_path)
    gateway = gateways("127.0.0.1:1", None, **{"GATEWAY_KEYS_FILE": "/secrets/keys", **settings})
    assert gateway.container.wait(timeout=15)["StatusCode"] == 78
    assert message in gateway.logs
    assert "Traceback" not in gateway.logs
    assert [key for key in KEYS.values() if key in gateway.logs] == []


def test_the_page_is_behind_the_same_door(upstreams: Callable[..., Upstream], gateways: Callable[..., Gateway]) -> None:
    """Pages need no key, web sockets pass, and scripts of other sites get 403; the page never sees where they came from."""
    engine, page = upstreams(), upstreams()
    gateway = gateways(engine.place, GATEWAY_PAGE=page.place).started()
    home = f"https://localhost:{gateway.port}"
    with gateway.connect() as line:
        line.sendall(
            f"GET /ws/socket.io/?EIO=4 HTTP/1.1\r\nHost: localhost:{gateway.port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Origin: {home}\r\n\r\n".encode()
        )
        switched = line.recv(1000)
        line.sendall(b"ping")
        echoed = line.recv(1000)
    assert switched.startswith(b"HTTP/1.1 101")
    assert echoed.endswith(b"ping")
    assert gateway.ask("GET /").status == 200
    assert gateway.ask("POST /api/v1/auths/signin", body={}, Origin=home).status == 200
    assert gateway.ask("POST /api/v1/auths/signin", body={}, Origin="https://evil.example").status == 403
    assert gateway.ask("POST /api/v1/auths/signin", body={}, Origin="null").status == 403
    assert gateway.ask("GET /api/x", "a.page.token").status == 200
    assert engine.requests == []
    assert [line for line in page.requests if "signin" in line] == ["POST /api/v1/auths/signin HTTP/1.1"]
    assert "Origin:" not in "".join(page.headers)
    assert "Authorization: Bearer a.page.token" in page.headers[-1]
    assert "X-Forwarded-Proto: https" in page.headers[-1]


def test_other_origins_are_those_that_are_set(upstreams: Callable[..., Upstream], gateways: Callable[..., Gateway]) -> None:
    """CORS is the gateway's alone: an origin that is set may use the API, with a key; the engine's own permissive header never passes."""
    engine = upstreams()
    long = f"https://{'a' * 60}.{'b' * 60}.example:8443"
    gateway = gateways(engine.place, GATEWAY_ORIGINS=f"https://tools.example {long}").started()
    preflight = {"Access_Control_Request_Method": "POST", "Access_Control_Request_Headers": "authorization"}
    allowed = gateway.ask("OPTIONS /v1/chat/completions", Origin="https://tools.example", **preflight)
    refused = gateway.ask("OPTIONS /v1/chat/completions", Origin="https://evil.example", **preflight)
    answered = gateway.ask("GET /v1/models", KEYS["alice"], Origin="https://tools.example")
    other = gateway.ask("GET /v1/models", KEYS["alice"], Origin="https://evil.example")

    assert allowed.header("Access-Control-Allow-Origin") == answered.header("Access-Control-Allow-Origin") == "https://tools.example"
    assert "Authorization" in allowed.header("Access-Control-Allow-Headers")
    assert gateway.ask("OPTIONS /v1/models", Origin=long, **preflight).header("Access-Control-Allow-Origin") == long
    assert refused.header("Access-Control-Allow-Origin") == other.header("Access-Control-Allow-Origin") == ""
    assert engine.requests == ["GET /v1/models HTTP/1.1"] * 2


def test_old_tls_is_refused(gateways: Callable[..., Gateway]) -> None:
    """TLS 1.2 and 1.3 answer; plain HTTP gets nothing but a hint."""
    gateway = gateways("127.0.0.1:1").started()
    with gateway.connect() as line:
        assert line.version() == "TLSv1.3"
    assert BLIND.minimum_version >= ssl.TLSVersion.TLSv1_2
    told = subprocess.run(
        ["openssl", "s_client", "-connect", f"127.0.0.1:{gateway.port}", "-tls1_1"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    assert told.returncode != 0


def test_keys_are_asked_for_at_the_same_time(upstreams: Callable[..., Upstream], gateways: Callable[..., Gateway]) -> None:
    """A hundred streams at once from one key arrive whole."""
    engine = upstreams()
    gateway = gateways(engine.place, GATEWAY_KEY_STREAMS="200").started()
    whole: list[bool] = []

    def ask() -> None:
        whole.append(gateway.chat({"chunks": 10, "gap": 0.05}).body.count("data: ") == 10)

    threads = [threading.Thread(target=ask) for _ in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert whole == [True] * 100

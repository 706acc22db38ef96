"""`engineroom smoke` against answers that are wrong: a server on this machine that says what each test wants."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import NoReturn

import pytest
from click.testing import CliRunner

from engineroom import smoke
from engineroom.api import Api, key_of
from engineroom.cli import cli
from engineroom.errors import BadRequest, EngineRoomError, ServiceUnavailable

MODELS = json.dumps({"data": [{"id": "r1"}]})
DONE = "data: [DONE]\n\n"


def delta(**words: str) -> str:
    """One event of a stream."""
    return f"data: {json.dumps({'choices': [{'delta': words, 'finish_reason': None}]})}\n\n"


@contextmanager
def api(answer: str, *, models: str = MODELS, status: int = 200) -> Iterator[Api]:
    """An API that lists these models and gives this answer."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply(200, models)

        def do_POST(self) -> None:
            self.reply(status, answer)

        def reply(self, code: int, text: str) -> None:
            self.send_response(code)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield Api(f"http://127.0.0.1:{server.server_address[1]}/v1")
        server.shutdown()


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
def test_a_right_answer(field: str) -> None:
    """The thought is read under either of its names, apart from the answer."""
    with api(delta(**{field: "Let me see."}) + delta(content="623") + DONE) as right:
        found = smoke.ask(right, thinks=True)

    assert (found.model, found.thought, found.answer, found.tokens) == ("r1", "Let me see.", "623", 2)
    assert found.rate
    assert found.ttft > 0


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (delta(content="<think>Let me see.</think>623") + DONE, "--reasoning-parser"),
        (delta(content="623") + DONE, "no thought came"),
        (DONE, "no token came out"),
        (delta(reasoning="Let me") + delta(content="6"), "without [DONE]"),
        (delta(reasoning="Let me") + 'data: {"error": {"message": "EngineDeadError"}}\n\n', "EngineDeadError"),
        (delta(reasoning="Let me") + 'data: {"choices": [\n\n', "broke off"),
    ],
)
def test_a_wrong_answer(answer: str, message: str) -> None:
    """Each ends with 70 and says what is wrong."""
    with api(answer) as wrong, pytest.raises(EngineRoomError, match=message.replace("[", r"\[")) as caught:
        smoke.ask(wrong, thinks=True)

    assert caught.value.exit_code == 70


def test_a_stream_that_is_cut_inside_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the library says of it is no traceback."""

    def cut(*_: object) -> NoReturn:
        raise http.client.IncompleteRead(b"")

    with api(DONE) as right:
        monkeypatch.setattr(http.client.HTTPResponse, "readline", cut)
        monkeypatch.setattr(smoke, "model_row", lambda *_: {"id": "r1"})
        with pytest.raises(EngineRoomError, match="broke off|cannot be reached"):
            smoke.ask(right)


def test_an_address_that_is_none() -> None:
    """It is named."""
    with pytest.raises(ServiceUnavailable, match="localhost:abc"):
        smoke.ask(Api("http://localhost:abc/v1"))


@pytest.mark.parametrize(
    ("content", "key"), [(b"sk-1\r\nmore\xff\n", "sk-1"), (b"", ""), (b"\xff\xfes\0k\0", None), ("clé".encode(), None)]
)
def test_the_file_of_a_key(tmp_path: Path, content: bytes, key: str | None) -> None:
    """The first line is the key; one that no request can carry is refused by its file's name, and not shown."""
    file = tmp_path / "key"
    file.write_bytes(content)

    if key is not None:
        assert key_of(file) == key
        return
    for command in ("smoke", "bench"):
        found = CliRunner().invoke(cli, [command, "--url", "http://127.0.0.1:1/v1", "--key-file", str(file)])
        assert isinstance(found.exception, BadRequest)
        assert f"{file} holds no key" in str(found.exception)


@pytest.mark.parametrize(("status", "code"), [(503, 69), (502, 69), (401, 70), (404, 70), (500, 70)])
def test_a_refusal(status: int, code: int) -> None:
    """A server that says to come back is unavailable; any other refusal is a failure. Both show what it said."""
    with api("no such key", status=status) as refusing, pytest.raises(EngineRoomError, match=f"answers {status}: no such key") as caught:
        smoke.ask(refusing)

    assert caught.value.exit_code == code


@pytest.mark.parametrize("models", ['{"data": []}', "{}"])
def test_no_model(models: str) -> None:
    """A server that lists nothing is not ready to be used."""
    with api("", models=models) as empty, pytest.raises(EngineRoomError, match="lists nothing"):
        smoke.ask(empty)


@pytest.mark.parametrize("models", ["<html>", "[1]", '{"data": [1]}'])
def test_no_api(models: str) -> None:
    """Whatever answers there is no OpenAI-compatible API, and that is said."""
    with api("", models=models) as other, pytest.raises(EngineRoomError, match="no OpenAI-compatible API"):
        smoke.ask(other)


def test_another_model() -> None:
    """A model that is not listed is named, and those that are."""
    with api(DONE) as right, pytest.raises(EngineRoomError, match="lists r1, and not r2"):
        smoke.ask(right, "r2")


def test_nothing_there() -> None:
    """Nothing listens: unavailable."""
    with pytest.raises(ServiceUnavailable, match="cannot be reached"):
        smoke.ask(Api("http://127.0.0.1:1/v1"))

"""`engineroom smoke`: one streamed answer through the API, and whether the thought came apart from it."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from engineroom import running
from engineroom.api import Api, request
from engineroom.api import model as model_row
from engineroom.catalog import Catalog
from engineroom.errors import BadRequest, EngineRoomError
from engineroom.host import Host

QUESTION = "What is 348 + 275?"
MOST_TOKENS = 1024  # enough for a thought to begin and, with most models, to end


class Answer(NamedTuple):
    """What came: seconds to the first token, tokens a second after it (None when they came at once), texts, and how it ended."""

    model: str
    ttft: float
    rate: float | None
    tokens: int
    thought: str
    answer: str
    finish: str


def of_stack(catalog: Catalog, host: Host, stack: str) -> Api:
    """The API of a stack that runs here. Raises UnknownName, CannotBuild, or ServiceUnavailable when it does not run."""
    where = running.address(running.engine(catalog, host, stack))
    if not where:
        raise BadRequest(f"{stack}'s API is not published on this machine. Name its gateway: --url https://…/v1")
    return Api(f"http://{where}/v1")


def ask(api: Api, model: str = "", *, thinks: bool = False) -> Answer:
    """Ask one question and read the answer as it comes. `thinks`: the model is one that does, so a thought must come.

    Raises ServiceUnavailable when nothing answers or it is not ready, EngineRoomError when what came is not right.
    """
    model = model_row(api, model)["id"]
    body = {
        "model": model,
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": MOST_TOKENS,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    began, first, last, pieces, tokens, finish, thought, answer = time.monotonic(), 0.0, 0.0, 0, 0, "", "", ""
    for event in _events(api, body):
        tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
        for choice in event.get("choices") or []:
            delta = choice.get("delta") or {}
            more, text = delta.get("reasoning") or delta.get("reasoning_content") or "", delta.get("content") or ""
            if more or text:
                last = time.monotonic()
                first, pieces, thought, answer = first or last, pieces + 1, thought + more, answer + text
            finish = choice.get("finish_reason") or finish
    if not pieces:
        raise EngineRoomError(f"{model} is listed, and no token came out of it.")
    tokens = tokens or pieces
    found = Answer(model, first - began, (tokens - 1) / (last - first) if last > first else None, tokens, thought, answer, finish)
    if "<think>" in answer or "</think>" in answer:
        raise EngineRoomError("The thought stands in the answer: the engine runs without its --reasoning-parser.")
    if thinks and not thought.strip():
        raise EngineRoomError(f"{model} thinks, and no thought came: the engine runs without its --reasoning-parser.")
    return found


def text(api: Api, found: Answer) -> str:
    """The answer for people."""
    speed = f", then {found.rate:.1f} a second" if found.rate else ""
    cut = f", cut at {MOST_TOKENS} tokens" if found.finish == "length" else ""
    return "\n".join(
        (
            f"model    {found.model}, listed by {api.url}",
            f"tokens   {found.tokens}, the first after {found.ttft * 1000:.0f} ms{speed}",
            f"thought  {f'{len(found.thought)} characters, apart from the answer' if found.thought else 'none'}",
            f"answer   {' '.join(found.answer.split())[:200] or '(none)'}{cut}",
        )
    )


def as_json(found: Answer) -> dict[str, Any]:
    """The answer for programs."""
    return found._asdict()


def _events(api: Api, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The events of a streamed answer. Raises EngineRoomError when the stream breaks, or ends without its last word."""
    try:
        with request(api, "/chat/completions", body) as response:
            for line in response:
                data = line.decode("utf-8", "replace").strip().removeprefix("data:").strip()
                if data == "[DONE]":
                    return
                if data.startswith("{"):
                    event = json.loads(data)
                    if event.get("error"):
                        raise EngineRoomError(f"The stream broke off: {str(event['error'])[:300]}")
                    yield event
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise EngineRoomError(f"The stream broke off: {error}") from None
    raise EngineRoomError("The stream ended without [DONE]: something between here and the engine cut it.")

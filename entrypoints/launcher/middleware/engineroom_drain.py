"""Runs inside vLLM's server (`--middleware`): refuses new work with 503 while the launcher drains.

vLLM's own drain answers new requests with 500 and can hang at its deadline (seen on 0.32.0), and older releases have none.
"""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable
from typing import Any

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

STATE = os.environ.get("ENGINEROOM_STATE", "")
BODY = json.dumps({"error": {"message": "This server is stopping and takes no new requests.", "type": "unavailable", "code": 503}}).encode()
START = {
    "type": "http.response.start",
    "status": 503,
    "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(BODY)).encode()), (b"retry-after", b"5")],
}


class Drain:
    """ASGI middleware: asks a one-word file before each request that makes work."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        """Wrap the server's application."""
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 503 during a drain; pass everything else on."""
        if scope["type"] == "http" and scope["method"] == "POST" and draining():
            await send(START)
            await send({"type": "http.response.body", "body": BODY})
        else:
            await self.app(scope, receive, send)


def draining() -> bool:
    """Whether the launcher has written so; a file of one word, read in microseconds."""
    try:
        with open(STATE, "rb") as file:
            return file.read() == b"draining"
    except OSError:
        return False

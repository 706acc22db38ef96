"""The middleware that refuses new work during a drain, as vLLM's server runs it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from launcher.middleware import engineroom_drain


def ask(method: str, state: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What is sent for one request; the wrapped application says `passed on`."""
    monkeypatch.setattr(engineroom_drain, "STATE", str(state))
    sent: list[dict[str, Any]] = []

    async def application(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await send({"type": "passed on"})

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        return {}

    asyncio.run(engineroom_drain.Drain(application)({"type": "http", "method": method}, receive, send))
    return sent


@pytest.mark.fault(7)
def test_fault_07_new_work_is_refused_while_draining(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A POST gets 503 and Retry-After during a drain; questions and other times pass."""
    state = tmp_path / "state"
    assert ask("POST", state, monkeypatch) == [{"type": "passed on"}]
    state.write_text("ready")
    assert ask("POST", state, monkeypatch) == [{"type": "passed on"}]
    state.write_text("draining")
    assert ask("GET", state, monkeypatch) == [{"type": "passed on"}]

    start, body = ask("POST", state, monkeypatch)
    assert start["status"] == 503
    assert (b"retry-after", b"5") in start["headers"]
    assert b"takes no new requests" in body["body"]

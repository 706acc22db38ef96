"""The launcher's own lines, as text and as JSON."""

from __future__ import annotations

import json
import sys
from datetime import datetime
from unittest import mock

import pytest

from launcher import log
from launcher.explain import Log


@pytest.mark.parametrize("form", log.FORMS)
def test_a_line_can_be_read_again(form: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Level and message come back from either form; a message of several lines stays one line of JSON."""
    monkeypatch.setattr(log, "form", form)
    log.write("exit", 'The engine died.\nIts last 1 lines:\n  | {"a"}', "ERROR", code=70)
    first = capsys.readouterr().err.splitlines()[0]
    found = log.read(first)

    assert found
    assert (found.level, found.message.splitlines()[0]) == ("ERROR", "The engine died.")
    if form == "json":
        row = json.loads(first)
        assert list(row) == ["time", "level", "event", "message", "code"]
        assert (found.event, row["code"], row["message"].count("\n")) == ("exit", 70, 2)
        assert datetime.fromisoformat(row["time"]).tzinfo


def test_a_line_is_written_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """In an image nothing is buffered, and the engine writes at the same time."""
    errors = mock.Mock()
    monkeypatch.setattr(sys, "stderr", errors)
    log.write("started", "started   1.0 s")

    errors.write.assert_called_once_with("INFO [launch] started   1.0 s\n")


@pytest.mark.parametrize("line", ["INFO 08-25 [api_server.py:1] x", '{"time": 1}', '{"time": "x', '{"time":[]}', "", "ERROR"])
def test_what_is_not_the_launchers(line: str) -> None:
    """The engine's lines, and JSON that is somebody else's, are not taken for the launcher's."""
    assert log.read(line) is None


def test_a_new_start_in_json_is_seen(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What an earlier life of the container died of is no cause of the present one's end, in either form."""
    monkeypatch.setattr(log, "form", "json")
    log.write("image", "image     cpu: vllm 0.32.0")
    start, died = capsys.readouterr().err, "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."
    before, after = Log(), Log()
    for line in (died, start):
        before.add(line)
    for line in (start, died):
        after.add(line)

    assert before.explanation() is None
    assert after.explanation()

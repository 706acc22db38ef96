"""The launcher's own lines, apart from the engine's output: text for people, or JSON lines for programs."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import NamedTuple, TextIO

FORMS = ("text", "json")
MARK = "[launch]"


class Line(NamedTuple):
    """A line of the launcher's: INFO or ERROR, the part of the launcher's work that it is about, and what it says."""

    level: str
    event: str
    message: str


form = os.environ.get("LAUNCH_LOG")  # until the settings are read, which can fail and say so


def write(event: str, message: str, level: str = "INFO", **fields: object) -> None:
    """Say something on standard error; JSON has the fields as well. A reader that has gone is no reason to end."""
    line = _json(level, event, message, fields) if form == "json" else f"{level} {MARK} {message}"
    try:
        sys.stderr.write(f"{line}\n")  # in one piece: unbuffered, print writes the end of the line apart, and the engine comes between
        sys.stderr.flush()
    except OSError:
        discard(sys.stderr)


def discard(stream: TextIO) -> None:
    """From now on a stream that nobody reads goes nowhere: what it still holds would make Python end with 120, whatever the exit code."""
    with contextlib.suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def read(line: str) -> Line | None:
    """What a line of a log says in either form; None when it is not the launcher's."""
    level, mark, message = (*line.split(" ", 2), "", "")[:3]
    if mark == MARK:
        return Line(level, "", message)
    if not line.startswith('{"time":'):
        return None
    import json

    with contextlib.suppress(ValueError, KeyError, TypeError):
        found = json.loads(line)
        return Line(found["level"], found["event"], found["message"])
    return None


def _json(level: str, event: str, message: str, fields: dict[str, object]) -> str:
    import json
    from datetime import datetime, timezone

    now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")  # noqa: UP017 - the older name is in every Python
    return json.dumps({"time": now, "level": level, "event": event, "message": message, **fields})

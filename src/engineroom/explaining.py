"""Why an engine died, on the host: the launcher's explanations of a log that is piped in."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import IO

from launcher.explain import Log, report

PIECE = 1 << 16  # characters read at once: a line may be longer than the memory


def read(file: IO[str]) -> Log:
    """Read a log of any size."""
    log = Log()
    for line in _lines(file):
        log.add(line)
    return log


def as_text(log: Log) -> str:
    """The explanation with line numbers, or what looks like the cause, or that nothing does."""
    return report(log, numbered=True) or f"Nothing in these {log.number} lines looks like a failure."


def as_json(log: Log) -> str:
    """The same for programs: `name`, `cause` and `fix` are null where the cause is not known, and `clues` are then all there is."""
    known = log.explanation()
    clues = known.more if known else log.clues()
    found = {
        "name": known and known.name,
        "cause": known and known.cause,
        "fix": known and known.fix,
        "evidence": known and known.evidence._asdict(),
        "clues": [clue._asdict() for clue in clues],
        "lines": log.number,
    }
    return json.dumps(found, indent=1)


def _lines(file: IO[str]) -> Iterator[str]:
    """The beginning of each line."""
    complete = True
    while piece := file.readline(PIECE):
        if complete:
            yield piece
        complete = piece.endswith("\n")

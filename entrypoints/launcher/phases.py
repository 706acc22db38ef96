"""What an engine's start spends its time on, by the lines that it prints: phases.toml."""

from __future__ import annotations

import functools
import os
import re
import time
from typing import NamedTuple

from launcher import log

FILE = os.path.join(os.path.dirname(__file__), "phases.toml")
START, OTHER, LAST = "start", "other", "first token"


class Row(NamedTuple):
    """A line that ends a phase, as phases.toml describes it."""

    phase: str
    pattern: re.Pattern[bytes]
    after: tuple[str, ...]


def rows(engine: str) -> list[Row]:
    """The lines of one engine, in the order of a start; none where none are known."""
    import tomllib

    with open(FILE, "rb") as file:
        return [Row(row["phase"], re.compile(row["pattern"].encode()), tuple(row["after"])) for row in tomllib.load(file).get(engine, ())]


class Phases:
    """The clock of one start, begun when the engine is. Times in seconds."""

    def __init__(self, engine: str) -> None:
        """It runs from now on; its table is read when there is a line, after the engine has started."""
        self.engine = engine
        self.began = self.last = time.monotonic()
        self.at = -1  # the row that was seen last
        self.spent: dict[str, float] = {}

    @functools.cached_property
    def rows(self) -> list[Row]:
        """The lines to look for."""
        return rows(self.engine)

    def line(self, line: bytes) -> None:
        """Look for the end of a phase in a line of the engine's output, and say the first of each row."""
        for number in range(max(self.at, 0), len(self.rows)):
            if self.rows[number].pattern.search(line):
                self._end(number)
                return

    def _end(self, number: int) -> None:
        row, before = self.rows[number], self.rows[self.at].phase if self.at >= 0 else START
        phase = row.phase if before in (*row.after, row.phase) else OTHER
        took = self._pass(phase)
        if number != self.at:
            at = self.last - self.began
            log.write("phase", f"phase     {phase} {took:.1f} s, at {at:.0f} s", phase=phase, seconds=round(took, 1), at=round(at, 1))
        self.at = number

    def _pass(self, phase: str) -> float:
        now = time.monotonic()
        took, self.last = now - self.last, now
        self.spent[phase] = self.spent.get(phase, 0.0) + took
        return took

    def ready(self) -> float:
        """The first token has come out: say where the time went, and return the whole of it."""
        self._pass(LAST if self.rows and self.at == len(self.rows) - 1 else OTHER)
        known = {phase: round(seconds, 1) for phase, seconds in dict(self.spent).items() if phase != OTHER}
        shown = {**known, OTHER: round(self.spent.get(OTHER, 0.0), 1)}
        total = round(self.last - self.began, 1)
        text = ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in shown.items() if seconds)
        log.write("started", f"started   {total:.1f} s: {text}", seconds=total, phases=shown)
        return total

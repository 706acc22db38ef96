"""Phases with elapsed time: a live display on a terminal, plain lines elsewhere, every detail in a log file."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

Phase = tuple[str, Callable[[], None]]
QUIET_SECONDS = 20.0  # without a terminal, a sign of life at least so often


class Reporter:
    """Shows which phase runs, for how long, and its newest line of detail."""

    def __init__(self, log: Path) -> None:
        """Details go to `log`, which is started anew."""
        log.parent.mkdir(exist_ok=True)
        self.log = log.open("w", encoding="utf-8", buffering=1)
        self.console = Console(stderr=True, highlight=False)
        self.detail: Callable[[str], None] = lambda _: None

    def say(self, line: str) -> None:
        """One line of detail."""
        if line.strip():
            self.log.write(f"{time.strftime('%H:%M:%S')} {line}\n")
            self.detail(line.strip())

    def run(self, phases: Sequence[Phase]) -> None:
        """Run the phases in order. What a phase raises goes on to the caller."""
        began = time.monotonic()
        for name, work in phases:
            self.log.write(f"== {name}\n")
            start = time.monotonic()
            if self.console.is_terminal:
                self._live(name, work)
            else:
                self._plain(name, work)
            self.console.print(f"{time.monotonic() - began:6.0f} s  [bold]{name}[/] ready ({time.monotonic() - start:.0f} s)")

    def _live(self, name: str, work: Callable[[], None]) -> None:
        columns = (SpinnerColumn(), TimeElapsedColumn(), TextColumn("[bold]{task.description}[/] {task.fields[detail]}"))
        with Progress(*columns, console=self.console, transient=True) as progress:
            task = progress.add_task(name, detail="", total=None)
            room = max(20, self.console.width - len(name) - 16)
            self.detail = lambda line: progress.update(task, detail=f"[dim]{escape(line[:room])}[/]")
            work()

    def _plain(self, name: str, work: Callable[[], None]) -> None:
        spoke = [time.monotonic()]

        def detail(line: str) -> None:
            if time.monotonic() - spoke[0] > QUIET_SECONDS:
                spoke[0] = time.monotonic()
                self.console.print(f"          {name}: {line[:120]}", markup=False)

        self.detail = detail
        work()

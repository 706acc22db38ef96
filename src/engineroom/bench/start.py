"""What `engineroom bench` and its commands do, from their options to what is printed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from rich.console import Console

from engineroom.api import Api, key_of
from engineroom.bench import plot as plots
from engineroom.bench import report, results, scenarios, targets
from engineroom.bench.results import Run
from engineroom.bench.run import measure
from engineroom.errors import CannotRun, EngineRoomError

if TYPE_CHECKING:
    from engineroom.catalog import Catalog
    from engineroom.host import Host

WIDTH = 160  # of tables where there is no terminal
Say = Callable[[str], None]


class Options(NamedTuple):
    """The options of `bench run`: a stack, or the address of an API with what is to be known to ask it."""

    stack: str = ""
    url: str = ""
    model: str = ""
    tokenizer: str = ""
    key_file: Path | None = None
    ca: Path | None = None
    program: str = ""
    names: tuple[str, ...] = ()
    scenarios: Path = scenarios.FILE
    told: Mapping[str, str] = MappingProxyType({})
    out: Path | None = None


def start(checkout: tuple[Catalog, Host] | None, options: Options, folder: Path, say: Say) -> None:
    """Measure and show. Without a checkout, a program makes the load. Raises EngineRoomError; ends with 130 on an interrupt."""
    wanted = scenarios.load(options.scenarios, options.names)
    if checkout and options.stack:
        subject = targets.of_stack(*checkout, options.stack)
    else:
        api = Api(options.url.rstrip("/"), key_of(options.key_file), options.ca)
        subject = targets.of_url(checkout and checkout[0], api, options.model, options.tokenizer, options.program)
    time = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    file = options.out or folder / f"{options.stack or urlsplit(options.url).hostname}-{time}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    run = Run(conditions={**subject.conditions, **options.told})
    try:
        measure(run, wanted, subject, file, say)
    except (EngineRoomError, KeyboardInterrupt) as error:
        _show(run, file, say)
        if isinstance(error, KeyboardInterrupt):
            sys.exit(130)
        raise
    _show(run, file, say)
    lost = [name for name, result in run.results.items() if result.steps and not any(step.completed for step in result.steps)]
    if lost:
        raise EngineRoomError(f"No request was answered: {', '.join(lost)}.")


def compare(old: Path, new: Path, picture: Path | None, say: Say, *, anyway: bool) -> None:
    """Show two runs as ratios, and draw them where that is wanted. Raises BadRequest for a file that is none, CannotRun."""
    before, after = results.read(old), results.read(new)
    shown = report.compare(before, after, anyway=anyway)
    for line in (*(f"not the same: {line}" for line in report.differences(before, after)), *report.changed(before, after)):
        say(line)
    for label, run in _labelled({old: before, new: after}).items():
        for line in report.notes(run):
            say(f"{label}: {line}")
    _console().print(shown)
    if picture:
        plots.draw(_labelled({old: before, new: after}), picture)
        say(str(picture))


def plot(files: tuple[Path, ...], picture: Path) -> Path:
    """Draw runs. Raises BadRequest for a file that is none, CannotRun."""
    plots.draw(_labelled({file: results.read(file) for file in files}), picture)
    return picture


def _labelled(runs: Mapping[Path, Run]) -> dict[str, Run]:
    """The runs by the names of their files, or by their paths where two have the same name."""
    names = {file.stem for file in runs}
    return {file.stem if len(names) == len(runs) else str(file): run for file, run in runs.items()}


def _show(run: Run, file: Path, say: Say) -> None:
    """Table, notes, and where the files are."""
    for line in report.notes(run):
        say(line)
    if not any(result.steps for result in run.results.values()):
        say(str(file))
        return
    _console().print(report.table(run))
    picture = file.with_suffix(".png")
    try:
        plots.draw({file.stem: run}, picture)
    except CannotRun as error:
        say(f"no plot: {error}")
        say(str(file))
    else:
        say(f"{file} and {picture.name}")


def _console() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=WIDTH)

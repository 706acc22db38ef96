"""Results for people: a run's table, and two runs side by side as ratios."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from rich.table import Table

from engineroom.bench.results import Result, Run, Step
from engineroom.errors import CannotRun

# What must be equal, for one figure to be better or worse than another.
SAME = ("engine", "release", "model", "revision", "gpus", "cpu", "nodes", "generator")
WORDS = {"date": "measured", "image_id": "image's ID", "gpus": "GPUs", "cpu": "CPU"}
FIGURES = {"Tokens/s out": "output_tokens_per_second", "TTFT p50, ms": "ttft", "TPOT p50, ms": "tpot"}


def table(run: Run) -> Table:
    """Every measurement of a run; times in milliseconds as p50 / p90 / p99."""
    shown = _table("Scenario", "At once", "Answered", "Tokens/s out", "TTFT, ms: p50/90/99", "TPOT, ms: p50/90/99", "Whole answer, s")
    for name, result in run.results.items():
        for step in result.steps:
            times = (_spread(step.ttft, 1, ".0f"), _spread(step.tpot, 1, ".1f"), _spread(step.latency, 1000, ".1f"))
            shown.add_row(name, str(step.concurrency), _answered(step), f"{step.output_tokens_per_second:,.1f}", *times)
    return shown


def notes(run: Run) -> Iterator[str]:
    """What is to be known of a run, a line each."""
    for name, result in run.results.items():
        if result.note:
            yield f"{name}: {result.note}"
        for step in result.steps:
            for error, count in step.errors.items():
                yield f"{name}, {step.concurrency} at once: {count} x {error}"
    if run.ended:
        yield f"ended early: {run.ended}"


def differences(old: Run, new: Run) -> list[str]:
    """Why two runs cannot be compared: other engine, model or hardware, another scenario under the same name."""
    found = [
        f"{WORDS.get(field, field)}: {_words(before)}, then {_words(after)}"
        for field in SAME
        if (before := old.conditions.get(field)) != (after := new.conditions.get(field))
    ]
    if not (old.conditions.get("stack") and new.conditions.get("stack")):  # served names and machines say little by themselves
        before, after = (run.conditions.get("root") for run in (old, new))
        if before != after:
            found.append(f"what the server calls its model's root: {_words(before)}, then {_words(after)}")
        before, after = (urlsplit(run.conditions.get("url") or "").hostname for run in (old, new))
        if before != after and not (old.conditions.get("gpus") and new.conditions.get("gpus")):
            found.append(f"machine, with GPUs that are not known (--note gpus=… says them): {before}, then {after}")
    for name, result in old.results.items():
        if name in new.results and result.scenario.shape() != (shape := new.results[name].scenario.shape()):
            changed = [f"{field} {was:g}, then {shape[field]:g}" for field, was in result.scenario.shape().items() if was != shape[field]]
            found.append(f"scenario {name}: {', '.join(changed)}")
    return found


def compare(old: Run, new: Run, *, anyway: bool) -> Table:
    """Both as ratios, new ÷ old. Raises CannotRun for runs of different things, unless `anyway`, or without a scenario in common."""
    found = differences(old, new)
    if found and not anyway:
        raise CannotRun("\n  ".join(("These are not runs of the same:", *found)) + "\nTo compare them all the same, add --anyway.")
    pairs = [
        (name, before, after)
        for name, result in old.results.items()
        for before, after in _pairs(result, new.results.get(name))
        if before.completed and after.completed
    ]
    if not pairs:
        raise CannotRun("They have no measured scenario in common.")
    shown = _table("Scenario", "At once", "Answered", *(head for name in FIGURES for head in (name, "new ÷ old")))
    for name, before, after in pairs:
        cells = []
        for field in FIGURES.values():
            was, now = _figure(before, field), _figure(after, field)
            cells += [f"{was:,.1f}, then {now:,.1f}", f"{now / was:.2f}" if was else "-"]
        shown.add_row(name, str(before.concurrency), f"{_answered(before)}, then {_answered(after)}", *cells)
    return shown


def changed(old: Run, new: Run) -> Iterator[str]:
    """What else differs: that may be what is compared."""
    for field in old.conditions.keys() | new.conditions.keys():
        before, after = old.conditions.get(field), new.conditions.get(field)
        if before != after and field not in (*SAME, "date"):
            yield f"{WORDS.get(field, field)}: {_words(before)}\n  then {_words(after)}"
    for name in old.results.keys() ^ new.results.keys():
        yield f"{name}: only in the {'old' if name in old.results else 'new'} one"


def _pairs(old: Result, new: Result | None) -> Iterator[tuple[Step, Step]]:
    """Measurements of the same concurrency."""
    later = {step.concurrency: step for step in new.steps} if new else {}
    return ((step, later[step.concurrency]) for step in old.steps if step.concurrency in later)


def _answered(step: Step) -> str:
    return f"{step.completed} of {step.requests}"


def _figure(step: Step, field: str) -> float:
    value = getattr(step, field)
    return float(value["p50"] if isinstance(value, dict) else value)


def _spread(times: dict[str, float], divisor: float, form: str) -> str:
    return " / ".join(format(times[name] / divisor, form) for name in ("p50", "p90", "p99"))


def _words(value: Any) -> str:
    return ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value or "not known")


def _table(*heads: str) -> Table:
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for head in heads:
        shown.add_column(head, justify="left" if head == "Scenario" else "right", no_wrap=head == "Scenario")
    return shown

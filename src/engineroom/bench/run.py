"""A run: every scenario that fits, each result on disk as soon as it is there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from engineroom.bench.results import Result, Run, Step
from engineroom.bench.scenarios import Scenario, fitted
from engineroom.bench.targets import Subject
from engineroom.errors import EngineRoomError

Say = Callable[[str], None]


def measure(run: Run, scenarios: Mapping[str, Scenario], subject: Subject, file: Path, say: Say) -> None:
    """Measure all scenarios, one after another, into `run` and `file`; an end before the last stands in both.

    Raises what ended it: TryAgain, EngineRoomError, KeyboardInterrupt.
    """
    log = file.with_suffix(".log")
    try:
        for name, wanted in scenarios.items():
            scenario, note = fitted(wanted, subject.conditions.get("context"))
            result = run.results[name] = Result(scenario=scenario or wanted, note=note)
            say(f"{name}: {note or 'begins'}")
            if scenario:
                for step in _steps(result, partial(subject.generator.run, subject.target, scenario, log)):
                    say(
                        f"  {step.concurrency} at once: {step.output_tokens_per_second:,.0f} tokens/s, first token after {step.ttft['p50']:,.0f} ms"
                    )
                    run.write(file)
            run.write(file)
    except (EngineRoomError, KeyboardInterrupt) as error:
        run.ended = str(error) or "interrupted"
        run.results = {name: result for name, result in run.results.items() if result.steps or result.note}
        run.write(file)
        raise


def _steps(result: Result, ask: Callable[[int], Step]) -> Iterator[Step]:
    """One measurement, or one after another with twice the concurrency until that no longer pays; each is in `result` when it comes."""
    scenario, level = result.scenario, result.scenario.concurrency
    while True:
        best, step = result.best(), ask(level)
        result.steps.append(step)
        short = step.completed * scenario.output_tokens - step.output_tokens
        if short > 0:
            _note(result, f"{short} tokens fewer than asked for came at {level} at once")
        yield step
        if scenario.grow_percent is None:
            return
        if not step.completed:
            _note(result, f"nothing was answered at {level} at once")
            return
        grown = step.output_tokens_per_second / best.output_tokens_per_second - 1 if best else 1
        if grown * 100 < scenario.grow_percent:
            _note(
                result, f"saturated: from {best.concurrency if best else level} at once to {level}, tokens a second changed by {grown:+.0%}"
            )
            return
        level *= 2
        if level > scenario.most:
            _note(result, f"still growing at {step.concurrency} at once")
            return


def _note(result: Result, text: str) -> None:
    result.note = "; ".join(filter(None, (result.note, text)))

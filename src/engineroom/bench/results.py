"""What a run gives: its form as JSON, written and read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from engineroom.bench.scenarios import Scenario
from engineroom.errors import BadRequest

PERCENTILES = (50, 90, 99)
Spread = dict[str, float]  # p50, p90, p99


class Step(BaseModel):
    """One measurement. Times in milliseconds, over requests that were answered; tokens as the server counted them.

    `ttft` is until the first token, `tpot` from each token to the next (a request's mean), `latency` until the last.
    """

    model_config = ConfigDict(extra="forbid")

    concurrency: int
    requests: int
    completed: int
    failed: int
    errors: dict[str, int]
    seconds: float
    input_tokens: int
    output_tokens: int
    output_tokens_per_second: float
    requests_per_second: float
    ttft: Spread
    tpot: Spread
    latency: Spread


class Result(BaseModel):
    """A scenario as it was asked, what was measured at each concurrency, and what is to be known of it."""

    model_config = ConfigDict(extra="forbid")

    scenario: Scenario
    steps: list[Step] = []
    note: str = ""

    def best(self) -> Step | None:
        """The measurement with the most tokens a second."""
        return max(self.steps, key=lambda step: step.output_tokens_per_second, default=None)


class Run(BaseModel):
    """All of a run: what was measured and on what, and why it ended early, if it did."""

    model_config = ConfigDict(extra="forbid")

    form: int = 1
    conditions: dict[str, Any]
    results: dict[str, Result] = {}
    ended: str = ""

    def write(self, file: Path) -> None:
        """Whole or not at all, since it is written again after each measurement."""
        draft = file.with_suffix(".part")
        draft.write_text(self.model_dump_json(indent=1) + "\n")
        draft.replace(file)


def read(file: Path) -> Run:
    """A run from its file. Raises BadRequest for one that is none."""
    try:
        return Run.model_validate_json(file.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise BadRequest(f"{file} is no result of `engineroom bench`: {where + ': ' if where else ''}{first['msg']}.") from None

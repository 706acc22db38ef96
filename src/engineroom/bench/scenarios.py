"""Scenarios: what is asked of a server, as data."""

from __future__ import annotations

import tomllib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from engineroom.errors import BadRequest, UnknownName

FILE = Path(__file__).with_name("scenarios.toml")
ROOM = 16  # tokens that a server may add to a prompt, as a token that begins every text


class Scenario(BaseModel):
    """A row of scenarios.toml, which says what each field means."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    input_tokens: int = Field(ge=1)
    output_tokens: int = Field(ge=2)
    concurrency: int = Field(ge=1)
    rounds: int = Field(ge=1)
    temperature: float = Field(0.0, ge=0)
    shorten: bool = True
    grow_percent: float | None = Field(None, ge=0)
    most: int = Field(1024, ge=1)
    minutes: float = Field(gt=0)
    why: str
    source: str

    def shape(self) -> dict[str, float | None]:
        """What must be equal for figures to be comparable."""
        return self.model_dump(include={"input_tokens", "output_tokens", "concurrency", "rounds", "temperature"})


def load(file: Path = FILE, names: tuple[str, ...] = ()) -> dict[str, Scenario]:
    """The scenarios of a file, or those of them that are named. Raises BadRequest for a file that is none, UnknownName."""
    try:
        rows = TypeAdapter(dict[str, Scenario]).validate_python(tomllib.loads(file.read_text()))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"{file} is no TOML: {error}") from None
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, found['loc']))}: {found['msg']}" for found in error.errors())
        raise BadRequest(f"{file}: {wrong}. The form is that of {FILE}.") from None
    for name in names:
        if name not in rows:
            raise UnknownName("scenario", name, rows)
    return {name: rows[name] for name in names or rows}


def fitted(scenario: Scenario, context: int | None) -> tuple[Scenario | None, str]:
    """A scenario as a server with this context can take it, None where it cannot; and what was done, in words."""
    wanted = scenario.input_tokens + scenario.output_tokens
    if not context or wanted + ROOM <= context:
        return scenario, ""
    found = f"it wants {wanted:,} tokens, and the server's context has {context:,}"
    if not scenario.shorten or context < 4 * ROOM:
        return None, f"skipped: {found}"
    scale = (context - ROOM) / wanted
    short = {"input_tokens": int(scenario.input_tokens * scale), "output_tokens": max(2, int(scenario.output_tokens * scale))}
    return scenario.model_copy(update=short), f"shortened to {short['input_tokens']} in, {short['output_tokens']} out: {found}"

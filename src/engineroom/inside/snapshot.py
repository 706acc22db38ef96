"""Every flag of an engine's server parser, as JSON: `python3 snapshot.py vllm|sglang`.

A flag is {names, kind, choices, default, nargs, off, repeats, help}. `kind` is bool (with `off`, the name that switches it
off, or "" where there is none), choice, int, int-or-auto, float, str, json, str-or-json, other (a nameless function),
or the name of the engine's own function. Defaults that are not plain data are given by the name of their class in angle brackets.
"""

from __future__ import annotations

import argparse
import enum
import functools
import json
import re
import sys
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

from engine_parsers import SERVERS, answer

KINDS: dict[str, str] = {
    "loads": "json",
    "parse_dataclass": "json",
    "union_dict_and_str": "str-or-json",
    "human_readable_int": "int",
    "human_readable_int_or_auto": "int-or-auto",
    "json_list_type": "json",
    "nullable_str": "str",
    "<lambda>": "other",
}


def innermost(convert: Any) -> Any:
    """The function within wrappers such as "or None": what a partial or a closure holds."""
    if isinstance(convert, functools.partial):
        return innermost(convert.func)
    held = [cell.cell_contents for cell in getattr(convert, "__closure__", None) or ()]
    inner = [content for content in held if callable(content)]
    return innermost(inner[0]) if len(inner) == 1 else convert


def kind(action: argparse.Action) -> str:
    """The kind of value that a flag takes."""
    if action.nargs == 0 or off_name(action):
        return "bool"
    if action.choices is not None:
        return "choice"
    if action.type is None:
        return "str"
    name = getattr(innermost(action.type), "__name__", type(action.type).__name__)
    return KINDS.get(name, name)


def off_name(action: argparse.Action) -> str:
    """The name that switches a flag off: `--no-x` beside `--x` in one action."""
    names = action.option_strings
    return next((name for name in names if name.startswith("--no-") and "--" + name[5:] in names), "")


def on_names(action: argparse.Action) -> list[str]:
    """A flag's names, without those that switch it off."""
    names = action.option_strings
    return [name for name in names if not (name.startswith("--no-") and "--" + name[5:] in names)]


def plain(value: object) -> Any:
    """A value as JSON that is the same on every run."""
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(value[key]) for key in sorted(value, key=str)}
    if isinstance(value, AbstractSet):
        return in_order(plain(item) for item in value)
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return f"<{value.__name__ if isinstance(value, type) else type(value).__name__}>"


def in_order(values: Iterable[Any]) -> list[Any]:
    """Values sorted by their text, None last."""
    return sorted(values, key=lambda value: (value is None, str(value)))


def first_sentence(text: str) -> str:
    """The beginning of a help text, as one line."""
    return re.split(r"(?<=\.)\s", " ".join(text.split()), maxsplit=1)[0]


def describe(action: argparse.Action) -> dict[str, Any]:
    """One flag."""
    return {
        "names": on_names(action),
        "kind": kind(action),
        "choices": None if action.choices is None else in_order(plain(choice) for choice in action.choices),
        "default": None if action.default is argparse.SUPPRESS else plain(action.default),
        "nargs": action.nargs,
        "off": off_name(action),
        "repeats": isinstance(action, argparse._AppendAction),  # noqa: SLF001 - argparse has no public name for it
        "help": "" if action.help == argparse.SUPPRESS else first_sentence(action.help or ""),
    }


def snapshot(engine: str) -> dict[str, Any]:
    """All flags of an engine's server, by name; --help and the positional model are none of them."""
    server = SERVERS[engine]()
    actions = server.parser._actions  # noqa: SLF001 - argparse has no public list
    given = [action for action in actions if action.option_strings and action.dest != "help"]
    flags = sorted((describe(action) for action in given), key=lambda flag: str(flag["names"][0]))
    return {"engine": engine, "version": server.version, "flags": flags}


def main() -> None:
    """Print the snapshot of the engine that is named."""
    choice = argparse.ArgumentParser(description=__doc__)
    choice.add_argument("engine", choices=sorted(SERVERS))
    engine = choice.parse_args().engine
    sys.argv.append("--help")  # vLLM reads its help texts only where it sees this
    with answer() as stream:
        json.dump(snapshot(engine), stream, indent=1)
        stream.write("\n")


if __name__ == "__main__":
    main()

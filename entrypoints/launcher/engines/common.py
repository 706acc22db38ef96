"""What every engine module starts from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Request(NamedTuple):
    """What is to be served, after all settings: sizes in tokens. `args` are engine flags, later ones won.

    `state` is the file that says whether the launcher drains.
    """

    model: str
    model_name: str
    port: int
    tp: int
    pp: int
    max_model_len: int | None
    max_seqs: int | None
    args: Mapping[str, bool | int | float | str]
    extra: tuple[str, ...]
    api_key: str | None
    state: str


def flags(values: Mapping[str, object], *, off: str) -> list[str]:
    """Flags as a list of arguments. True is `--flag`; False is `--<off>flag`, or nothing where the engine has no such form.

    None is left out. Every value is one argument: nothing is ever split or passed through a shell.
    """
    line = []
    for name, value in values.items():
        if value is None:
            continue
        if value is True or str(value).lower() == "true":
            line.append(f"--{name}")
        elif value is False or str(value).lower() == "false":
            if off:
                line.append(f"--{off}{name}")
        else:
            line += [f"--{name}={value}"] if str(value).startswith("-") else [f"--{name}", str(value)]
    return line

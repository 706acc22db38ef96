"""What every engine module starts from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from launcher.errors import Refused


class Request(NamedTuple):
    """What is to be served, after all settings: sizes in tokens. `defaults` are the image's engine flags, `args` the user's.

    `args` has values, or, of flags that were translated, words of the command line.
    `fraction` is the share of a GPU's memory, None for the engine's own.
    `executor` is mp, ray or native, or empty where the engine may choose; `state` is the file that says whether the launcher drains.
    """

    model: str
    model_name: str
    host: str
    port: int
    executor: str
    tp: int
    pp: int
    max_model_len: int | None
    max_seqs: int | None
    fraction: float | None
    defaults: Mapping[str, bool | int | float | str]
    args: Mapping[str, str | tuple[str, ...]]
    extra: tuple[str, ...]
    api_key: str | None
    state: str


def merged(request: Request, own: Mapping[str, object]) -> dict[str, object]:
    """The image's flags, then the launcher's settings as far as they are given, then the user's flags; later ones win."""
    return {**request.defaults, **{name: value for name, value in own.items() if value is not None}, **request.args}


def refuse_key(request: Request, engine: str) -> None:
    """Raises Refused when a key is asked for that the engine would only take on its command line, where all can read it."""
    if request.api_key:
        raise Refused(f"LAUNCH_API_KEY does not reach {engine} yet. Unset it, and keep the port on a closed network or behind a gateway.")


def flags(values: Mapping[str, object], *, off: str) -> list[str]:
    """Flags as a list of arguments. True is `--flag`; False is `--<off>flag`, or nothing where the engine has no such form; a tuple is words as they are.

    Every value is one argument: nothing is ever split or passed through a shell.
    """
    line: list[str] = []
    for name, value in values.items():
        if isinstance(value, tuple):
            line += value
        elif value is True or str(value).lower() == "true":
            line.append(f"--{name}")
        elif value is False or str(value).lower() == "false":
            if off:
                line.append(f"--{off}{name}")
        else:
            line += [f"--{name}={value}"] if str(value).startswith("-") else [f"--{name}", str(value)]
    return line


def has_flag(command: Sequence[str], name: str) -> bool:
    """Whether a flag is on an engine's command line, whole or in parts: `--speculative-config.model X`."""
    return any(word.startswith("-") and word.lstrip("-").replace("_", "-").partition("=")[0].partition(".")[0] == name for word in command)


def flag_value(command: Sequence[str], *names: str) -> str:
    """The value of a flag on an engine's command line, under the last of these names; "true" or "false" for a switch, "" when absent."""
    found = ""
    for argument, following in zip(command, [*command[1:], "--"], strict=False):
        name, equals, value = argument.lstrip("-").partition("=")
        name = name.replace("_", "-")
        if not argument.startswith("-"):
            continue
        if name in names:
            found = value if equals else "true" if following.startswith("-") else following
        elif name.removeprefix("no-") in names:
            found = "false"
    return found

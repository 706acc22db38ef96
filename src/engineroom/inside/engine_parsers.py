"""The engines' own server parsers, built where there is no GPU. Shared by snapshot.py, replay.py and attention.py.

Nothing here is measured or started: an engine's parser is asked for, on the CPU platform, since no release that we
pin builds it on none ("Failed to infer device type").
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from typing import Any, NamedTuple, NoReturn, TextIO


class Refusal(Exception):
    """What a parser said before it would have ended the process."""


class Server(NamedTuple):
    """An engine's server. `parser` holds its flags; `parse` reads what follows the program's name, and raises Refusal."""

    version: str
    parser: argparse.ArgumentParser
    parse: Callable[[Sequence[str]], argparse.Namespace]


@contextlib.contextmanager
def answer() -> Iterator[TextIO]:
    """Standard output for the answer alone: engines log there, some from C, and that goes to standard error."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    with os.fdopen(kept, "w", encoding="utf-8") as stream:
        yield stream


def strict(base: type[argparse.ArgumentParser]) -> type[argparse.ArgumentParser]:
    """A parser class that takes exact names alone and raises Refusal; parsers of subcommands inherit it."""

    class Strict(base):  # type: ignore[misc, valid-type]
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "allow_abbrev": False})

        def _get_option_tuples(self, option_string: str) -> list[Any]:  # noqa: ARG002
            # `allow_abbrev` leaves names with one dash alone: -t would still be taken for -tp.
            return []

        def error(self, message: str) -> NoReturn:
            raise Refusal(message)

        def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
            raise Refusal(message or f"ends with status {status} at once")

    return Strict


def cpu_platform() -> object:
    """The CPU platform of vLLM."""
    from vllm.platforms.cpu import CpuPlatform

    return CpuPlatform()


def vllm(platform: Callable[[], object] = cpu_platform) -> Server:
    """`vllm serve`, with the checks that follow the parser. `platform` stands in for what vLLM would detect."""
    import vllm.platforms

    vllm.platforms._current_platform = platform()  # noqa: SLF001 - vLLM has no public way before its first use
    from vllm.entrypoints.cli import serve

    main = strict(serve.FlexibleArgumentParser)(prog="vllm")
    commands = main.add_subparsers(required=True, dest="subparser")
    (command,) = serve.cmd_init()
    parser = command.subparser_init(commands)

    def parse(arguments: Sequence[str]) -> argparse.Namespace:
        found = main.parse_args(list(arguments))
        command.validate(found)
        return found

    return Server(version("vllm"), parser, parse)


def sglang() -> Server:
    """`python3 -m sglang.launch_server`."""
    from sglang.srt.server_args import ServerArgs

    parser = strict(argparse.ArgumentParser)(prog="sglang.launch_server")
    ServerArgs.add_cli_args(parser)
    return Server(version("sglang"), parser, lambda arguments: parser.parse_args(list(arguments)))


SERVERS: dict[str, Callable[[], Server]] = {"vllm": vllm, "sglang": sglang}
PROGRAMS: dict[str, tuple[str, ...]] = {"vllm": ("vllm",), "sglang": ("python3", "-m", "sglang.launch_server")}

"""Parse command lines with the engine's own parser: `python3 replay.py vllm|sglang <commands.json`.

Reads a JSON list of argument lists and prints, for each, {command, ok} or {command, ok, error}. Only exact names pass.
Exits with 1 if any is refused. No model or GPU is looked for; of files, vLLM reads those of --config and --chat-template.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from engine_parsers import PROGRAMS, SERVERS, Refusal, Server, answer


def arguments(engine: str, command: Sequence[str]) -> Sequence[str]:
    """What follows the program's name. Raises Refusal if the command starts another program."""
    program = PROGRAMS[engine]
    if tuple(command[: len(program)]) != program:
        raise Refusal(f"does not start with {' '.join(program)}")
    return command[len(program) :]


def try_one(engine: str, server: Server, command: Sequence[str]) -> dict[str, Any]:
    """What the parser makes of one command."""
    try:
        server.parse(arguments(engine, command))
    except Refusal as refusal:
        return {"command": command, "ok": False, "error": str(refusal)}
    except Exception as error:  # noqa: BLE001 - the engines' own checks raise what they like
        return {"command": command, "ok": False, "error": f"{type(error).__name__}: {error}"}
    return {"command": command, "ok": True}


def main() -> int:
    """Replay what comes on standard input."""
    choice = argparse.ArgumentParser(description=__doc__)
    choice.add_argument("engine", choices=sorted(SERVERS))
    engine = choice.parse_args().engine
    commands = json.load(sys.stdin)
    with answer() as stream:
        server = SERVERS[engine]()
        results = [try_one(engine, server, command) for command in commands]
        json.dump(results, stream, indent=1)
        stream.write("\n")
    return 0 if all(result["ok"] for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())

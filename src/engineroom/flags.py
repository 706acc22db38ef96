"""Snapshots of every flag of an engine's server: made in the build by the engine's own parser, kept in images/flags, replayed by tests."""

from __future__ import annotations

import itertools
import json
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from engineroom import resolve
from engineroom.build import have, require_docker
from engineroom.catalog import Catalog
from engineroom.errors import EngineRoomError

INSIDE = Path(__file__).parent / "inside"
IN_THE_IMAGE = "/opt/inside"
NUMBERS = {"int": int, "float": float}


def snapshot_file(catalog: Catalog, image: str) -> Path:
    """Where the snapshot of an image's engine release is."""
    return catalog.root / "images" / "flags" / f"{catalog.image(image).engine}.json"


def write_snapshot(catalog: Catalog, image: str) -> Path:
    """Take the snapshot out of a built image. Raises EngineRoomError when the image is not there or has none."""
    text = run_inside(catalog, image, "-c", "print(open('/etc/engineroom/flags.json').read(), end='')")
    json.loads(text)
    target = snapshot_file(catalog, image)
    target.parent.mkdir(exist_ok=True)
    target.write_text(text)
    return target


def run_inside(catalog: Catalog, image: str, *arguments: str, stdin: str = "") -> str:
    """Run Python in a built image, without network, among the programs of `inside`. Raises EngineRoomError with the end of what it said."""
    require_docker()
    name = resolve.tag(image, catalog.release_of(image))
    if not have(name):
        raise EngineRoomError(f"{name} is not built here. Type: make image TARGET={image}")
    command = ["docker", "run", "--rm", "--interactive", "--network=none", f"--volume={INSIDE}:{IN_THE_IMAGE}:ro"]
    command += [f"--workdir={IN_THE_IMAGE}", "--entrypoint=python3", name, "-B", *arguments]
    result = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    if not result.stdout:
        raise EngineRoomError(f"{arguments[0]} in {name} failed ({result.returncode}):\n{result.stderr[-2000:]}")
    return result.stdout


def refused(snapshot: dict[str, Any], arguments: Sequence[str]) -> Iterator[str]:
    """What an engine would not accept of a command line, going by its snapshot: its flags from the first `--name` on."""
    known = {name: flag for flag in snapshot["flags"] for name in (*flag["names"], flag["off"]) if name}
    words = list(itertools.dropwhile(lambda word: not word.startswith("--"), arguments))
    while words:
        word = words.pop(0)
        if not word.startswith("-"):
            continue
        name, equals, value = word.partition("=")
        flag = known.get(name)
        if flag is None:
            yield f"{snapshot['engine']} {snapshot['version']} has no {name}"
        elif flag["kind"] == "bool":
            if equals:
                yield f"{name} takes no value"
        else:
            yield from _refused_value(flag, name, value if equals else words.pop(0) if words else "")


def _refused_value(flag: dict[str, Any], name: str, value: str) -> Iterator[str]:
    if flag["choices"] and value not in map(str, flag["choices"]):
        yield f"{name} {value}: not one of {', '.join(map(str, flag['choices']))}"
    if flag["kind"] in NUMBERS:
        try:
            NUMBERS[flag["kind"]](value)
        except ValueError:
            yield f"{name} {value}: not a number"

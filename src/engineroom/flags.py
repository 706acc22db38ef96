"""Snapshots of every flag of an engine's server: made in the build by the engine's own parser, kept in images/flags, compared and replayed."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engineroom.build import require_built
from engineroom.catalog import Catalog
from engineroom.errors import EngineRoomError, UnknownName
from launcher import flags as launcher_flags

INSIDE = Path(__file__).parent / "inside"
IN_THE_IMAGE = "/opt/inside"


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
    name = require_built(catalog, image)
    command = ["docker", "run", "--rm", "--interactive", "--network=none", f"--volume={INSIDE}:{IN_THE_IMAGE}:ro"]
    command += [f"--workdir={IN_THE_IMAGE}", "--entrypoint=python3", name, "-B", *arguments]
    result = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    if not result.stdout:
        raise EngineRoomError(f"{arguments[0]} in {name} failed ({result.returncode}):\n{result.stderr[-2000:]}")
    return result.stdout


def diff(catalog: Catalog, before: str, after: str) -> Iterator[str]:
    """What changed in an engine's flags between two releases, a line a flag. Raises UnknownName for a release without a snapshot."""
    old, new = (read_snapshot(catalog, release) for release in (before, after))
    was, now = ({flag.name: flag for flag in found.flags.values()} for found in (old, new))
    for name in sorted({*was, *now}):
        if not new.find(name):
            yield f"- {name}{_replacement(new, name)}"
        elif not old.find(name):
            yield f"+ {name}{_replacement(old, name)}"
        elif name in was and (changed := _changed(was[name], new.flags[launcher_flags.dashed(name)])):
            yield f"~ {name}: {', '.join(changed)}"


def read_snapshot(catalog: Catalog, release: str) -> launcher_flags.Snapshot:
    """A snapshot of images/flags. Raises UnknownName."""
    folder = catalog.root / "images" / "flags"
    found = launcher_flags.load(str(folder / f"{release}.json"))
    if found is None:
        raise UnknownName("snapshot", release, (file.stem for file in folder.glob("*.json")))
    return found


def _replacement(other: launcher_flags.Snapshot, name: str) -> str:
    """What the other release has for it, where that is known."""
    change = launcher_flags.find_change(other, name)
    if change is None:
        return ""
    words = change.becomes or next((words for words in change.values.values() if words), ())
    return f" ({other.version} has {words[0]})" if words and not change.variable else f" ({other.version}: {change.why})"


def _changed(was: launcher_flags.Flag, now: launcher_flags.Flag) -> list[str]:
    pairs = ((part, getattr(was, part), getattr(now, part)) for part in ("kind", "default", "choices", "nargs", "off"))
    return [_difference(part, old, new) for part, old, new in pairs if old != new]


def _difference(part: str, old: Any, new: Any) -> str:
    """Two values of a flag's property; of two lists of choices, what came and went."""
    if isinstance(old, list) and isinstance(new, list):
        moved = [f"+{item}" for item in new if item not in old] + [f"-{item}" for item in old if item not in new]
        return f"{part} {' '.join(moved)}"
    return f"{part} {json.dumps(old)} -> {json.dumps(new)}"

"""Hash locks: one requirements file per release, resolved by uv as of the release's day, with no host in it."""

from __future__ import annotations

import os
import re
import subprocess
import sysconfig
import tempfile
from pathlib import Path

from engineroom import resolve
from engineroom.catalog import Catalog
from engineroom.errors import EngineRoomError, ServiceUnavailable
from engineroom.host import Host
from engineroom.rows import Release

PYTHON = "3.11"  # Debian bookworm's, in every image that is made of wheels
PLATFORM = "x86_64-manylinux_2_36"  # its glibc


def write_lock(catalog: Catalog, image: str, *, upgrade: bool = False) -> Path:
    """Resolve an image's packages into its lock; versions that are locked already stay unless `upgrade`.

    Raises EngineRoomError with what the resolver found to be in conflict.
    """
    release = catalog.release_of(image)
    target, index = resolve.lock_file(catalog, image), Host.load(catalog.root).index
    if release.install == "debs":
        raise EngineRoomError(f"{image} is made of Debian packages, which apt takes by Debian's signed lists: there is nothing to lock.")
    if release.install != "wheels":
        raise EngineRoomError(f"{image} is built on the vendor's image {release.base}: there is nothing to lock.")
    with tempfile.TemporaryDirectory() as folder:
        result = subprocess.run(_command(release, Path(folder), target, upgrade, index), capture_output=True, text=True, check=False)
    if re.search(r"error sending request|Could not connect|dns error|Request failed", result.stderr):
        raise ServiceUnavailable(
            f"The package index cannot be reached, or part of it:\n{result.stderr.strip()}\nSet PIP_INDEX_URL to one that can."
        )
    if result.returncode:
        raise EngineRoomError(f"The lock of {image} does not resolve:\n{result.stderr.strip()}\nThe old lock is untouched: {target}.")
    return target


def _command(release: Release, folder: Path, target: Path, upgrade: bool, index: str) -> list[str]:
    wanted, excluded = folder / "packages.in", folder / "excluded.txt"
    wanted.write_text("".join(f"{package}\n" for package in release.packages))
    excluded.write_text("".join(f"{package}\n" for group in release.leave_out for package in group.packages))
    horizon = ["--exclude-newer", release.horizon.isoformat()] if release.horizon else []
    horizon += [f"--exclude-newer-package={row.package}={row.until.isoformat()}" for row in release.newer]
    folders = [part for name in ("UV_FIND_LINKS", "PIP_FIND_LINKS") for part in os.environ.get(name, "").split()]
    return [
        *(f"{sysconfig.get_path('scripts')}/uv", "pip", "compile", "--quiet", str(wanted), "--excludes", str(excluded)),
        *("--generate-hashes", "--no-header", "--no-annotate", "--no-emit-index-url", "--no-emit-find-links"),
        *("--python-version", PYTHON, "--python-platform", PLATFORM, "--only-binary", ":all:"),
        *("--output-file", str(target), *horizon, *(["--upgrade"] if upgrade else [])),
        *(f"--find-links={part}" for part in folders),
        *(f"--index={layer.index}" for layer in release.layers if layer.index and not folders),
        *(["--default-index", index] if index else []),
    ]

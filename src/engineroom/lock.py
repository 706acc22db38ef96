"""Hash locks: one requirements file per release, resolved by uv as of the release's day, and one per tool of the builds, with no host in them."""

from __future__ import annotations

import os
import re
import subprocess
import sysconfig
import tempfile
from pathlib import Path

from engineroom import resolve
from engineroom.catalog import Catalog
from engineroom.errors import EngineRoomError, ServiceUnavailable, UnknownName
from engineroom.host import Host
from engineroom.rows import Release

PYTHON = "3.11"  # Debian bookworm's, in every image that is made of wheels
PLATFORM = "x86_64-manylinux_2_36"  # its glibc


def write_lock(catalog: Catalog, name: str, *, upgrade: bool = False) -> Path:
    """Resolve the packages of an image, or of a row of tools.toml, into its lock; versions that are locked already stay unless `upgrade`.

    Raises EngineRoomError with what the resolver found to be in conflict, and UnknownName.
    """
    if name not in {*catalog.images, *catalog.impossible_images, *catalog.tools}:
        raise UnknownName("image or tool", name, {*catalog.images, *catalog.tools})
    excluded: tuple[str, ...] = ()
    options: list[str] = []
    if name in catalog.tools:
        packages, target = catalog.tools[name].packages, catalog.root / f"images/locks/{name}.txt"
    else:
        release = catalog.release_of(name)
        if release.install == "debs":
            raise EngineRoomError(f"{name} is made of Debian packages, which apt takes by Debian's signed lists: there is nothing to lock.")
        if release.install != "wheels":
            raise EngineRoomError(f"{name} is built on the vendor's image {release.base}: there is nothing to lock.")
        excluded = tuple(package for group in release.leave_out for package in group.packages)
        packages, target, options = release.packages, resolve.lock_file(catalog, name), _options(release)
    with tempfile.TemporaryDirectory() as folder:
        wanted, left_out = Path(folder, "packages.in"), Path(folder, "excluded.txt")
        wanted.write_text("".join(f"{package}\n" for package in packages))
        left_out.write_text("".join(f"{package}\n" for package in excluded))
        index = Host.load(catalog.root).index
        command = [
            *(f"{sysconfig.get_path('scripts')}/uv", "pip", "compile", "--quiet", str(wanted), "--excludes", str(left_out)),
            *("--generate-hashes", "--no-header", "--no-annotate", "--no-emit-index-url", "--no-emit-find-links"),
            *("--python-version", PYTHON, "--python-platform", PLATFORM, "--only-binary", ":all:"),
            *("--output-file", str(target), *options, *(["--upgrade"] if upgrade else [])),
            *(f"--find-links={part}" for part in _folders()),
            *(["--default-index", index] if index else []),
        ]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    if re.search(r"error sending request|Could not connect|dns error|Request failed", result.stderr):
        raise ServiceUnavailable(
            f"The package index cannot be reached, or part of it:\n{result.stderr.strip()}\nSet PIP_INDEX_URL to one that can."
        )
    if result.returncode:
        raise EngineRoomError(f"The lock of {name} does not resolve:\n{result.stderr.strip()}\nThe old lock is untouched: {target}.")
    return target


def _options(release: Release) -> list[str]:
    """The day as of which a release is resolved, and indexes of its own, which folders of wheels stand for."""
    horizon = [f"--exclude-newer={release.horizon.isoformat()}"] if release.horizon else []
    horizon += [f"--exclude-newer-package={row.package}={row.until.isoformat()}" for row in release.newer]
    return horizon + [f"--index={layer.index}" for layer in release.layers if layer.index and not _folders()]


def _folders() -> list[str]:
    """Folders and pages of wheels that the user names."""
    return [part for name in ("UV_FIND_LINKS", "PIP_FIND_LINKS") for part in os.environ.get(name, "").split()]

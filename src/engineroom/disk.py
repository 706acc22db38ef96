"""Room on disks: asked for before something large begins, so that it does not end half-way."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from rich.filesize import decimal

from engineroom.errors import NoSpace

DOCKER_MEND = "Type: docker buildx prune (build caches) or docker image prune (images without a name); df -h shows the disks."


def free_bytes(folder: Path) -> int:
    """Bytes that an ordinary user can still write below a folder."""
    return shutil.disk_usage(folder).free


def require_space(folder: Path, wanted: int, what: str, mend: str, free: Callable[[Path], int] = free_bytes) -> None:
    """Raises NoSpace with what was found, what is wanted and how to mend it."""
    found = free(folder)
    if found < wanted:
        raise NoSpace(f"{what} needs {decimal(wanted)} below {folder}; {decimal(found)} are free there.\n{mend}")


def require_docker_space(wanted: int, what: str, free: Callable[[Path], int] = free_bytes) -> None:
    """Raises NoSpace when the disk where Docker keeps its data has less room; an engine on another machine is not looked into."""
    folder = docker_folder()
    if folder:
        require_space(folder, wanted, what, DOCKER_MEND, free)


def docker_folder() -> Path | None:
    """Where the engine keeps its data, if that is on this machine."""
    command = ["docker", "info", "--format", "{{.DockerRootDir}}"]
    text = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return Path(text) if text and Path(text).is_dir() else None

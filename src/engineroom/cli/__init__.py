"""The command line of the host tool: a module for each group of commands, each of which imports what it needs when it runs."""

from __future__ import annotations

import errno
import sys

import click

from engineroom.cli import bench, images, stacks
from engineroom.cli.common import cli
from engineroom.errors import EngineRoomError

__all__ = ["bench", "cli", "images", "main", "stacks"]


def main() -> None:
    """Entry point: an EngineRoomError becomes its message and exit code."""
    try:
        cli.main(prog_name="engineroom")
    except EngineRoomError as error:
        click.echo(f"engineroom: {error}", err=True)
        sys.exit(error.exit_code)
    except OSError as error:
        full = "the disk is full. Free space (`df -h` shows where, `docker system prune` helps), then run the same again."
        found = f"{error.filename or 'a file or service'}: {error.strerror or error}."
        click.echo(f"engineroom: {full if error.errno == errno.ENOSPC else found}", err=True)
        sys.exit(EngineRoomError.exit_code)

"""What the commands share: the group that they belong to, the checkout, the settings of this machine."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from engineroom.catalog import Catalog
    from engineroom.host import Host

FOLDER = click.Path(file_okay=False, resolve_path=True, path_type=Path)
FILE = click.Path(dir_okay=False, resolve_path=True, path_type=Path)
INPUT = click.Path(exists=True, dir_okay=False, resolve_path=True, path_type=Path)


def note(line: str) -> None:
    """Progress, for people: on standard error."""
    click.echo(line, err=True)


def root() -> Path:
    """The checkout: the nearest folder above the current one that has a catalog, else where this file is."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "images" / "images.toml").exists():
            return folder
    return Path(__file__).parents[3]


def catalog() -> Catalog:
    """The checked catalog of this checkout."""
    from engineroom.catalog import Catalog  # pydantic: only for commands that need it

    return Catalog(root())


def host() -> Host:
    """The settings of this machine."""
    from engineroom.host import Host

    return Host.load(root())


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="engineroom")
def cli() -> None:
    """Build images for LLM engines and run stacks from them."""


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """An interrupt is no error of ours: what to do, and the exit code that shells know."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo("\nInterrupted; nothing is broken. Run the same again to go on.", err=True)
        sys.exit(130)


def pairs(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """KEY=VALUE options as a dict. Raises click.BadParameter."""
    for value in values:
        if not value.partition("=")[0] or "=" not in value:
            raise click.BadParameter(f"{value!r} is no KEY=VALUE.")
    return dict(value.split("=", 1) for value in values)

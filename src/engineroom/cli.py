"""The command line of the host tool."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from engineroom.errors import EngineRoomError

if TYPE_CHECKING:
    from engineroom.catalog import Catalog


def root() -> Path:
    """The checkout: the nearest folder above the current one that has a catalog, else where this file is."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "images" / "images.toml").exists():
            return folder
    return Path(__file__).parents[2]


def catalog() -> Catalog:
    """The checked catalog of this checkout."""
    from engineroom.catalog import Catalog  # pydantic: only for commands that need it

    return Catalog(root())


def main() -> None:
    """Entry point: an EngineRoomError becomes its message and exit code."""
    try:
        cli.main(prog_name="engineroom", standalone_mode=True)
    except EngineRoomError as error:
        click.echo(f"engineroom: {error}", err=True)
        sys.exit(error.exit_code)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="engineroom")
def cli() -> None:
    """Build images for LLM engines and run stacks from them."""


@cli.command()
@click.option("--check", is_flag=True, help="Change nothing; fail and name each file that is not as rendered.")
@click.option("--diff", "show_diff", is_flag=True, help="Change nothing; show what would change.")
def render(check: bool, show_diff: bool) -> None:
    """Write Dockerfiles, compose files and schemas from the catalog."""
    from engineroom import render as renderer

    if show_diff:
        click.echo(renderer.diff(catalog()), nl=False)
    elif check:
        wrong = renderer.differences(catalog())
        for path, (what, _, _) in wrong.items():
            click.echo(f"{path}: {what}", err=True)
        if wrong:
            click.echo("Type: make render", err=True)
            sys.exit(1)
    else:
        for path in renderer.write(catalog()):
            click.echo(path)


@cli.command()
@click.argument("images", nargs=-1)
@click.option("--upgrade", is_flag=True, help="Move every package to the newest release that the horizon allows.")
def lock(images: tuple[str, ...], upgrade: bool) -> None:
    """Resolve the packages of IMAGES (default: all that are made of wheels) into hash-locked files."""
    from engineroom.lock import write_lock

    rows = catalog()
    for name in images or [name for name in rows.images if rows.release_of(name).install == "wheels"]:
        click.echo(write_lock(rows, name, upgrade=upgrade).relative_to(rows.root))

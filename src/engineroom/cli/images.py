"""Commands about the catalog's files, images, their packages and what is in them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from engineroom.cli.common import FILE, FOLDER, catalog, cli, host, interruptible, note


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
@click.argument("names", nargs=-1)
@click.option("--upgrade", is_flag=True, help="Move every package to the newest release that the horizon allows.")
def lock(names: tuple[str, ...], upgrade: bool) -> None:
    """Resolve the packages of images, or of rows of tools.toml (default: all that are made of wheels) into hash-locked files."""
    from engineroom.lock import write_lock

    rows = catalog()
    by_release = {row.engine: name for name, row in rows.images.items() if rows.release_of(name).install == "wheels"}
    for name in names or (*by_release.values(), *rows.tools):
        click.echo(write_lock(rows, name, upgrade=upgrade).relative_to(rows.root))


@cli.command()
@click.argument("targets", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Build every image, one after another; go on after one that cannot be built.")
@click.option("--offline", is_flag=True, help="Use no network: everything comes from a folder of `engineroom wheels`.")
@click.option("--wheels", "folder", type=FOLDER, help="That folder, if it is not build/wheels/RELEASE.")
@click.option("--no-cache", is_flag=True, help="Build from nothing, whatever was built before.")
def image(targets: tuple[str, ...], everything: bool, offline: bool, folder: Path | None, no_cache: bool) -> None:
    """Build the images TARGETS."""
    from engineroom import wheels
    from engineroom.build import build, build_all

    if bool(targets) is everything or (everything and offline):
        raise click.UsageError("Name images, or say --all, which goes without --offline; engineroom list shows them.")
    if folder and not offline:
        raise click.UsageError("--wheels goes with --offline; a folder for every build is the setting WHEELS.")
    rows = catalog()
    if everything:
        with interruptible():
            build_all(rows, host(), note)
        return
    folders = {target: folder or wheels.default_folder(rows, target) for target in targets} if offline else {}
    with interruptible():
        for target, place in folders.items():
            wheels.require(rows, target, place)
            build(rows, host(), [target], note, offline=place, no_cache=no_cache)
        if not offline:
            build(rows, host(), targets, note, no_cache=no_cache)


@cli.command()
@click.argument("image")
@click.option("--to", "folder", type=FOLDER, help="Default: build/wheels/RELEASE.")
def wheels(image: str, folder: Path | None) -> None:
    """Fill a folder with all that a build of IMAGE needs: locked wheels and Debian packages. Fetches what is missing or damaged."""
    from engineroom import wheels as folders

    rows = catalog()
    folder = folder or folders.default_folder(rows, image)
    with interruptible():
        folders.fill(rows, host(), image, folder, note)
    click.echo(folder)


@cli.command()
@click.argument("names", metavar="IMAGE...", nargs=-1, required=True)
@click.option("--to", "file", type=FILE, help="Default: build/saved/IMAGE.tar.gz.")
def save(names: tuple[str, ...], file: Path | None) -> None:
    """Write built images into a file that `load` reads on another machine; `base` stands for the base image."""
    from engineroom import transfer

    rows = catalog()
    file = file or transfer.default_file(rows, names)
    with interruptible():
        manifest = transfer.save(rows, host(), names, file, note)
    click.echo(f"{file} ({manifest.bytes} bytes) and {transfer.manifest_file(file).name}")


@cli.command()
@click.argument("file", type=FILE)
def load(file: Path) -> None:
    """Check a FILE of `save` and give its images to Docker."""
    from engineroom import transfer

    with interruptible():
        manifest = transfer.load(file, note)
    for saved in manifest.images:
        click.echo(f"{saved.name} {saved.id}")


@cli.command()
@click.argument("targets", metavar="IMAGE...", nargs=-1)
@click.option("--registry", default="", help="As registry.example/team; default: the setting ENGINEROOM_REGISTRY.")
@click.option(
    "--zstd", is_flag=True, help="Send zstd layers if the registry takes them: less to pull, but not every runtime can; needs skopeo."
)
def push(targets: tuple[str, ...], registry: str, zstd: bool) -> None:
    """Push built images (default: all that are here) to a registry, and write their digests into images/pushed.json."""
    from engineroom import push as pushing

    with interruptible():
        for name, row in pushing.push(catalog(), host(), targets, registry, note, zstd=zstd):
            click.echo(f"{name} {row.reference}")


@cli.command()
@click.argument("targets", metavar="IMAGE...", nargs=-1, required=True)
def sbom(targets: tuple[str, ...]) -> None:
    """List the packages in built images, as CycloneDX: build/sbom/IMAGE.cdx.json."""
    from engineroom import sbom as lists

    rows = catalog()
    for image in targets:
        click.echo(lists.write(rows, image).relative_to(rows.root))


@cli.command()
def images() -> None:
    """Show what the built images weigh, by layer."""
    from engineroom.images import report

    for line in report(catalog()):
        click.echo(line)


@cli.group()
def flags() -> None:
    """Flags of the pinned engines: write them down, compare two releases."""


@flags.command("write")
@click.argument("targets", nargs=-1, required=True)
def write_flags(targets: tuple[str, ...]) -> None:
    """Write down every flag that the engines in the built images TARGETS accept."""
    from engineroom.flags import write_snapshot

    rows = catalog()
    for name in targets:
        click.echo(write_snapshot(rows, name).relative_to(rows.root))


@flags.command("diff")
@click.argument("before")
@click.argument("after")
def diff_flags(before: str, after: str) -> None:
    """Show what changed in an engine's flags from release BEFORE to AFTER, as vllm-0.9.2 vllm-0.25.1: +, -, or ~ what is different."""
    from engineroom.flags import diff

    for line in diff(catalog(), before, after):
        click.echo(line)


@cli.command()
@click.argument("target")
@click.option("--gpu", help="GPU that a wheel or folder is for: a row of gpus.toml.")
@click.option("--json", "as_json", is_flag=True, help="Print everything that was found.")
def audit(target: str, gpu: str | None, as_json: bool) -> None:
    """Check TARGET, a built image, a wheel or a folder, for device code of its GPU; an image also for libraries, rights, secrets."""
    from engineroom import auditing

    rows = catalog()
    result = auditing.audit(rows, target, gpu)
    if as_json:
        click.echo(json.dumps(result, indent=1))
    summary = auditing.summary(target, result)
    click.echo(summary, err=as_json)


@cli.command()
def exceptions() -> None:
    """Show the known holes that pinned releases keep; fail when somebody should have looked at one again."""
    from datetime import UTC, datetime

    from engineroom import vex

    rows = catalog()
    for name, hole in ((name, hole) for name, release in rows.releases.items() for hole in release.exceptions):
        click.echo(f"{name:<16} {hole.package:<13} {vex.IN_WORDS[hole.status]:<13} until {hole.until}  {', '.join(hole.advisories)}")
    vex.require_current(rows, datetime.now(UTC).date(), note)

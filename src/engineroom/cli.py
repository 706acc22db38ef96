"""The command line of the host tool."""

from __future__ import annotations

import contextlib
import errno
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from engineroom.errors import EngineRoomError, NotReady

if TYPE_CHECKING:
    from engineroom.catalog import Catalog
    from engineroom.doctor import Report
    from engineroom.host import Host

FOLDER = click.Path(file_okay=False, resolve_path=True, path_type=Path)
FILE = click.Path(dir_okay=False, resolve_path=True, path_type=Path)
INPUT = click.Path(exists=True, dir_okay=False, resolve_path=True, path_type=Path)
FORM_NAMES = ("k8s", "helm", "lws", "kuberay", "volcano", "crater", "slurm")  # as in engineroom.forms, which is slow to import


def note(line: str) -> None:
    """Progress, for people: on standard error."""
    click.echo(line, err=True)


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


def host() -> Host:
    """The settings of this machine."""
    from engineroom.host import Host

    return Host.load(root())


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
    by_release = {row.engine: name for name, row in rows.images.items() if rows.release_of(name).install == "wheels"}
    for name in images or by_release.values():
        click.echo(write_lock(rows, name, upgrade=upgrade).relative_to(rows.root))


@cli.command("list")
def list_names() -> None:
    """Show every stack and image, and what cannot be built, with the reason."""
    from engineroom.resolve import image_title

    rows = catalog()
    click.secho("Stacks (make up STACK=…)", bold=True)
    titles = {name: row.title for name, row in rows.stacks.items()} | {name: row.title for name, row in rows.upstream_stacks.items()}
    for name, title in titles.items():
        click.echo(f"  {name:<24} {title}")
    click.secho("Images (make image TARGET=…)", bold=True)
    for name, image in rows.images.items():
        click.echo(f"  {name:<24} {image_title(rows, image, rows.release_of(name))}")
    click.secho("Cannot be built", bold=True)
    reasons = {name: row.reason for name, row in rows.impossible_images.items()}
    reasons |= {name: row.reason for name, row in rows.impossible_stacks.items()}
    for name, reason in reasons.items():
        click.echo(f"  {name:<24} {reason}")


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """An interrupt is no error of ours: what to do, and the exit code that shells know."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo("\nInterrupted; nothing is broken. Run the same again to go on.", err=True)
        sys.exit(130)


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


@cli.command()
@click.argument("stack", required=False)
@click.option("--model", help="Model of the catalog, hub id of one, or a folder with config.json and safetensors files.")
@click.option("--gpu", "gpus", help="GPUs of a node: v100, a100-80:2, h200:8.")
@click.option("--nodes", type=click.IntRange(1), default=1, show_default=True, help="Nodes with so many GPUs each.")
@click.option("--precision", type=click.Choice(["half", "bfloat16", "fp8", "fp4"]), help="Hold the weights like this; default: as stored.")
@click.option("--context", type=click.IntRange(1), help="Longest context wanted, in tokens; default: 8192, or the stack's.")
@click.option("--seqs", type=click.IntRange(1), help="Most requests at once; default: the engine's.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def plan(stack: str | None, model: str | None, gpus: str | None, nodes: int, as_json: bool, **options: Any) -> None:
    """Say before anything loads whether it fits: a STACK; a --model on a --gpu; what a --gpu can run; what a --model needs."""
    from engineroom import plan_text, planner

    wanted = planner.Wanted(**{name: value for name, value in options.items() if value})
    if bool(stack) is bool(model or gpus) or (stack and wanted != planner.Wanted()):
        raise click.UsageError("Name a stack alone, or give --model, --gpu or both, and what is wanted of them.")
    rows = catalog()
    if stack or (model and gpus):
        made = planner.of_stack(rows, stack) if stack else planner.of_request(rows, str(model), str(gpus), nodes, wanted)
        least = None if made.works else planner.smallest_like(rows, made)
        click.echo(json.dumps(plan_text.as_json(rows, made, least), indent=1) if as_json else plan_text.text(rows, made, least))
        sys.exit(0 if made.works else planner.DOES_NOT_FIT)
    found = planner.for_gpus(rows, str(gpus), nodes, wanted) if gpus else planner.for_model(rows, str(model), wanted)
    if as_json:
        click.echo(json.dumps([plan_text.as_json(rows, made, None) for made in found], indent=1))
    else:
        head = ("Model", "On", "Held in", "Image", "Longest context", "At once, of 8,192 tokens")
        click.echo(plan_text.table([head, *map(plan_text.summary, found)]))
        for name, cost in {made.checkpoint.name: plan_text.accuracy(made) for made in found}.items():
            if cost:
                click.echo(f"{name}, accuracy: {cost}")


def pairs(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """KEY=VALUE options as a dict. Raises click.BadParameter."""
    for value in values:
        if not value.partition("=")[0] or "=" not in value:
            raise click.BadParameter(f"{value!r} is no KEY=VALUE.")
    return dict(value.split("=", 1) for value in values)


@cli.command()
@click.argument("stack")
@click.option("--to", "form", type=click.Choice(FORM_NAMES), required=True, help="The scheduler or packaging.")
@click.option("--namespace", help="Namespace of every object (Kubernetes).")
@click.option(
    "--node-selector", metavar="KEY=VALUE", multiple=True, callback=pairs, help="Labels of the nodes, in place of NVIDIA's GPU labels."
)
@click.option("--gang-size", type=click.IntRange(1), help="Pods that start together or not at all; only the stack's nodes make sense.")
@click.option("--model", help="Another model than the stack's: a hub id, or a folder below /models.")
@click.option(
    "--models", help="What holds models, mounted read-only at /models: a claim; a folder for Slurm; a path in your space for Crater."
)
@click.option("--hf-token", metavar="SECRET", help="Secret with the model hub's token, for models that need one; its key is `token`.")
@click.option(
    "--cluster-token", metavar="SECRET", help="Secret with the token of several nodes (default: STACK-cluster-token); its key is `token`."
)
@click.option("--storage-class", help="Storage class of the claims (default: the cluster's).")
@click.option("--url", default="http://localhost:3000", show_default=True, help="Where people will open the page.")
@click.option("--gateway", is_flag=True, help="Put the gateway in front of page and API: TLS, keys, limits.")
@click.option("--gateway-replicas", type=click.IntRange(1), help="So many of it (default: 1); each counts limits for itself.")
@click.option(
    "--gateway-keys", metavar="SECRET", help="Secret with its lines of name:key (default: STACK-gateway-keys); its key is `keys`."
)
@click.option("--gateway-certificate", metavar="SECRET", help="Secret with its certificate, of the type tls (default: STACK-gateway-tls).")
@click.option("--out", "folder", type=FOLDER, help="Write files there; a form of one file is printed unless this is given.")
def jobs(stack: str, form: str, folder: Path | None, **options: Any) -> None:
    """Print STACK in a scheduler's form, or write it where that takes several files."""
    from engineroom import jobs as maker

    rows = catalog()
    files = maker.render(rows, host(), stack, form, maker.Options(**{name: value for name, value in options.items() if value}), say=note)
    if len(files) == 1 and not folder:
        click.echo(next(iter(files.values())), nl=False)
        return
    folder = folder or rows.root / "build" / "jobs" / f"{stack}-{form}"
    for name, text in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        click.echo(file)


@cli.command()
@click.argument("file", type=click.File(errors="replace"), default="-")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def explain(file: IO[str], as_json: bool) -> None:
    """Say why an engine died, from its log: FILE, or standard input as in `docker logs NAME 2>&1 | engineroom explain`. Exit status 1: not known."""
    from engineroom import explaining

    if file.isatty():
        note("Reading a log from the terminal; Ctrl-D ends it.")
    log = explaining.read(file)
    click.echo(explaining.as_json(log) if as_json else explaining.as_text(log))
    sys.exit(0 if log.explanation() else 1)


def profiles(command: Callable[..., None]) -> Callable[..., None]:
    """The options that switch a stack's Compose profiles on, beside those of COMPOSE_PROFILES."""
    command = click.option("--metrics", is_flag=True, help="With Prometheus: docs/metrics.md.")(command)
    return click.option("--gateway", is_flag=True, help="With the gateway, which lets others in: docs/gateway.md.")(command)


def with_profiles(rows: Catalog, stack: str, switched: dict[str, bool]) -> Host:
    """The settings of this machine with some profiles switched on. Raises CannotRun for one that the stack has not."""
    import dataclasses

    from engineroom import stacks
    from engineroom.errors import CannotRun

    wanted, here = {name for name, on in switched.items() if on}, host()
    for name in sorted(wanted - stacks.profiles(rows, stack).keys()):
        raise CannotRun(f"{stack} has no {name}: its server has nothing to tell Prometheus. Leave --{name} out.")
    return dataclasses.replace(here, profiles=here.profiles | wanted)


@cli.command()
@click.argument("stack")
@profiles
def up(stack: str, **switched: bool) -> None:
    """Bring STACK up from whatever is there, and wait until its chat page works."""
    from engineroom.progress import Reporter
    from engineroom.up import Bringup, UpstreamBringup

    rows = catalog()
    kind = UpstreamBringup if stack in rows.upstream_stacks else Bringup
    if kind is Bringup:
        rows.stack(stack)
    reporter = Reporter(root() / "build" / f"{stack}.log")
    bringup = kind(rows, with_profiles(rows, stack, switched), stack, reporter.say)
    try:
        reporter.run(bringup.phases())
    except KeyboardInterrupt:
        click.echo(f"\nInterrupted; nothing is broken. Go on with: make up STACK={stack}", err=True)
        sys.exit(130)
    click.echo(bringup.ending())


@cli.command()
@click.argument("stack", default="demo-cpu")
@profiles
@click.option("--json", "as_json", is_flag=True, help="Print everything that was found.")
def doctor(stack: str, as_json: bool, **switched: bool) -> None:
    """Look at what STACK (default: the demo) needs of this machine, and say how to mend what is wrong. Changes nothing; 78 if it is not ready."""
    import json

    from engineroom.doctor import examine

    rows = catalog()
    rows.any_stack(stack)
    report = examine(rows, with_profiles(rows, stack, switched), stack)
    if as_json:
        found = {field: [row._asdict() for row in getattr(report, field)] for field in ("checks", "images", "stacks")}
        click.echo(json.dumps({"stack": stack, **found}, indent=1))
    else:
        show(report)
    summary = f"{len(report.checks)} checks for {stack}, {report.count('failed')} failed, {report.count('warning')} warnings"
    if report.count("failed"):
        raise NotReady(f"{summary}. Mend what failed, from the top, then run the same again.")
    click.echo(summary, err=as_json)


def show(report: Report) -> None:
    """A line for each check, what mends it below it, and what suits the hardware."""
    colours = {"ok": "green", "warning": "yellow", "failed": "red"}
    for check in report.checks:
        click.echo(f"{click.style(f'{check.status:<8}', colours[check.status])} {check.name:<16} {check.found}")
        for line in check.fix.splitlines():
            click.echo(f"{'':<26}{line}")
    for title, verdicts in (("Images", report.images), ("Stacks", report.stacks)):
        click.secho(f"{title} that suit this hardware", bold=True)
        for name, runs, why in verdicts:
            click.echo(f"{click.style('yes' if runs else 'no ', 'green' if runs else 'red')}  {name:<24} {why}")


@cli.command()
@click.argument("stack", default="")
@click.option("--once", is_flag=True, help="Look once, also in a terminal.")
@click.option("--json", "as_json", is_flag=True, help="Look once and print JSON.")
def status(stack: str, once: bool, as_json: bool) -> None:
    """Show what runs of this checkout's stacks, or of STACK: ready or why not, tokens, requests, cache, the last exit. Refreshes in a terminal."""
    from rich.console import Console

    from engineroom import status as showing

    watch, console = showing.Watch(catalog(), host(), stack), Console(highlight=False, soft_wrap=True)
    with contextlib.suppress(KeyboardInterrupt):
        if as_json:
            click.echo(json.dumps(showing.as_json(watch.once()), indent=1))
        elif once or not console.is_terminal:
            console.print(showing.table(watch.once()))
        else:
            showing.follow(watch, console)


@cli.command()
@click.argument("stack")
@click.option("--follow", is_flag=True, help="Go on as lines come.")
@click.option("--tail", type=click.IntRange(1), help="Begin with so many lines of each service.")
def logs(stack: str, follow: bool, tail: int | None) -> None:
    """Show the logs of all services of STACK."""
    from engineroom import up as stacks

    stacks.logs(catalog(), host(), stack, follow=follow, tail=tail)


@cli.command()
@click.argument("stack", default="")
@click.option("--url", help="Any OpenAI-compatible API instead: https://host/v1.")
@click.option("--model", default="", help="Model to ask (default: the stack's, or the first that is listed).")
@click.option("--key-file", type=FILE, help="File with the API's key, in its first line.")
@click.option("--ca", type=FILE, help="File with the certificate, or its authority, to trust.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def smoke(stack: str, url: str | None, model: str, as_json: bool, **files: Path | None) -> None:
    """Ask STACK (default: demo-cpu), or the API at --url, one question: model listed, first token, speed, thought apart from the answer."""
    from engineroom import smoke as testing
    from engineroom.api import Api
    from engineroom.catalog import Stack

    if url and not url.startswith(("http://", "https://")):
        raise click.UsageError(f"{url!r} is no http:// or https:// address.")
    rows, stack = catalog(), stack or ("" if url else "demo-cpu")
    row = rows.any_stack(stack) if stack else None
    own = row.model if isinstance(row, Stack) else ""  # of another's service, what its router lists is asked
    thinks = bool(own and rows.models[own].reasoning)
    api = Api(url.rstrip("/")) if url else testing.of_stack(rows, host(), stack)
    key = files["key_file"].read_text().split("\n", 1)[0].strip() if files["key_file"] else ""
    api = api._replace(key=key, ca=files["ca"])
    found = testing.ask(api, model or own, thinks=thinks)
    click.echo(json.dumps(testing.as_json(found), indent=1) if as_json else testing.text(api, found))


class Bench(click.Group):
    """`bench STACK` means `bench run STACK`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put `run` before what is no command."""
        return super().parse_args(ctx, args if not args or args[0] in (*self.commands, "-h", "--help") else ["run", *args])


@cli.group(cls=Bench)
def bench() -> None:
    """Measure a running server: `bench STACK`. Compare or draw what was measured."""


@bench.command("run")
@click.argument("stack", default="")
@click.option("--url", help="Any OpenAI-compatible API instead: https://host/v1.")
@click.option("--model", default="", help="Model of that API (default: the first that is listed).")
@click.option("--tokenizer", default="", help="Folder with the tokenizer of that model (default: the model's own, if it is here).")
@click.option("--key-file", type=INPUT, help="File with that API's key, in its first line.")
@click.option("--ca", type=INPUT, help="File with the certificate, or its authority, to trust.")
@click.option("--generator", "program", metavar="VLLM", help="A `vllm` that is here, in place of the one in the image: needs no Docker.")
@click.option("--scenario", "names", multiple=True, help="Only these: single, concurrent, long, saturation.")
@click.option("--scenarios", type=INPUT, help="Scenarios of your own, in the form of src/engineroom/bench/scenarios.toml.")
@click.option("--note", "told", metavar="KEY=VALUE", multiple=True, callback=pairs, help="More to be kept beside the figures.")
@click.option("--to", "out", type=FILE, help="Default: build/bench/STACK-TIME.json.")
def bench_run(**values: Any) -> None:
    """Measure STACK, or the API at --url: tokens a second, time to the first token and between tokens. Writes JSON, and a plot beside it."""
    from engineroom.bench import start

    options = start.Options(**{name: value for name, value in values.items() if value})
    if bool(options.stack) is bool(options.url):
        raise click.UsageError("Name a stack that runs, or --url of any OpenAI-compatible API; not both.")
    if options.url and not options.url.startswith(("http://", "https://")):
        raise click.UsageError(f"{options.url!r} is no http:// or https:// address.")
    if options.stack and (options.model or options.tokenizer or options.key_file or options.ca or options.program):
        raise click.UsageError("--model, --tokenizer, --key-file, --ca and --generator go with --url.")
    start.start(None if options.program else (catalog(), host()), options, root() / "build" / "bench", note)


@bench.command("compare")
@click.argument("old", type=INPUT)
@click.argument("new", type=INPUT)
@click.option("--anyway", is_flag=True, help="Compare runs of different models, engines, hardware or scenarios all the same.")
@click.option("--plot", type=FILE, help="Draw both into this PNG.")
def bench_compare(old: Path, new: Path, anyway: bool, plot: Path | None) -> None:
    """Show what NEW gives in place of OLD, two files of `bench`, as ratios; refuse runs of different things."""
    from engineroom.bench import start

    start.compare(old, new, plot, note, anyway=anyway)


@bench.command("plot")
@click.argument("files", metavar="FILE...", type=INPUT, nargs=-1, required=True)
@click.option("--to", "out", type=FILE, help="Default: the first FILE, as .png.")
def bench_plot(files: tuple[Path, ...], out: Path | None) -> None:
    """Draw runs of `bench` into one PNG, for light and dark pages."""
    from engineroom.bench import start

    click.echo(start.plot(files, out or files[0].with_suffix(".png")))


@cli.command()
@click.argument("stack")
@click.option("--to", "file", type=FILE, help="Default: build/bundles/STACK-TIME.tar.gz.")
def bundle(stack: str, file: Path | None) -> None:
    """Write versions, settings, checks and logs of STACK into one file for a bug report, with secrets blanked."""
    from engineroom import bundle as packing

    rows = catalog()
    file = file or packing.default_file(rows, stack)
    names = packing.write(rows, host(), stack, file)
    note(f"{', '.join(names)}: secrets are blanked where they are known or look like it. Read it before you send it.")
    click.echo(file)


@cli.command()
@click.option("--volumes", is_flag=True, help="Also remove chats, accounts and caches.")
def down(volumes: bool) -> None:
    """Stop every stack of this checkout."""
    from engineroom import up as stacks

    stacks.down(host(), volumes=volumes)

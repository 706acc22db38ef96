"""Commands about stacks: what there is, whether it fits, running it, looking at it."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from engineroom.cli.common import FILE, FOLDER, catalog, cli, host, note, pairs, root
from engineroom.errors import NotReady

if TYPE_CHECKING:
    from engineroom.catalog import Catalog
    from engineroom.doctor import Report
    from engineroom.host import Host

FORM_NAMES = ("k8s", "helm", "lws", "kuberay", "volcano", "crater", "slurm")  # as in engineroom.forms, which is slow to import


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


@cli.command()
@click.argument("stack", required=False)
@click.option("--model", help="Model of the catalog, hub id of one, or a folder with config.json and safetensors files.")
@click.option("--gpu", "gpus", help="GPUs of a node: v100, a100-80:2, h200:8.")
@click.option("--nodes", type=click.IntRange(1), show_default="1", help="Nodes with so many GPUs each.")
@click.option("--precision", type=click.Choice(["half", "bfloat16", "fp8", "fp4"]), help="Hold the weights like this; default: as stored.")
@click.option("--context", type=click.IntRange(1), help="Longest context wanted, in tokens; default: 8192, or the stack's.")
@click.option("--seqs", type=click.IntRange(1), help="Most requests at once; default: the engine's.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def plan(stack: str | None, model: str | None, gpus: str | None, nodes: int | None, as_json: bool, **options: Any) -> None:
    """Say before anything loads whether it fits: a STACK; a --model on a --gpu; what a --gpu can run; what a --model needs."""
    from engineroom import plan_text, planner

    wanted = planner.Wanted(**{name: value for name, value in options.items() if value})
    if bool(stack) is bool(model or gpus) or (stack and wanted != planner.Wanted()):
        raise click.UsageError("Name a stack alone, or give --model, --gpu or both, and what is wanted of them.")
    if nodes and not gpus:
        raise click.UsageError("--nodes goes with --gpu, the GPUs of each; a stack's row says how many it has.")
    rows = catalog()
    if stack or (model and gpus):
        made = planner.of_stack(rows, stack) if stack else planner.of_request(rows, str(model), str(gpus), nodes or 1, wanted)
        least = None if made.works else planner.smallest_like(rows, made)
        click.echo(json.dumps(plan_text.as_json(rows, made, least), indent=1) if as_json else plan_text.text(rows, made, least))
        sys.exit(0 if made.works else planner.DOES_NOT_FIT)
    found = planner.for_gpus(rows, str(gpus), nodes or 1, wanted) if gpus else planner.for_model(rows, str(model), wanted)
    if as_json:
        click.echo(json.dumps([plan_text.as_json(rows, made, None) for made in found], indent=1))
    else:
        head = ("Model", "On", "Held in", "Image", "Longest context", "At once, of 8,192 tokens")
        click.echo(plan_text.table([head, *map(plan_text.summary, found)]))
        for name, cost in {made.checkpoint.name: plan_text.accuracy(made) for made in found}.items():
            if cost:
                click.echo(f"{name}, accuracy: {cost}")
    if not found:
        note(f"{model}: no GPU of the catalog serves it so, with up to 8 nodes of 8.")
    sys.exit(0 if any(made.serves for made in found) else planner.DOES_NOT_FIT)


@cli.command()
@click.argument("stack")
@click.option("--to", "form", type=click.Choice(FORM_NAMES), required=True, help="The scheduler or packaging.")
@click.option("--namespace", help="Namespace of every object (Kubernetes).")
@click.option(
    "--node-selector", metavar="KEY=VALUE", multiple=True, callback=pairs, help="Labels of the nodes, in place of NVIDIA's GPU labels."
)
@click.option("--gang-size", type=click.IntRange(1), help="Pods that start together or not at all; only the stack's nodes make sense.")
@click.option("--model", help="Another model than the stack's: a hub id in images/models.toml, or a folder below /models.")
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
    from engineroom.api import Api, key_of
    from engineroom.rows import Stack
    from engineroom.stacks import api_name

    if url and not url.startswith(("http://", "https://")):
        raise click.UsageError(f"{url!r} is no http:// or https:// address.")
    rows, stack = catalog(), stack or ("" if url else "demo-cpu")
    row = rows.any_stack(stack) if stack else None
    own = api_name(rows, row) if isinstance(row, Stack) else ""  # of another's service, what its router lists is asked
    thinks = isinstance(row, Stack) and bool(rows.models[row.model].reasoning)
    api = Api(url.rstrip("/")) if url else testing.of_stack(rows, host(), stack)
    api = api._replace(key=key_of(files["key_file"]), ca=files["ca"])
    found = testing.ask(api, model or own, thinks=thinks)
    click.echo(json.dumps(testing.as_json(found), indent=1) if as_json else testing.text(api, found))


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

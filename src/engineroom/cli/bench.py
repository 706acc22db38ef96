"""Commands that measure a running server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from engineroom.cli.common import FILE, INPUT, catalog, cli, host, note, pairs, root


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
    if options.out and options.out.suffix != ".json":
        raise click.UsageError(f"--to {options.out.name}: results are JSON, with a plot beside them. Name it {options.out.stem}.json.")
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

"""The command line of every image: `serve` (also for flags alone), `health`, `doctor`, or any other program.

docker run IMAGE                      serve with the image's defaults and the environment
docker run IMAGE --port 9000          flags alone mean serve
docker run IMAGE serve --dry-run      print every decision and start nothing
docker run IMAGE doctor               what this container has, and what fits it
docker run IMAGE bash                 any other word is a program to run
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import click

from launcher import __version__, checks, facts, flags, hardware, log, plan, settings
from launcher.errors import BadUsage, LaunchError, Refused, Unavailable, did_you_mean

COMMANDS = ("serve", "health", "doctor")


def resolve(argv: Sequence[str]) -> list[str]:
    """Flags alone mean `serve`; an unknown word is a program to run."""
    if not argv or (argv[0].startswith("-") and argv[0] not in ("--help", "-h", "--version")):
        return ["serve", *argv]
    return list(argv)


def main() -> None:
    """Entry point: turns LaunchError into its message and exit code, and nothing into a traceback."""
    argv = resolve(sys.argv[1:])
    try:
        if argv[0] in COMMANDS or argv[0].startswith("-"):
            cli.main(argv, prog_name="launch")
        become(argv)
    except LaunchError as error:
        log.write("exit", str(error), "ERROR", code=error.exit_code)
        sys.exit(error.exit_code)


def become(argv: Sequence[str]) -> None:
    """Replace this process with another program. Raises BadUsage when there is none of that name."""
    try:
        os.execvp(argv[0], list(argv))  # noqa: S606 - the very point
    except (OSError, ValueError) as error:
        hint = did_you_mean(argv[0], list(COMMANDS))
        raise BadUsage(
            f"{argv[0]} is no command of the launcher and no program that can be run here ({getattr(error, 'strerror', None) or error}).{hint}"
        ) from None


class WholeNumber(click.IntRange):
    """A whole number, also as engines take it: 32k, 8K."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number. Raises click.BadParameter."""
        with contextlib.suppress(ValueError, OverflowError):
            value = flags.whole_number(str(value))
        if param and param.name == "max_model_len" and str(value).lower() in ("auto", "-1"):  # vLLM's words for what fits
            return None
        return super().convert(value, param, ctx)


def setting_options(command: click.Command) -> click.Command:
    """Give a command one option for each setting, read from its environment variable when absent."""
    command.params[:0] = OPTIONS
    return command


def _options() -> Iterator[click.Option]:
    for setting in settings.SETTINGS:
        kind: Any = click.Choice(setting.choices) if setting.choices else setting.kind
        if setting.low is not None:
            kind = (WholeNumber if setting.kind is int else click.FloatRange)(setting.low, setting.high)
        yield click.Option(
            [setting.name, f"--{setting.name.replace('_', '-')}", *setting.spellings],
            type=kind,
            default=setting.default,
            envvar=setting.variable,
            show_default=setting.default is not None,
            show_envvar=True,
            help=setting.help,
        )


OPTIONS = list(_options())


def read(options: dict[str, Any], extra: Sequence[str] = ()) -> settings.Settings:
    """All settings, from click's options and the environment. Raises Refused."""
    settings.check_names(os.environ)
    log.form = options["log"]
    for argument in extra:
        if argument.startswith("-"):
            settings.check_flag(argument.lstrip("-").split("=")[0], settings.KEPT_FLAGS)
    secrets = settings.read_secrets(os.environ)
    return settings.Settings(**options, args=settings.engine_args(os.environ), extra=tuple(extra), secrets=secrets)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli() -> None:
    """Start and watch an LLM engine. Any other word is run as a program."""


@cli.command(
    context_settings={
        "ignore_unknown_options": True,
        "allow_extra_args": True,
        "token_normalize_func": flags.dashed,
        "help_option_names": ["--help"],  # click would see -h in -cc.cudagraph_mode
    }
)
@click.option("--dry-run", is_flag=True, help="Print the whole decision and start nothing.")
@click.option("--json", "as_json", is_flag=True, help="With --dry-run: print it as JSON.")
@click.pass_context
def serve(context: click.Context, /, dry_run: bool, as_json: bool, **options: Any) -> None:
    """Serve the model. Flags that are not listed here are the engine's; a word without a flag is the model."""
    if "-h" in context.args:
        click.echo(context.get_help())
        return
    if not dry_run:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _stopped_early)
    chosen = read(options, context.args)
    image = facts.load(chosen.image)
    found = hardware.look(os.environ) if any(image.gpus.values()) else hardware.NONE
    decided = plan.make(chosen, image, os.environ, found)
    passed = checks.run(checks.Case(decided, image, found, {**os.environ, **decided.environment}), chosen.checks)
    if dry_run:
        click.echo(show_json(decided, passed) if as_json else show(decided, passed))
    else:
        for line in show(decided, passed).splitlines():
            log.write(line.split(" ", 1)[0], line)
    checks.conclude(passed)
    if dry_run:
        return
    from launcher import supervise  # not needed to refuse or to explain

    sys.exit(supervise.run(decided, dict(chosen.secrets)))


def _stopped_early(*_: object) -> NoReturn:
    """A signal before there is an engine to stop: the supervisor, which blocks both, takes them from there on."""
    log.write("stopped", "stopped on request before the engine was started")
    os._exit(0)  # whatever is being asked of hub or driver has no end of its own


@cli.command()
@click.option("--ready", is_flag=True, help="Also ask for the model and for one token.")
@click.pass_context
def health(context: click.Context, /, ready: bool, **options: Any) -> None:
    """Live: the server answers. With --ready: it lists its model and generates a token.

    Without a port it asks the only server that a launcher has started here, whatever its port.
    """
    from launcher.engines import ENGINES
    from launcher.probe import Busy, Server, State

    chosen = read(options)
    port = chosen.port
    if context.get_parameter_source("port") is click.core.ParameterSource.DEFAULT:
        port = plan.only_port() or port
    state = State(plan.state_file(port)).read()
    if state.startswith("worker"):  # it has no server of its own
        if state != "worker ready" and (ready or state == "worker stopped"):
            raise Unavailable(f"this worker is {state.partition(' ')[2]}")
        click.echo("ready" if ready else "live")
        return
    server = Server(ENGINES[facts.load(chosen.image).engine], port, chosen.secrets.get("LAUNCH_API_KEY"), chosen.host)
    server.live()
    if ready:
        if state == "draining":
            raise Unavailable("draining: no new requests are taken")
        with contextlib.suppress(Busy):  # with others' questions, as far as it tells; the supervisor has an eye on how long
            server.token(server.model())
    click.echo("ready" if ready else "live")


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def doctor(*, as_json: bool, **options: Any) -> None:
    """Hardware, driver, memory, caches, ports, secrets and hub: what this container has, and which images fit. Needs no model."""
    import json

    from launcher import doctor as examination

    settings.check_names(os.environ)
    secrets, readable = examination.read_secrets(os.environ)
    chosen = settings.Settings(**options, args=settings.engine_args(os.environ), extra=(), secrets=secrets)
    found = examination.examine(chosen, facts.load(chosen.image), os.environ, readable)
    click.echo(json.dumps([check.shown() for check in found], indent=2) if as_json else "\n".join(checks.lines(found)))
    if any(check.status == "refused" for check in found):
        sys.exit(Refused.exit_code)


def show(decided: plan.LaunchPlan, passed: Sequence[checks.Check]) -> str:
    """The plan for people: one decision a line, the command so that it can be pasted; secrets stay hidden."""
    lines = [
        f"image     {decided.image}: {decided.engine} {decided.version}",
        f"role      {decided.role} ({decided.rule})",
        *show_cluster(decided),
        f"model     {decided.model}, shown as {decided.model_name}",
        f"cache     {decided.cache.shown}",
        *(f"profile   {decided.profile}: {choice.name} {choice.value} ({choice.source})" for choice in decided.presets),
        *(f"setting   {choice.name} {choice.value} ({choice.source})" for choice in decided.sizing.choices),
        *checks.lines(passed),
        *(f"note      {line}" for line in decided.notes),
        *(f"warning   {line}" for line in decided.warnings),
        *(f"env       {name}={shlex.quote(value)}" for name, value in shown_environment(decided).items()),
        *(
            [f"command   {shlex.join(decided.command)}"]
            if decided.command
            else ["command   none: Ray starts the engine's processes from the head"]
        ),
    ]
    return "\n".join(lines)


def show_cluster(decided: plan.LaunchPlan) -> list[str]:
    """Rank, addresses and executor of a node among several, as far as they are known before the nodes meet."""
    cluster = decided.cluster
    if not cluster:
        return []
    from launcher import network

    rank = "rank given by the head" if cluster.rank is None else f"rank {cluster.rank}"
    if decided.serves:
        address = network.of_head(cluster.interface, cluster.head)
        where = f"head at {address.ip}:{cluster.port} on {address.interface} ({address.why})"
    else:
        where = f"head {cluster.head}, port {cluster.port}; own address on {cluster.interface or 'the way there'}"
    return [
        f"cluster   {cluster.nodes} nodes, {rank}; {where}",
        f"executor  {cluster.executor} ({cluster.reason}); tensor parallel {decided.tp}, pipeline parallel {decided.pp}",
    ]


def show_json(decided: plan.LaunchPlan, passed: Sequence[checks.Check]) -> str:
    """The plan for programs."""
    import json

    cluster = {**decided.cluster._asdict(), "address": show_cluster(decided)[0]} if decided.cluster else None
    cached = decided.cached._asdict() if decided.cached else None
    sized = {
        **decided.sizing._asdict(),
        "fit": decided.sizing.fit and {**decided.sizing.fit._asdict(), "stages": [stage._asdict() for stage in decided.sizing.fit.stages]},
        "choices": [choice._asdict() for choice in decided.sizing.choices],
    }
    shown = {
        **decided._asdict(),
        "command": decided.command,
        "cluster": cluster,
        "cache": {name: value for name, value in decided.cache._asdict().items() if name != "line"},
        "cached": cached,
        "presets": [choice._asdict() for choice in decided.presets],
        "sizing": sized,
        "environment": shown_environment(decided),
    }
    del shown["config"], shown["line"]  # the model's own file; the command, or what the head's is compared with
    shown["checks"] = [check.shown() for check in passed]
    return json.dumps(shown, indent=2)


def shown_environment(decided: plan.LaunchPlan) -> dict[str, str]:
    """Added variables with secrets blanked."""
    return {name: "********" if name in decided.secret_names else value for name, value in decided.environment.items()}


setting_options(serve)
setting_options(health)
setting_options(doctor)

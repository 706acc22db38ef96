"""What runs of this checkout's stacks: their containers, the launcher's last words in them, and what an engine tells of itself."""

from __future__ import annotations

import time
from typing import NamedTuple

from docker.models.containers import Container

from engineroom import build, machine
from engineroom.catalog import Catalog
from engineroom.errors import ServiceUnavailable
from engineroom.host import Host
from engineroom.rows import Metrics
from launcher import log, probe

KEPT_LINES = 2000  # of a log's end are read: the launcher writes few, an engine many
ENGINE_PORT = "8000"
ROUTER = "router: "  # how a line of entrypoints/router begins
# What the launcher's exit codes say (docs/launcher.md), and those of the signals that containers die of.
EXITS = {
    0: "stopped on request",
    2: "a bad command line, or a setting with a value that cannot be",
    69: "a peer or service was not available",
    70: "the engine died or stopped answering",
    75: "not ready in time",
    78: "refused before start",
    127: "its program is not in the image",
    137: "killed, by `docker kill` or for want of memory",
    143: "ended by SIGTERM",
}
# Nothing but the standard library, since it runs in the engine's container, whose port may not be published.
ASK = """
import http.client, sys
connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=3)
connection.request("GET", "/metrics")
response = connection.getresponse()
sys.exit(0 if response.status == 200 and not print(response.read().decode()) else 1)
"""


class Sample(NamedTuple):
    """What an engine tells at one moment; None where it does not. Tokens since its start, requests, share of the cache in use."""

    when: float
    tokens: float | None
    running: float | None
    waiting: float | None
    cache: float | None


class Condition(NamedTuple):
    """A service's state in a word, and why, or what it does."""

    word: str
    why: str


def containers(catalog: Catalog, host: Host, stack: str = "") -> dict[str, dict[str, Container]]:
    """Containers of this checkout's stacks, or of one: stack -> service -> container. Raises ServiceUnavailable without Docker."""
    build.require_docker()
    found: dict[str, dict[str, Container]] = {}
    names = (*catalog.stacks, *catalog.upstream_stacks)
    labels = [f"com.docker.compose.project={host.project}", "com.docker.compose.oneoff=False"]
    for container in build.client().containers.list(all=True, filters={"label": labels}, ignore_removed=True):
        service = container.labels["com.docker.compose.service"]
        owner = max((name for name in names if service == name or service.startswith(f"{name}-")), key=len, default="")
        if owner and stack in ("", owner):
            found.setdefault(owner, {})[service] = container
    return {name: dict(sorted(found[name].items())) for name in names if name in found}


def engine(catalog: Catalog, host: Host, stack: str) -> Container:
    """The container of a stack's engine, ready. Raises UnknownName, CannotBuild, CannotRun, and ServiceUnavailable when it does not run."""
    catalog.any_stack(stack)
    container = containers(catalog, host, stack).get(stack, {}).get(f"{stack}-engine")
    if container is None:
        raise ServiceUnavailable(f"{stack} does not run here. Type: make up STACK={stack}")
    said = lines(container)
    word, why = condition(container, said)
    if word != "ready":
        raise ServiceUnavailable(f"{stack}-engine is {word}: {why or last_exit(container, said)}\nType: make status STACK={stack}")
    return container


def log_text(container: Container, tail: int) -> str:
    """The last lines that a container wrote."""
    return b"".join(container.logs(tail=tail, stream=True, follow=False)).decode("utf-8", "replace")


def lines(container: Container) -> list[log.Line]:
    """The launcher's own lines, as far as the end of the log has them; the cause of an end goes with the line that says it.

    A router's lines are read as errors: it says one when it starts, and the others are of what failed.
    """
    found: list[log.Line] = []
    last = False  # whether the line before this one was the launcher's
    for line in log_text(container, KEPT_LINES).splitlines():
        own = log.read(line) or (log.Line("ERROR", "", line.removeprefix(ROUTER)) if line.startswith(ROUTER) else None)
        if own:
            found.append(own)
        elif last and line.startswith("Cause: "):
            found[-1] = found[-1]._replace(message=f"{found[-1].message}\n{line}")
        last = bool(own)
    return found


def condition(container: Container, said: list[log.Line]) -> Condition:
    """How a container is, in words. `said` is what the launcher in it said; other programs say nothing."""
    state = container.attrs["State"]
    health = state.get("Health", {})
    if state["Status"] != "running":
        return Condition(state["Status"], last_exit(container, said))
    if health.get("Status") == "healthy":
        return Condition("ready", "")
    if not health:
        return Condition("running", "")
    answers = [entry["Output"].strip() for entry in health.get("Log") or [] if entry["Output"].strip()]
    answer = log.read(answers[-1]) if answers else None
    told = answer.message if answer else (answers or [""])[-1]
    last = said[-1].message if said and said[-1].event != "command" and not said[-1].message.startswith("command ") else ""
    why = last or told or "no answer yet"
    return Condition("starting" if health["Status"] == "starting" else "not ready", first(why))


def last_exit(container: Container, said: list[log.Line]) -> str:
    """How it ended the last time, in plain words: its exit code, and the launcher's last error. Empty where it has not ended."""
    state, restarts = container.attrs["State"], container.attrs["RestartCount"]
    error = next((line.message for line in reversed(said) if line.level == "ERROR"), "")
    lives = state["Status"] in ("running", "paused")
    if (lives or state["Status"] == "created") and not restarts:
        return ""
    if lives:
        words = [f"started again {restarts} time{'s' if restarts > 1 else ''}"]
    else:
        code = state["ExitCode"]
        words = ["killed for want of memory" if state.get("OOMKilled") else EXITS.get(code, "its program failed"), f"exit code {code}"]
    told = lives or state["ExitCode"]  # an error before an end that was asked for is an older one
    return ", ".join(words) + (f": {first(error)}" if error and told else "")


def first(message: str) -> str:
    """A message in one line: its first, and the cause."""
    head, *rest = message.splitlines() or [""]
    return " ".join([head, *(line for line in rest if line.startswith("Cause: "))])


def port(container: Container) -> str:
    """The port of an engine's API, inside."""
    settings: dict[str, str] = dict(line.split("=", 1) for line in container.attrs["Config"]["Env"] if "=" in line)
    return settings.get("LAUNCH_PORT", ENGINE_PORT)


def address(container: Container) -> str:
    """Where this machine reaches an engine's API, as host:port; empty where it is not published."""
    if container.attrs["HostConfig"]["NetworkMode"] == "host":
        return f"127.0.0.1:{port(container)}"
    published = (container.attrs["NetworkSettings"]["Ports"] or {}).get(f"{port(container)}/tcp")
    return f"{published[0]['HostIp']}:{published[0]['HostPort']}" if published else ""


def sample(container: Container, names: Metrics) -> Sample:
    """Ask an engine for its metrics, from within its container."""
    answer = machine.inside(container, "python3", "-c", ASK, port(container))
    text = answer.text if answer.well else ""  # it loads, or ends at this moment

    def total(name: str) -> float | None:
        return probe.total(text, name) if name else None

    fullest = max(probe.values(text, names.cache) if names.cache else (), default=None)  # one server may have several engines
    return Sample(time.monotonic(), total(names.generation_tokens), total(names.running), total(names.waiting), fullest)


def rate(before: Sample | None, now: Sample) -> float | None:
    """Tokens a second between two samples. An engine that began anew counts from nothing."""
    if not before or before.tokens is None or now.tokens is None or now.when <= before.when:
        return None
    return (now.tokens - (before.tokens if now.tokens >= before.tokens else 0)) / (now.when - before.when)

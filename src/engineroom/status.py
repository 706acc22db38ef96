"""`engineroom status`: what runs, how it is, and what it does, for people and for programs."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

from docker.errors import NotFound
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from engineroom import running
from engineroom.catalog import Catalog
from engineroom.host import Host
from engineroom.rows import Stack
from engineroom.running import Sample

SECONDS = 2.0  # between two looks
COLOURS = {"ready": "green", "running": "green", "starting": "yellow"}


class Service(NamedTuple):
    """A service and what it does. `tokens_per_second` is of all requests together; None is what it does not tell, as a router tells nothing."""

    stack: str
    service: str
    state: str
    why: str
    last_exit: str
    nodes: int
    tokens_per_second: float | None = None
    requests_running: float | None = None
    requests_waiting: float | None = None
    cache_use: float | None = None


class Watch:
    """Looks at what runs, again and again: rates are between two looks."""

    def __init__(self, catalog: Catalog, host: Host, stack: str = "") -> None:
        """Raises UnknownName or CannotBuild for a stack that there is not."""
        self.catalog, self.host, self.stack = catalog, host, stack
        self.samples: dict[str, Sample] = {}
        if stack:
            catalog.any_stack(stack)

    def look(self) -> list[Service]:
        """Every service, in the order of the catalog. Raises ServiceUnavailable without Docker."""
        found = []
        for stack, services in running.containers(self.catalog, self.host, self.stack).items():
            row = self.catalog.any_stack(stack)
            for name, container in services.items():
                engine = name in (f"{stack}-engine", f"{stack}-worker")
                try:
                    said = running.lines(container) if engine else []
                except NotFound:  # removed since it was listed
                    continue
                state, why = running.condition(container, said)
                service = Service(stack, name, state, why, running.last_exit(container, said), row.nodes if engine else 1)
                if name == f"{stack}-engine" and isinstance(row, Stack) and state in ("ready", "not ready"):
                    now = running.sample(container, self.catalog.release_of(row.image).metrics)
                    before, self.samples[str(container.id)] = self.samples.get(str(container.id)), now
                    service = service._replace(
                        tokens_per_second=running.rate(before, now),
                        requests_running=now.running,
                        requests_waiting=now.waiting,
                        cache_use=now.cache,
                    )
                found.append(service)
        return found

    def once(self) -> list[Service]:
        """One look with rates, which takes two."""
        found = self.look()
        if self.samples:
            time.sleep(SECONDS)
            found = self.look()
        return found


def follow(watch: Watch, console: Console) -> None:
    """Show it in the terminal until an interrupt."""
    with Live(console=console, auto_refresh=False) as live:
        while True:
            live.update(table(watch.look()), refresh=True)
            time.sleep(SECONDS)


def table(services: list[Service]) -> Table | str:
    """All of it for people."""
    if not services:
        return "Nothing of this checkout's stacks is here. Type: make up STACK=demo-cpu"
    shown = Table(box=None, pad_edge=False, header_style="bold")
    shown.add_column("Service", no_wrap=True)
    shown.add_column("State", no_wrap=True)
    for head in ("Tokens/s", "Running", "Waiting", "KV cache"):
        shown.add_column(head, justify="right", no_wrap=True)
    shown.add_column("What")
    for service in services:
        numbers = (
            _number(service.tokens_per_second, ".1f"),
            _number(service.requests_running, ".0f"),
            _number(service.requests_waiting, ".0f"),
            _number(service.cache_use, ".1%"),
        )
        shown.add_row(service.service, Text(service.state, COLOURS.get(service.state, "red")), *numbers, Text(_what(service)))
    return shown


def as_json(services: list[Service]) -> list[dict[str, Any]]:
    """All of it for programs."""
    return [service._asdict() for service in services]


def _what(service: Service) -> str:
    """Why it is not ready, how it ended before, and how many nodes it has."""
    nodes = f"{service.nodes} nodes" if service.nodes > 1 and service.state == "ready" else ""
    before = service.last_exit if service.state not in ("exited", "dead") else ""
    return "; ".join(part for part in (nodes, service.why, before) if part)


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)

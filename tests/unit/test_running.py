"""What a container and an engine's metrics say, without either."""

from __future__ import annotations

import dataclasses
import socket
from typing import Any, cast

import pytest
from demo import ROOT
from docker.errors import NotFound

from engineroom import build, checks, machine, running, status
from engineroom.catalog import Catalog
from engineroom.errors import ServiceUnavailable
from engineroom.host import Host
from launcher import probe

SGLANG = """# TYPE sglang:realtime_tokens_total counter
sglang:realtime_tokens_total{mode="decode",tp_rank="0"} 40.0
sglang:realtime_tokens_total{mode="prefill_compute",tp_rank="0"} 1000.0
sglang:token_usage{tp_rank="0"} 0.5
sglang:token_usage{tp_rank="1"} 0.75
"""


class Box:
    """A container as far as it is asked here."""

    id = "1"
    labels: dict[str, str]

    def __init__(self, status: str = "running", restarts: int = 0) -> None:
        self.attrs = {"State": {"Status": status, "ExitCode": 0}, "RestartCount": restarts, "Config": {"Env": []}}

    def logs(self, **_: object) -> list[bytes]:
        raise NotFound("gone")


def box(*arguments: Any) -> Any:
    return cast("Any", Box(*arguments))


def test_metrics_by_name_and_by_label() -> None:
    """A name alone sums over its labels; one with a label is that one. What is not there is None, not nothing."""
    assert probe.total(SGLANG, "sglang:realtime_tokens_total") == 1040
    assert probe.total(SGLANG, 'sglang:realtime_tokens_total{mode="decode"}') == 40
    assert probe.total(SGLANG, "sglang:realtime_tokens") is None
    assert probe.total("sglang:token_usage what", "sglang:token_usage") is None


def test_of_several_engines_the_fullest_cache_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens are those that come out; shares of caches are not added up."""
    monkeypatch.setattr(machine, "inside", lambda *_: machine.Answer(True, SGLANG, ""))

    found = running.sample(box(), Catalog(ROOT).releases["sglang-0.5.23"].metrics)

    assert (found.tokens, found.cache, found.running) == (40, 0.75, None)


@pytest.mark.parametrize(
    ("state", "restarts", "said"),
    [("paused", 0, ""), ("paused", 2, "started again 2 times"), ("exited", 0, "stopped on request, exit code 0")],
)
def test_how_it_ended(state: str, restarts: int, said: str) -> None:
    """A container that is paused has not ended."""
    assert running.last_exit(box(state, restarts), []) == said
    assert running.condition(box(state, restarts), []).word == state


@pytest.mark.parametrize(
    ("address", "mend"),
    [("ssh://me@gpu.example", "export DOCKER_HOST=unix:///tmp/engine.sock"), ("unix:///nowhere.sock", "Correct DOCKER_HOST")],
)
def test_an_engine_that_the_library_cannot_reach(monkeypatch: pytest.MonkeyPatch, address: str, mend: str) -> None:
    """Where the program `docker` is content, the commands that use the library say what to type."""
    monkeypatch.setattr(build, "require_docker", lambda: None)
    monkeypatch.setenv("DOCKER_HOST", address)

    with pytest.raises(ServiceUnavailable, match=mend):
        running.containers(Catalog(ROOT), Host.load(ROOT, {}))


def test_a_container_that_goes_away_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else's `make down` does not end the live view."""
    monkeypatch.setattr(running, "containers", lambda *_: {"demo-cpu": {"demo-cpu-engine": box(), "demo-cpu": box()}})

    assert [service.service for service in status.Watch(Catalog(ROOT), Host.load(ROOT, {})).look()] == ["demo-cpu"]


def test_a_port_below_1024_on_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who may not listen there asks whether somebody does, by the same protocol."""

    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(socket.socket, "bind", refuse)

    assert checks._taken("::", 1) == 0
    assert checks._taken("0.0.0.0", 1) == 0


@pytest.mark.parametrize(("clustered", "port", "status"), [(True, 443, "failed"), (False, 443, "ok"), (True, 8443, "ok")])
def test_a_gateway_on_the_machines_own_network(monkeypatch: pytest.MonkeyPatch, clustered: bool, port: int, status: str) -> None:
    """Docker publishes any port; a gateway that listens itself is an ordinary user."""
    monkeypatch.setattr(checks, "_least_port", lambda: 1024)
    monkeypatch.setattr(checks, "_taken", lambda *_: 0)
    host = dataclasses.replace(Host.load(ROOT, {}), gateway_port=port)
    found = {check.name: check for check in checks.ports(host, "r1-32b-v100", set(), {"gateway"}, clustered=clustered)}[f"port {port}"]

    assert found.status == status
    assert ("GATEWAY_PORT to 1024 or more" in found.fix) is (status == "failed")

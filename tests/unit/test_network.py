"""Which address of a node the others are given, and why."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import NoReturn

import pytest

from launcher import network
from launcher.errors import Refused, Unavailable

TWO = {"eth0": "10.0.0.1", "ib0": "192.168.1.1"}
HEADER = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\n"
LINK, DEFAULT = "ib0\t0001A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\n", "eth0\t00000000\t0100000A\t0003\t0\t0\t0\t00000000\n"


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A node with two interfaces, whose default route goes through the first, and no names but the head's."""
    (tmp_path / "route").write_text(HEADER + LINK + DEFAULT)
    monkeypatch.setattr(network, "ROUTES", str(tmp_path / "route"))
    monkeypatch.setattr(network, "interfaces", lambda: dict(TWO))
    names = {"head-ib": "192.168.1.1", "service": "10.96.0.7", "10.0.0.1": "10.0.0.1"}

    def lookup(name: str, *_: object) -> list[tuple[object, ...]]:
        if name not in names:
            raise socket.gaierror(-2, "Name or service not known")
        return [(0, 0, 0, "", (names[name], 0))]

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    return monkeypatch


@pytest.mark.parametrize(
    ("interface", "head", "chosen"),
    [
        ("ib0", None, ("192.168.1.1", "ib0", "LAUNCH_INTERFACE says so")),
        ("ib0", "10.0.0.1", ("192.168.1.1", "ib0", "LAUNCH_INTERFACE says so")),
        (None, "head-ib", ("192.168.1.1", "ib0", "the head's name head-ib is this address")),
        (None, "10.0.0.1", ("10.0.0.1", "eth0", "the head's name 10.0.0.1 is this address")),
        (None, "service", ("10.0.0.1", "eth0", "the default route goes there")),  # an address of a load balancer
        (None, "unknown", ("10.0.0.1", "eth0", "the default route goes there")),
        (None, None, ("10.0.0.1", "eth0", "the default route goes there")),
    ],
)
def test_the_heads_address(node: pytest.MonkeyPatch, interface: str | None, head: str | None, chosen: tuple[str, str, str]) -> None:
    """The interface that is asked for, else the one that bears the head's name, else the default route's."""
    assert network.of_head(interface, head) == chosen


def test_the_only_interface_needs_no_route(node: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A node with one address uses it, with a default route and without."""
    node.setattr(network, "interfaces", lambda: {"eth0": "10.0.0.1"})
    assert network.of_head(None, None) == ("10.0.0.1", "eth0", "the only interface")

    (tmp_path / "route").unlink()
    assert network.of_head(None, None) == ("10.0.0.1", "eth0", "the only interface")


@pytest.mark.parametrize(
    ("interface", "here", "message"),
    [
        (None, TWO, r"This node has eth0 \(10.0.0.1\), ib0 \(192.168.1.1\). Set LAUNCH_INTERFACE"),
        (None, {}, "This node has no network interface. Set LAUNCH_INTERFACE"),
        ("ib1", TWO, r"LAUNCH_INTERFACE is ib1, which has no address here. This node has eth0 \(10.0.0.1\), ib0"),
    ],
)
def test_no_address_is_guessed(node: pytest.MonkeyPatch, tmp_path: Path, interface: str | None, here: dict[str, str], message: str) -> None:
    """Without a sign of which address is meant, or with a wrong one, the head names those that there are."""
    (tmp_path / "route").write_text(HEADER + LINK)
    node.setattr(network, "interfaces", lambda: here)

    with pytest.raises(Refused, match=message):
        network.of_head(interface, None)


def test_the_workers_address_is_the_way_to_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker uses the address from which the kernel reaches the head, or the interface that is asked for."""
    assert network.of_worker(None, "127.0.0.1") == ("127.0.0.1", "lo", "the way to the head at 127.0.0.1")

    monkeypatch.setattr(network, "interfaces", lambda: {"eth7": "127.0.0.1"})
    assert network.of_worker(None, "127.0.0.1").interface == "eth7"
    assert network.of_worker("eth7", "10.0.0.1") == ("127.0.0.1", "eth7", "LAUNCH_INTERFACE says so")
    with pytest.raises(Refused, match="LAUNCH_INTERFACE is eth8, which has no address here"):
        network.of_worker("eth8", "10.0.0.1")


def test_no_way_to_the_head_is_not_final(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that comes up late is waited for."""

    class Unreachable(socket.socket):
        def connect(self, _: object) -> NoReturn:
            raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(socket, "socket", Unreachable)

    with pytest.raises(Unavailable, match="there is no way to 192.0.2.1 .Network is unreachable"):
        network.of_worker(None, "192.0.2.1")


def test_names(node: pytest.MonkeyPatch) -> None:
    """A name is resolved, and one that nobody knows, or that cannot be a name, is said to be so."""
    assert network.resolve("head-ib") == "192.168.1.1"
    with pytest.raises(Unavailable, match="the name unknown cannot be looked up .Name or service not known"):
        network.resolve("unknown")
    node.undo()
    with pytest.raises(Unavailable, match="cannot be looked up"):
        network.resolve("x" * 64)  # a label has 63 at most


@pytest.mark.this_machine
def test_interfaces_of_this_machine() -> None:
    """Each interface that the kernel lists with an address is found, and the loopback is left out."""
    found = network.interfaces()

    assert set(found) <= {name for _, name in socket.if_nameindex()} - {"lo"}
    for ip in found.values():
        with socket.socket() as probe:
            probe.bind((ip, 0))  # the address is this machine's own

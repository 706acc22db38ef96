"""Which of this node's addresses the others are to use, and why. IPv4: what Ray and the engines bind."""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple

from launcher.errors import Refused, Unavailable

SIOCGIFADDR = 0x8915
ROUTES = "/proc/net/route"


class Address(NamedTuple):
    """An address of this node, the interface that has it, and why it was chosen."""

    ip: str
    interface: str
    why: str


def interfaces() -> dict[str, str]:
    """Address of every interface that has one, the loopback left out."""
    import fcntl

    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe, SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:
                continue  # it has none
            found[name] = socket.inet_ntoa(answer[20:24])
    return {name: ip for name, ip in found.items() if not ip.startswith("127.")}


def resolve(name: str) -> str:
    """The address of a name, asked anew at each call. Raises Unavailable when nobody knows it."""
    try:
        return str(socket.getaddrinfo(name, None, socket.AF_INET, socket.SOCK_STREAM)[0][4][0])
    except (OSError, UnicodeError) as error:
        raise Unavailable(f"the name {name} cannot be looked up ({getattr(error, 'strerror', None) or error})") from None


def of_head(interface: str | None, head: str | None) -> Address:
    """The address under which workers will find this node. Raises Refused when several would do and nothing decides."""
    if interface:
        return _named(interface)
    here = interfaces()
    if head:
        try:
            ip = resolve(head)
        except Unavailable:
            ip = ""
        for name, own in here.items():
            if own == ip:
                return Address(own, name, f"the head's name {head} is this address")
    gateway = _default_interface()
    if gateway in here:
        return Address(here[gateway], gateway, "the default route goes there" if len(here) > 1 else "the only interface")
    if len(here) == 1:
        ((name, ip),) = here.items()
        return Address(ip, name, "the only interface")
    raise Refused(f"{_choices(here)}. Set LAUNCH_INTERFACE to the one that the other nodes can reach.")


def of_worker(interface: str | None, head_ip: str) -> Address:
    """The address from which this node reaches the head. Raises Refused for an interface that is not there."""
    if interface:
        return _named(interface)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((head_ip, 9))  # no packet is sent: this only asks the routing table
        except OSError as error:
            raise Unavailable(f"there is no way to {head_ip} ({error.strerror})") from None
        ip = probe.getsockname()[0]
    name = next((name for name, own in interfaces().items() if own == ip), "lo")
    return Address(ip, name, f"the way to the head at {head_ip}")


def _named(interface: str) -> Address:
    here = interfaces()
    if interface not in here:
        raise Refused(f"LAUNCH_INTERFACE is {interface}, which has no address here. {_choices(here)}.")
    return Address(here[interface], interface, "LAUNCH_INTERFACE says so")


def _choices(here: dict[str, str]) -> str:
    return "This node has " + (", ".join(f"{name} ({ip})" for name, ip in here.items()) or "no network interface")


def _default_interface() -> str:
    try:
        with open(ROUTES, encoding="utf-8") as file:
            rows = [line.split() for line in file]
    except OSError:
        return ""
    return next((row[0] for row in rows if len(row) > 1 and row[1] == "00000000"), "")

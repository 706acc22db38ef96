"""Checks of this machine that `up` and `doctor` share: ports and secrets. Each says what was found and what mends it."""

from __future__ import annotations

import errno
import getpass
import socket
import stat
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from engineroom.host import Host
from launcher.checks.machine import holder

Status = Literal["ok", "warning", "failed"]
ENGINE_USER, ENGINE_GROUP = 1000, 0  # who reads secrets in a container: images/templates/image.Dockerfile.j2


class Check(NamedTuple):
    """One thing that was looked at. `fix` is a command or a setting that mends it, or the way around it."""

    name: str
    status: Status
    found: str
    fix: str = ""


def ports(
    host: Host, stack: str, running: set[str], profiles: Collection[str] = (), *, router: bool = False, clustered: bool = False
) -> Iterator[Check]:
    """The ports that a stack publishes, with these Compose profiles, must be free, or the stack's own.

    `running` are the services of this checkout that run. `router`: it stands in the engine's place, on a port that can be set apart from an engine's.
    `clustered`: its gateway is on this machine's own network, as an ordinary user.
    """
    api = ("ROUTER_PORT", "127.0.0.1", host.router_port) if router else ("API_PORT", "127.0.0.1", host.api_port)
    published = [(stack, "WEBUI_PORT", "127.0.0.1", host.webui_port), (f"{stack}-engine", *api)]
    if "gateway" in profiles:
        published.append((f"{stack}-gateway", "GATEWAY_PORT", host.gateway_address.strip("[]"), host.gateway_port))
    if "metrics" in profiles:
        published.append((f"{stack}-prometheus", "PROMETHEUS_PORT", "127.0.0.1", host.prometheus_port))
    for service, variable, address, port in published:
        name = f"port {port}"
        if service in running:
            yield Check(name, "ok", f"in use by {service}, as it should be")
            continue
        problem = _taken(address, port)
        if clustered and variable == "GATEWAY_PORT" and port < (least := _least_port()):
            fix = f"Set GATEWAY_PORT to {least} or more in .env, or type: sudo sysctl net.ipv4.ip_unprivileged_port_start={port}"
            yield Check(name, "failed", f"below {least}, where the gateway of a stack of several machines may not listen", fix)
        elif problem == errno.EADDRNOTAVAIL:
            yield Check(name, "failed", f"wanted on {address}, which is no address of this machine", "Correct GATEWAY_ADDRESS in .env.")
        elif problem:
            who = holder(port) or ", by a program that `sudo ss -ltnp` names"
            free = "Free it (make down stops the stacks of this checkout)" if running else "Free it"
            yield Check(name, "failed", f"in use{who}", f"{free}, or set {variable} to another in .env.")
        else:
            yield Check(name, "ok", "free")


def _least_port() -> int:
    """The least port that an ordinary user may listen on."""
    return int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())


def _taken(address: str, port: int) -> int:
    """Why nothing can listen there, as an errno; 0 when it can."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except PermissionError:  # below 1024: Docker may, this user may not
            return 0 if probe.connect_ex(("::1" if probe.family == socket.AF_INET6 else "127.0.0.1", port)) else errno.EADDRINUSE
        except (socket.gaierror, UnicodeError):  # a name that stands for no address, or cannot be one
            return errno.EADDRNOTAVAIL
        except OSError as error:
            return error.errno or errno.EADDRNOTAVAIL
    return 0


def cluster_token(host: Host, stack: str, nodes: int) -> Check:
    """The secret that the nodes of a stack share, which must be there."""
    name, file, folder = "cluster token", host.cluster_token, host.root / "secrets"
    lacking = _lacking(file) if file else "is not set"
    if file and not lacking:
        return _rights(name, "CLUSTER_TOKEN_FILE", file, folder)
    return Check(
        name,
        "failed",
        f"{stack} runs on {nodes} machines, which need a token that they share, and CLUSTER_TOKEN_FILE {lacking}",
        f"install -d -m 700 {folder} && openssl rand -hex 32 > {folder}/cluster-token\n"
        f"Write CLUSTER_TOKEN_FILE={folder}/cluster-token into .env, and copy the file to each machine (docs/two-machines.md).",
    )


def upstream(host: Host) -> Iterator[Check]:
    """What a page in front of another's service must be told: where that is, its model, and its key where it wants one."""
    for variable, value, example in (
        ("UPSTREAM_URL", host.upstream_url, "https://api.deepseek.com/v1"),
        ("UPSTREAM_MODEL", host.upstream_model, "deepseek-reasoner"),
    ):
        if not value:
            yield Check("service", "failed", f"{variable} is not set", f"Write it into .env, for example: {variable}={example}")
    if host.upstream_key:
        yield secret(host, "service key", "UPSTREAM_KEY_FILE", host.upstream_key)
    else:
        yield Check("service key", "ok", "UPSTREAM_KEY_FILE is not set: the service is asked without a key")


def secret(host: Host, name: str, variable: str, file: Path) -> Check:
    """A file that must be there, be readable for the container's user, and not for other users of this machine."""
    if lacking := _lacking(file):
        return Check(name, "failed", f"{variable} {lacking}", f"Write it, or correct {variable} in .env.")
    return _rights(name, variable, file, host.root / "secrets")


def _lacking(file: Path) -> str:
    """Why a file holds no secret; empty when it does, or may not be looked at."""
    try:
        about = file.stat()
    except PermissionError:
        return ""
    except OSError as error:
        return f"names {file}, which cannot be opened: {error.strerror}"
    if not stat.S_ISREG(about.st_mode):
        return f"names {file}, which is no file"
    return "" if about.st_size else f"names {file}, which is empty"


def _rights(name: str, variable: str, file: Path, folder: Path) -> Check:
    """Whether the right users can read a secret. Where not, it goes into our own `folder`: another's rights are not ours to change."""
    try:
        about = file.stat()
    except PermissionError:
        return Check(name, "warning", f"{file} is in a folder that {getpass.getuser()} may not enter", f"sudo ls -l {file}")
    move = f"install -d -m 700 {folder} && install -m 644 {file} {folder}/, and set {variable}={folder}/{file.name} in .env"
    fix = f"chmod 700 {folder} && chmod a+r {file}" if file.parent == folder else move
    if not _readable_inside(about.st_mode, about.st_uid, about.st_gid):
        found = f"{file} (mode {stat.S_IMODE(about.st_mode):o}) cannot be read by the container's user {ENGINE_USER}:{ENGINE_GROUP}"
        return Check(name, "failed", found, fix)
    if about.st_mode & stat.S_IROTH and all(parent.stat().st_mode & stat.S_IXOTH for parent in file.resolve().parents):
        return Check(name, "warning", f"{file} can be read by every user of this machine", fix)
    return Check(name, "ok", str(file))


def _readable_inside(mode: int, user: int, group: int) -> bool:
    """Whether the mode lets the container's user read; the kernel asks the first class that applies."""
    if user == ENGINE_USER:
        return bool(mode & stat.S_IRUSR)
    return bool(mode & (stat.S_IRGRP if group == ENGINE_GROUP else stat.S_IROTH))

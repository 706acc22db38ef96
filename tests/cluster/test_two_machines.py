"""Two machines, one compose file: the real engine on both, by its own multi-node form, the real page, a real browser.

A machine is a container that holds a network of its own; a third one routes between the two, as between two hosts.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import containers
import docker
import pytest
from browser.test_chat import ask, browser, expect_answer, sign_up, visit
from cluster.nodes import IMAGE, ROOT, Node
from demo import free_port
from docker.models.networks import Network
from playwright.sync_api import Browser

from engineroom import build, resolve
from engineroom.catalog import Catalog
from engineroom.host import Host

__all__ = ["browser"]
pytestmark = pytest.mark.containers
STACK = "demo-cpu-two-nodes"


class Machine:
    """A host as far as Compose and its containers can tell: their `network_mode: host` is this one's network."""

    def __init__(self, name: str, image: str, network: Network, folder: Path) -> None:
        self.name, self.network = name, network
        forward = str(ROOT / "tests/cluster/forward.py")
        self.container = docker.from_env().containers.run(
            image, ["sleep", "infinity"], entrypoint="", user="0:0", cap_add=["NET_ADMIN"], detach=True, network=network.name,
            volumes={forward: {"bind": "/forward.py", "mode": "ro"}},
        )  # fmt: skip
        self.ip = Node(self.container).address(network)
        services = "".join(f"  {STACK}{part}: {{ network_mode: 'container:{self.container.id}' }}\n" for part in ("", "-engine", "-worker"))
        self.override = folder / f"{name}.yaml"
        self.override.write_text(f"services:\n{services}")
        token = folder / "token"
        token.write_text("of these two machines")
        token.chmod(0o444)
        catalog = Catalog(ROOT)
        self.env = {
            **os.environ,
            "COMPOSE_PROJECT_NAME": f"engineroom-test-{name}",
            "CLUSTER_TOKEN_FILE": str(token),
            "WEBUI_IMAGE": resolve.tag("webui", catalog.release_of("webui")),
            "WEBUI_PORT": free_port(),
        }

    def compose(self, *arguments: str, **env: str) -> str:
        """A Compose command on this machine."""
        files = ["-f", f"compose/{STACK}.yaml", "-f", str(self.override)]
        command = ["docker", "compose", "--profile", "*", *files, *arguments]
        result = subprocess.run(command, cwd=ROOT, env={**self.env, **env}, capture_output=True, text=True, timeout=600, check=False)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    def node(self, service: str) -> Node:
        """The container of a service."""
        return Node(docker.from_env().containers.get(self.compose("ps", "--all", "--quiet", service).strip()))

    def reaches(self, ip: str, port: int) -> bool:
        """Whether a program on this machine gets a connection."""
        code = f"import socket; socket.create_connection(({ip!r}, {port}), timeout=3)"
        return containers.execute(self.container, "python3", "-c", code)[0] == 0


@pytest.fixture(scope="module")
def machines(ray_image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Machine, Machine]]:
    """Two machines on two networks, and a router between them."""
    build.build(Catalog(ROOT), Host.load(ROOT), ["cpu", "webui"], lambda _: None)
    client, folder, mark = docker.from_env(), tmp_path_factory.mktemp("machines"), uuid.uuid4().hex[:6]
    networks = [client.networks.create(f"engineroom-test-{mark}-{side}") for side in "ab"]
    router = client.containers.run(
        ray_image, ["sleep", "infinity"], entrypoint="", detach=True, network=networks[0].name, sysctls={"net.ipv4.ip_forward": "1"}
    )
    networks[1].connect(router)
    pair = tuple(Machine(f"{mark}-{side}", ray_image, network, folder) for side, network in zip("ab", networks, strict=True))
    for machine, other in (pair, pair[::-1]):
        subnet = other.network.attrs["IPAM"]["Config"][0]["Subnet"] if other.network.attrs["IPAM"]["Config"] else ""
        other.network.reload()
        subnet = subnet or other.network.attrs["IPAM"]["Config"][0]["Subnet"]
        route = ["ip", "route", "add", subnet, "via", Node(router).address(machine.network)]
        assert containers.execute(machine.container, *route)[0] == 0
    yield pair  # type: ignore[misc]
    for machine in pair:
        machine.compose("down", "--volumes", "--timeout", "5")
    for container in (router, *(machine.container for machine in pair)):
        container.remove(force=True, v=True)
    for network in networks:
        network.remove()


def test_two_machines_answer_the_browser(machines: tuple[Machine, Machine], browser: Browser) -> None:
    """`up STACK` here and `up STACK-worker` there: the page answers with half of the model on either machine."""
    first, second = machines
    first.compose("up", "--detach", "--no-build", f"{STACK}-engine")
    head = first.node(f"{STACK}-engine")
    head.wait_for("waiting for nodes: have 1 of 2 nodes")
    second.compose("up", "--detach", "--wait", "--no-build", f"{STACK}-worker", LAUNCH_HEAD=first.ip)
    first.compose("up", "--detach", "--wait", "--no-build", STACK)
    port = first.env["WEBUI_PORT"]

    assert "--tensor-parallel-size 2" in head.logs
    assert not second.reaches(first.ip, 8000)
    assert not second.reaches(first.ip, int(port))
    containers.execute(first.container, "python3", "/forward.py", "0.0.0.0", "9999", "127.0.0.1", port, options=("--detach",))
    tunnel = subprocess.Popen([sys.executable, ROOT / "tests/cluster/forward.py", "127.0.0.1", port, first.ip, "9999"])
    try:
        page = visit(browser, f"http://localhost:{port}")
        sign_up(page)
        ask(page)
        expect_answer(page)
    finally:
        tunnel.terminate()


@pytest.mark.fault(3)
def test_fault_03_engine_process_dies_on_the_other_machine(machines: tuple[Machine, Machine]) -> None:
    """The engine's process on the second machine is killed: both nodes end within 30 s, and their restart policy brings the stack back."""
    first, second = machines
    head, worker = first.node(f"{STACK}-engine"), second.node(f"{STACK}-worker")
    began = time.monotonic()
    processes = f"container:{worker.container.id}"
    containers.run(IMAGE, ["-KILL", "-f", "VLLM::Worker"], entrypoint="pkill", user="0:0", pid_mode=processes, cap_add=["KILL"])
    worker.wait_for(r"ERROR \[launch\]", 30)
    head.wait_for(r"ERROR \[launch\]", 30)
    print(f"both noticed after {time.monotonic() - began:.1f} s (bound 30)")

    head.wait_for("(?s)ready after.*ready after", 300)
    assert head.container.attrs["RestartCount"] == 1


def test_the_first_machine_stops(machines: tuple[Machine, Machine]) -> None:
    """`stop` on the first machine ends both with 0, and the second does not come back by itself."""
    first, second = machines
    worker = second.node(f"{STACK}-worker")
    first.compose("stop")

    assert worker.exit_code(20) == 0, worker.logs
    assert "the head has stopped on request" in worker.logs

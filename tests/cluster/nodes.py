"""Nodes as containers on a network of their own: real Ray, the real launcher, and a stub engine."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import containers
import docker
import pytest
from checkpoints import small_model
from docker.models.containers import Container
from docker.models.networks import Network

from engineroom import build, resolve
from engineroom.catalog import Catalog
from engineroom.host import Host

ROOT = Path(__file__).parents[2]
RELEASE = "vllm-0.25.1"  # its Ray is the newest that an image has
PACKAGES = [
    "attrs",
    "certifi",
    "charset-normalizer",
    "click",
    "filelock",
    "grpcio",
    "idna",
    "jsonschema",
    "jsonschema-specifications",
    "msgpack",
    "packaging",
    "protobuf",
    "pyyaml",
    "ray",
    "referencing",
    "requests",
    "rpds-py",
    "typing-extensions",
    "urllib3",
]
IMAGE = "engineroom-test:ray"
TOKEN = "a-token-of-these-tests"
FACTS = {
    "image": "stub", "engine": "vllm", "release": "stub", "version": "0", "precision": "auto", "gpus": {"cpu": 0}, "cuda": "",
    "min_driver": "", "executors": ["ray", "native"], "model": "/model", "model_name": "stub", "args": {}, "env": {},
}  # fmt: skip


def build_image(folder: Path) -> str:
    """The name of an image with Ray of a pinned release, built from its lock; needs a folder for what is made on the way."""
    catalog, host = Catalog(ROOT), build.ensure_base(Host.load(ROOT), lambda _: None)
    context, secrets = folder / "context", folder / "secrets"
    context.mkdir()
    secrets.mkdir()
    locked = dict(resolve.locked((ROOT / f"images/locks/{RELEASE}.txt").read_text()))
    (context / "requirements.txt").write_text("".join(locked[name] for name in PACKAGES))
    shutil.copy(Path(__file__).with_name("Dockerfile"), context)
    settings = build.target_settings(catalog.releases[RELEASE], host, secrets)
    command = ["docker", "buildx", "build", "--progress=plain", "--load", "--tag", IMAGE, "--build-context", f"images={ROOT / 'images'}"]
    for secret in settings["secret"]:
        command += ["--secret", secret]
    command += ["--build-arg", f"BASE_IMAGE={settings['args'].get('BASE_IMAGE') or resolve.BASE_IMAGE}", str(context)]
    build.run(IMAGE, command, ROOT, lambda _: None)
    return IMAGE


class Node:
    """One container of a stack."""

    def __init__(self, container: Container) -> None:
        self.container = container
        self.began = time.monotonic()

    @property
    def logs(self) -> str:
        return self.container.logs().decode("utf-8", "replace")

    def address(self, network: Network) -> str:
        """Its address in a network."""
        self.container.reload()
        return str(self.container.attrs["NetworkSettings"]["Networks"][network.name]["IPAddress"])

    def wait_for(self, text: str, seconds: float = 90) -> float:
        """Wait until the log holds a text; returns the seconds that it took."""
        began = time.monotonic()
        while not re.search(text, self.logs):
            self.container.reload()
            assert self.container.status in ("running", "restarting") or re.search(text, self.logs), self.logs
            assert time.monotonic() - began < seconds, f"no {text!r} after {seconds} s:\n{self.logs}"
            time.sleep(0.2)
        return time.monotonic() - began

    def exit_code(self, seconds: float) -> int:
        """Wait for the end; more than `seconds` is a failure."""
        try:
            return int(self.container.wait(timeout=seconds)["StatusCode"])
        except Exception:  # noqa: BLE001 - whatever the client calls a time-out
            pytest.fail(f"still running after {seconds} s:\n{self.logs}")

    def run(self, *command: str, check: bool = True, detach: bool = False) -> str:
        """Run a program in the container; its output, unless it goes on by itself."""
        code, text = containers.execute(self.container, *command, options=("--detach",) if detach else ())
        assert not check or code == 0, text
        return text

    def kill(self, name: str) -> None:
        """SIGKILL all processes of this name in the container."""
        self.run("pkill", "-KILL", "-x", name)

    def cut(self) -> None:
        """Cut its network without a word, as a broken switch does: no packet in or out, no connection closed."""
        for chain in ("INPUT", "OUTPUT"):
            self.privileged("iptables", "-w", "-A", chain, "!", "-i" if chain == "INPUT" else "-o", "lo", "-j", "DROP")

    def privileged(self, *command: str) -> str:
        """Run a program in the container's network with rights over it."""
        network = f"container:{self.container.id}"
        return containers.run(IMAGE, list(command[1:]), entrypoint=command[0], user="0:0", cap_add=["NET_ADMIN"], network_mode=network)

    def get(self, path: str) -> tuple[int, str]:
        """Ask its API from inside, as the page does."""
        code = (
            "import sys, urllib.request, urllib.error\n"
            "try: r = urllib.request.urlopen('http://127.0.0.1:8000' + sys.argv[1], timeout=10); print(r.status); print(r.read().decode())\n"
            "except urllib.error.HTTPError as e: print(e.code)\n"
            "except OSError as e: print(0); print(e)"
        )
        status, _, text = self.run("python3", "-c", code, path).partition("\n")
        return int(status), text


class Stack:
    """Containers on one network, started in any order; the head is called `head` there."""

    def __init__(self, image: str, folder: Path, network: Network) -> None:
        self.image, self.folder, self.network = image, folder, network
        self.nodes: list[Node] = []
        self.model = small_model(folder / "model")
        self.facts = folder / "image.json"
        self.facts.write_text(json.dumps(FACTS))

    def start(self, role: str, *, network: Network | None = None, options: dict[str, Any] | None = None, **env: str) -> Node:
        """Start a node. Environment beside what every node of these tests has."""
        client = docker.from_env()
        settings = {
            "LAUNCH_ROLE": role,
            "LAUNCH_NODES": "2",
            "LAUNCH_GPUS": "1",  # for the stub, which never looks at them: Ray counts them
            "LAUNCH_CLUSTER_TOKEN": TOKEN,
            "LAUNCH_IMAGE": "/image.json",
            "LAUNCH_MODEL": "/model",
            "LAUNCH_PROBE_SECONDS": "2",
            **({"LAUNCH_HEAD": "head"} if role == "worker" else {}),
            **env,
        }
        container = client.containers.create(
            self.image,
            environment={name: value for name, value in settings.items() if value != "-"},
            volumes={
                str(ROOT / "entrypoints/launcher"): {"bind": "/opt/launcher/launcher", "mode": "ro"},
                str(ROOT / "entrypoints/launch"): {"bind": "/usr/local/bin/launch", "mode": "ro"},
                str(ROOT / "tests/stubs"): {"bind": "/stubs", "mode": "ro"},
                str(self.facts): {"bind": "/image.json", "mode": "ro"},
                str(self.model): {"bind": "/model", "mode": "ro"},
            },
            shm_size="1g",
            read_only=True,
            tmpfs={"/tmp": "exec"},
            cap_drop=["ALL"],
            security_opt=["no-new-privileges"],
            network=self.network.name,
            **(options or {}),
        )
        client.api.disconnect_container_from_network(container.id, self.network.name)
        client.api.connect_container_to_network(container.id, (network or self.network).name, aliases=[role] if role == "head" else [])
        container.start()
        self.nodes.append(Node(container))
        return self.nodes[-1]

    def both(self, **env: str) -> tuple[Node, Node]:
        """A head and a worker, ready."""
        head, worker = self.start("head", **env), self.start("worker", **env)
        head.wait_for("ready after")
        return head, worker


@contextlib.contextmanager
def empty_stack(image: str, folder: Path) -> Iterator[Stack]:
    """A stack on a network of its own; removed with all that it started."""
    network = docker.from_env().networks.create(f"engineroom-test-{uuid.uuid4().hex[:8]}")
    made = Stack(image, folder, network)
    try:
        yield made
    finally:
        for node in made.nodes:
            node.container.remove(force=True, v=True)
        network.remove()

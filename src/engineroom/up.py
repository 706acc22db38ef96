"""Bring a stack up and wait until it answers: the way from nothing to a chat page, in phases that can be interrupted anywhere."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from functools import partial
from typing import Any

from docker.errors import NotFound
from docker.models.containers import Container

from engineroom import build, checks, resolve, running, stacks
from engineroom.catalog import Catalog
from engineroom.errors import CatalogError, EngineRoomError, ServiceUnavailable, TryAgain
from engineroom.host import Host
from launcher import network
from launcher.errors import LaunchError

PAGE_SECONDS = 300
LAST_LINES = 60  # the launcher's own words, and the fifty lines of the engine's that it quotes
Say = Callable[[str], None]


class Bringup:
    """One stack on this machine. Each phase can be repeated; what is there already is used."""

    def __init__(self, catalog: Catalog, host: Host, stack: str, say: Say) -> None:
        """`say` gets progress lines. Raises UnknownName or CannotBuild for a stack that there is not."""
        self.catalog, self.host, self.name, self.say = catalog, host, stack, say
        self.row = catalog.stack(stack)
        self.image, self.nodes, self.serving = self.row.image, self.row.nodes, f"model {self.row.model}"

    @property
    def added(self) -> dict[str, str]:
        """The profiles that are switched on and add something to this stack, with their images."""
        return {profile: image for profile, image in stacks.profiles(self.catalog, self.name).items() if profile in self.host.profiles}

    def docker(self) -> None:
        """Make sure of a working Docker engine with Compose and buildx."""
        result = subprocess.run([self.host.root / "scripts" / "docker-engine"], stderr=subprocess.PIPE, text=True, check=False)
        for line in result.stderr.splitlines():
            self.say(line)
        if result.returncode:
            raise ServiceUnavailable(result.stderr.strip().removeprefix("docker-engine: "))

    def token(self) -> None:
        """The secret that the nodes of a stack share, before anything is built for them. Raises CatalogError when there is none."""
        check = checks.cluster_token(self.host, self.name, self.nodes)
        if check.status == "failed":
            raise CatalogError(f"{check.found}.\nType: {check.fix}")

    def ports(self) -> None:
        """The ports that are to be published must be free, or be ours already."""
        running = set(self._compose("ps", "--services", quiet=True).split())
        for check in checks.ports(
            self.host, self.name, running, self.added, router=self.name in self.catalog.upstream_stacks, clustered=self.nodes > 1
        ):
            if check.status == "failed":
                raise EngineRoomError(f"{check.name.capitalize()} is {check.found}. {check.fix}")

    def base(self) -> None:
        """A base image that this machine can build on."""
        if self.catalog.release_of(self.image).install == "wheels":
            self.host = build.ensure_base(self.host, self.say)

    def engine_image(self) -> None:
        """The stack's image."""
        self._own_image(self.image)

    def _own_image(self, image: str) -> None:
        """An image of ours: from the registry that is set, else built here."""
        name = resolve.tag(image, self.catalog.release_of(image))
        if self.host.registry:
            name = self.host.registry + name
            if problem := build.pull_problem(name, self.say):
                if not build.have(name):
                    raise ServiceUnavailable(f"{problem}\nENGINEROOM_REGISTRY may name another registry; unset, the image is built here.")
                self.say(problem)
                self.say(f"going on with {name} as it is")
            return
        self._build(image)

    def page_image(self) -> None:
        """Open WebUI's published image where it can be pulled, else ours, which `.env` then names."""
        release = self.catalog.release_of(resolve.PAGE_IMAGE)
        own = resolve.tag(resolve.PAGE_IMAGE, release)
        if self.host.webui_image not in ("", own) or (
            not self.host.webui_image and (build.have(release.published) or not build.pull_problem(release.published, self.say))
        ):
            return
        self._build(resolve.PAGE_IMAGE)
        if not self.host.webui_image:
            self.host.remember("WEBUI_IMAGE", own)
            self.say(f"the published page cannot be pulled here: .env now says WEBUI_IMAGE={own}")

    def engine(self) -> None:
        """Start the server and wait until a token comes out of it."""
        self._compose("up", "--detach", "--no-deps", f"{self.name}-engine")
        if self.nodes > 1:
            print(self.elsewhere(), file=sys.stderr, flush=True)
        model = self.catalog.models[self.row.model]
        self._wait(f"{self.name}-engine", stacks.healthy_seconds(self.row, model.bytes) + 60)

    def page(self) -> None:
        """Start the page and wait until it answers."""
        # without the other profiles: Compose makes a container anew when what it depends on changes, and its visitors would notice
        self._compose("--profile", self.name, "up", "--detach", self.name)
        self._wait(self.name, PAGE_SECONDS)

    def add(self, service: str) -> None:
        """Start one more service and wait until it works."""
        self._compose("up", "--detach", "--no-deps", service)
        self._wait(service, PAGE_SECONDS)

    def phases(self) -> list[tuple[str, Callable[[], None]]]:
        """All phases in order, each with its name for people."""
        return [
            ("Docker engine", self.docker),
            *([("token of the nodes", self.token)] if self.nodes > 1 else []),
            ("ports", self.ports),
            ("base image", self.base),
            (f"image {self.image}", self.engine_image),
            (f"image {resolve.PAGE_IMAGE}", self.page_image),
            *((f"image {image}", partial(self._own_image, image)) for image in self.added.values()),
            (self.serving, self.engine),
            ("chat page", self.page),
            *((service, partial(self.add, f"{self.name}-{service}")) for service in self.added.values()),
        ]

    def elsewhere(self) -> str:
        """What to type on the other machines of a stack, with the address under which its head, on this one, will be found."""
        settings = self._config()["services"][f"{self.name}-engine"]["environment"]
        try:
            address = network.of_head(settings["LAUNCH_INTERFACE"], settings["LAUNCH_HEAD"]).ip
        except LaunchError:  # the head is refused for the same reason, and says so
            address = "<address of this machine>"
        return f"""Waiting for {self.nodes - 1} more. On each other machine, with the same token file, type:
  LAUNCH_HEAD={address} docker compose up {self.name}-worker"""

    def ending(self) -> str:
        """What to do with it now: the page, how to sign in, a request that can be pasted, and how to stop."""
        return self._ending(self.host.api_port, stacks.api_name(self.catalog, self.row))

    def _ending(self, port: int, model: str) -> str:
        key = (
            "Sign in with the account that you made."
            if self._has_account()
            else "The first account that signs up owns the page; after it, sign-up is closed."
            + (" Others reach it already: make it now." if "gateway" in self.added else "")
        )
        body = json.dumps({"model": model, "stream": True, "messages": [{"role": "user", "content": "What is 348 + 275?"}]})
        return f"""
Chat    http://localhost:{self.host.webui_port}
        {key}
API     curl -sN --noproxy localhost http://localhost:{port}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'
{self._others()}Stop    make down
"""

    def _others(self) -> str:
        """Where others come in, and where the figures are, as far as they are switched on."""
        found = ""
        if "gateway" in self.added:
            keys = f"in {self.host.gateway_keys}" if self.host.gateway_keys else f"docker compose exec {self.name}-gateway cat /data/keys"
            found += f"Others  https://{self._address()}:{self.host.gateway_port} has both; a key for the API: {keys}\n"
        if "metrics" in self.added:
            found += f"Metrics http://localhost:{self.host.prometheus_port}\n"
        return found

    def _address(self) -> str:
        """The gateway's address, or for one that listens on all of this machine's the one that others probably know."""
        if self.host.gateway_address not in ("0.0.0.0", "[::]", "::"):  # noqa: S104
            return self.host.gateway_address
        try:
            return network.of_head("", "").ip
        except LaunchError:
            return socket.gethostname()

    def _build(self, image: str) -> None:
        """Build an image; where something cannot be reached, the one that is there serves."""
        name = resolve.tag(image, self.catalog.release_of(image))
        try:
            build.build(self.catalog, self.host, [image], self.say)
        except ServiceUnavailable as error:
            if not build.have(name):
                raise
            self.say(f"{error} Going on with {name} as it is.")

    def _has_account(self) -> bool:
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # the page is on this machine, whatever proxy is set
        try:
            with direct.open(f"http://localhost:{self.host.webui_port}/api/config", timeout=10) as response:
                return not json.load(response).get("onboarding", False)
        except (OSError, ValueError):
            return False

    def _container(self, service: str) -> Container | None:
        result = self._compose("ps", "--all", "--quiet", service, quiet=True)
        try:
            return build.client().containers.get(result.split()[0]) if result.split() else None
        except NotFound:
            return None

    def _wait(self, service: str, seconds: float) -> None:
        """Wait until a container is healthy, passing its log on. Raises when it ends or takes too long."""
        container = self._container(service)
        if container is None:
            raise EngineRoomError(f"{service} was not created. Type: docker compose up {service}")
        deadline, since, restarts = time.monotonic() + seconds, int(time.time()) - 1, container.attrs["RestartCount"]
        while time.monotonic() < deadline:
            container.reload()
            state = container.attrs["State"]
            if state.get("Health", {}).get("Status") == "healthy":
                return
            if state["Status"] in ("exited", "dead") or container.attrs["RestartCount"] > restarts:
                tail = container.logs(tail=LAST_LINES).decode("utf-8", "replace").rstrip()
                status = "and was started again" if state["Status"] == "running" else f"with status {state['ExitCode']}"
                raise EngineRoomError(f"{service} ended {status}. Its last lines:\n{tail}")
            now = int(time.time())
            for line in container.logs(since=since, until=now).decode("utf-8", "replace").splitlines() if now > since else ():
                self.say(line)
            since = now
            time.sleep(1)
        raise TryAgain(f"{service} is not ready after {seconds:.0f} s. It goes on by itself: docker compose logs --follow {service}")

    def _config(self) -> dict[str, Any]:
        """What Compose makes of the stack with the settings of this machine."""
        found: dict[str, Any] = json.loads(self._compose("--profile", self.name, "config", "--format", "json", quiet=True))
        return found

    def _compose(self, *arguments: str, quiet: bool = False) -> str:
        env = {**os.environ, "COMPOSE_PROFILES": ",".join(sorted(self.host.profiles))}
        result = subprocess.run(["docker", "compose", *arguments], cwd=self.host.root, env=env, capture_output=True, text=True, check=False)
        if result.returncode:
            raise EngineRoomError(f"docker compose {' '.join(arguments)} failed:\n{result.stderr.strip()}")
        if not quiet:
            for line in result.stderr.splitlines():
                self.say(line.strip())
        return result.stdout


class UpstreamBringup(Bringup):
    """A page in front of another's service: a router in the engine's place, and nothing to wait for but its start."""

    def __init__(self, catalog: Catalog, host: Host, stack: str, say: Say) -> None:
        """`stack` is one of `Catalog.upstream_stacks`."""
        self.catalog, self.host, self.name, self.say = catalog, host, stack, say
        self.image, self.nodes, self.serving = catalog.upstream_stacks[stack].image, 1, "router"

    def engine(self) -> None:
        """Start the router; one whose settings are wrong ends, and its words are shown."""
        self.add(f"{self.name}-engine")

    def ending(self) -> str:
        """What to do with it now, as for a stack with an engine."""
        router = self._config()["services"][f"{self.name}-engine"]
        published = router.get("ports") or [{"published": self.host.api_port}]  # a file of the user's own may close it: docs/gateway.md
        return self._ending(published[0]["published"], router["environment"]["UPSTREAM_MODEL"])


def logs(catalog: Catalog, host: Host, stack: str, *, follow: bool = False, tail: int | None = None) -> None:
    """Print what the containers of a stack have written. Raises ServiceUnavailable when there are none."""
    catalog.any_stack(stack)
    services = list(running.containers(catalog, host, stack).get(stack, {}))
    if not services:
        raise ServiceUnavailable(f"{stack} has no container here. Type: make up STACK={stack}")
    options = [*(["--follow"] if follow else []), *(["--tail", str(tail)] if tail else [])]
    with contextlib.suppress(KeyboardInterrupt):
        subprocess.run(["docker", "compose", "--profile", "*", "logs", *options, *services], cwd=host.root, check=False)


def down(host: Host, *, volumes: bool = False) -> None:
    """Stop and remove every container of this project; chats and caches stay unless `volumes`."""
    build.require_docker()
    result = subprocess.run(
        ["docker", "compose", "--profile", "*", "down", *(["--volumes"] if volumes else [])], cwd=host.root, check=False
    )
    if result.returncode:
        raise EngineRoomError("docker compose down failed; see above.")

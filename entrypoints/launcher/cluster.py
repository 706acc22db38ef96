"""Bring-up and watch of a stack of several nodes: what a head and what a worker do beside running an engine.

The supervisor calls `bring_up` in a thread of its own; what happens afterwards comes to it as `fail`, `leave` and `end`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Protocol

from launcher import network, processes, raynode
from launcher.engines import ENGINES
from launcher.errors import EngineDied, LaunchError, Refused, StartTimeout, Unavailable
from launcher.peers import Channel, Hub, Member, Message, Peer, join
from launcher.plan import Cluster, LaunchPlan

RAY_SECONDS = 120.0  # for one try of `ray start`, which gives up by itself after some 30


class Child(Protocol):
    """A process that the supervisor has started."""

    status: int | None

    def wait(self, seconds: float) -> bool:
        """Whether it has ended within so many seconds."""
        ...

    def output(self) -> str:
        """Its last lines."""
        ...


class Supervisor(Protocol):
    """What a node needs of the launcher's main loop. All may be called from any thread."""

    def spawn(self, command: list[str], environment: dict[str, str], *, quiet: bool = False) -> Child:
        """Start a process."""
        ...

    def guard(self, essential: dict[int, str]) -> None:
        """From now on the end of any of these processes is a failure; none when empty."""
        ...

    def fail(self, error: LaunchError) -> None:
        """End everything; the first error counts."""
        ...

    def leave(self, cause: str) -> None:
        """A peer goes: finish what runs, then end."""
        ...

    def end(self, cause: str) -> None:
        """The head has ended on request: so does this node."""
        ...

    def ending(self) -> None:
        """The head has begun to stop."""
        ...

    def phase(self, word: str) -> None:
        """What this node does now, for `launch health`."""
        ...

    def started(self) -> None:
        """Tokens come out: what this node's engine took for it."""
        ...


class Node:
    """What head and worker have in common."""

    def __init__(self, plan: LaunchPlan, cluster: Cluster, token: str, say: Callable[[str], None]) -> None:
        """Nothing is contacted yet."""
        self.plan, self.cluster, self.token, self.say = plan, cluster, token, say
        self.channel = Channel(cluster.port, token, cluster.peer_seconds, say)
        self.address = network.Address("", "", "")

    def environment(self) -> dict[str, str]:
        """Variables for Ray and for the engine on this node; what the user has set stays."""
        here = self.address
        found = {**ENGINES[self.plan.engine].cluster_environment(here.ip), "GLOO_SOCKET_IFNAME": here.interface}
        if self.cluster.interface:  # else NCCL's own choice, which knows InfiniBand
            found["NCCL_SOCKET_IFNAME"] = here.interface
        found = {name: value for name, value in found.items() if name not in os.environ}
        return {**found, **(raynode.environment(self.token) if self.cluster.executor == "ray" else {})}

    def engine(self, rank: int, head: str) -> tuple[list[str], dict[str, str]]:
        """The engine's command and added environment on this node."""
        plan, cluster = self.plan, self.cluster
        if cluster.executor == "ray":
            return plan.command, {**plan.environment, **self.environment(), "RAY_ADDRESS": f"{head}:{cluster.port + raynode.GCS}"}
        line = ENGINES[plan.engine].native(cluster.nodes, rank, head, cluster.port + raynode.MASTER)
        return [*plan.command, *line], {**plan.environment, **self.environment()}

    def start_ray(self, supervisor: Supervisor, head: str | None) -> None:
        """`ray start`, again when a slow machine runs into Ray's own deadline. Raises Refused, StartTimeout or Unavailable."""
        store = raynode.store_bytes()
        command = raynode.command(head=head, ip=self.address.ip, port=self.cluster.port, gpus=self.cluster.gpus, store=store)
        environment = {**self.plan.environment, **self.environment()}
        output = ""
        for number in range(1, raynode.START_TRIES + 1):
            began = time.monotonic()
            child = supervisor.spawn(command, environment, quiet=True)
            if child.wait(RAY_SECONDS) and child.status == 0:
                essential = processes.named(raynode.ESSENTIAL)
                supervisor.guard(essential)
                self.leash = processes.leash()
                wanted = raynode.ESSENTIAL[0 if head is None else 1 :]
                if not set(wanted) <= set(essential.values()) or any(not os.path.exists(f"/proc/{pid}") for pid in list(essential)):
                    raise EngineDied("Ray has started on this node, and its processes are gone already.")
                self.say(f"Ray runs on {self.address.ip} after {time.monotonic() - began:.1f} s")
                return
            output = child.output()
            processes.kill_descendants()
            if "AuthToken" in output or "AuthenticationError" in output:
                raise Refused(f"Ray refuses the cluster's token; give every node the same LAUNCH_CLUSTER_TOKEN.\nIts last words:\n{output}")
            last = output.splitlines()[-1].strip(" |")
            self.say(f"Ray did not start in {time.monotonic() - began:.0f} s, try {number} of {raynode.START_TRIES}: {last}")
        from launcher.explain import explain  # only when something is wrong

        known = explain(output.splitlines())
        why = f"{known.cause}\n{known.fix}" if known else "A machine that is too busy is the usual cause: Ray gives itself 30 s."
        raise StartTimeout(f"Ray did not start on this node in {raynode.START_TRIES} tries. {why}\nIts last words:\n{output}")


class Head(Node):
    """The node with the API."""

    def bring_up(self, supervisor: Supervisor) -> tuple[list[str], dict[str, str]]:
        """Wait until every node is there; returns the engine's command and environment. Raises Unavailable at the deadline."""
        cluster, began = self.cluster, time.monotonic()
        self.address = network.of_head(cluster.interface, cluster.head)
        self.hub = Hub(self.channel, cluster.nodes, cluster.gpus, cluster.agreed)
        self.hub.on_said = lambda peer, message: self._hear(supervisor, peer, message)
        self.hub.on_lost = lambda peer, cause: self._lost(supervisor, peer, cause)
        self.hub.listen(self.address.ip, {"ip": self.address.ip})
        self.say(
            f"head at {self.address.ip} on {self.address.interface} ({self.address.why}), port {cluster.port}; waiting for {cluster.nodes - 1} more"
        )
        if cluster.executor == "ray":
            self.start_ray(supervisor, None)
            self.hub.welcome["ray"] = True
            self.hub.tell({"say": "ray"})
        self.hub.wait(began, cluster.join_seconds)
        self.say(f"cluster complete after {time.monotonic() - began:.1f} s: {self.hub.state()}")
        self.hub.tell({"say": "complete"})
        return self.engine(0, self.address.ip)

    def follow(self, supervisor: Supervisor) -> None:
        """The head follows nobody."""

    def ready(self) -> None:
        """Tokens come out."""
        self.hub.tell({"say": "ready"})

    def close(self, cause: str, *, asked: bool) -> None:
        """The last word to the workers."""
        if hasattr(self, "hub"):
            self.hub.close(cause, asked=asked)

    def suspect(self) -> LaunchError | None:
        """The worker to blame when no token comes out."""
        silent = self.hub.silent()
        return _lost(silent) if silent else None

    def stopping(self) -> bool:
        """Tell the workers that the end begins. Whether to wait for the head: this is the head."""
        if hasattr(self, "hub"):
            self.hub.tell({"say": "stopping"})
        return False

    def _hear(self, supervisor: Supervisor, peer: Peer, message: Message) -> None:
        if message.get("say") == "stopping":
            supervisor.leave(f"{peer} was asked to stop")

    def _lost(self, supervisor: Supervisor, peer: Peer, cause: str) -> None:
        self.say(f"{peer} is lost: {cause}")
        if self.hub.complete:
            supervisor.fail(_lost(f"{peer}: {cause}"))


class Worker(Node):
    """Any other node."""

    member: Member | None = None
    complete = False

    def bring_up(self, supervisor: Supervisor) -> tuple[list[str], dict[str, str]]:
        """Join the head, again when it goes before all are there; returns the follower's command (none with Ray) and environment."""
        cluster = self.cluster
        head = cluster.head or ""
        deadline = time.monotonic() + cluster.join_seconds
        hello: Message = {"name": os.uname().nodename, "gpus": cluster.gpus, "rank": cluster.rank, **cluster.agreed}
        self.say(f"looking for the head {head}, port {cluster.port}, for {cluster.join_seconds:g} s")
        while True:
            self.member = join(self.channel, head, hello, deadline)
            deadline = time.monotonic() + cluster.join_seconds  # the head is there: what it waits for has its own deadline
            try:
                return self._until_complete(supervisor, self.member)
            except Unavailable as error:
                self.member.close()
                supervisor.guard({})
                processes.kill_descendants()
                self.say(f"{error}; looking for it again")

    def _until_complete(self, supervisor: Supervisor, member: Member) -> tuple[list[str], dict[str, str]]:
        cluster = self.cluster
        self.address = network.of_worker(cluster.interface, member.ip)
        head = str(member.welcome["ip"])
        self.say(f"node {member.rank} of {cluster.nodes} at {self.address.ip} on {self.address.interface} ({self.address.why})")
        ray = cluster.executor == "ray"
        joined = not ray or bool(member.welcome.get("ray"))
        if joined:
            self._join(supervisor, member, head)
        for message in member.messages():
            word = message.get("say")
            if word == "ray" and not joined:
                joined = True
                self._join(supervisor, member, head)
            elif word == "complete":
                self.complete = True
                self.say(f"cluster complete: {cluster.nodes} nodes")
                return self.engine(member.rank, head)
            elif word == "end":
                raise Unavailable(f"the head ended before the cluster was complete: {message.get('cause')}")
        raise AssertionError  # messages() ends by an error only

    def _join(self, supervisor: Supervisor, member: Member, head: str) -> None:
        if self.cluster.executor == "ray":
            try:
                self.start_ray(supervisor, head)
            except StartTimeout:
                if member.deaf:
                    raise Unavailable(f"the head at {member.ip} went while Ray started here") from None
                raise
        member.tell({"say": "joined"})

    def follow(self, supervisor: Supervisor) -> None:
        """Listen to the head until it ends. Raises Unavailable with its cause, unless somebody wanted the end."""
        assert self.member  # noqa: S101 - bring_up has returned
        for message in self.member.messages():
            word = message.get("say")
            if word == "ready":
                supervisor.phase("worker ready")
                supervisor.started()
                self.say("the head is ready")
            elif word == "stopping":
                supervisor.ending()
            elif word == "end" and message.get("asked"):
                supervisor.end("the head has stopped on request")
                return
            elif word == "end":
                raise Unavailable(f"The head ended: {str(message.get('cause')).splitlines()[0]}")

    def ready(self) -> None:
        """Nothing to say: the head says it."""

    def suspect(self) -> LaunchError | None:
        """Nobody: a worker asks for no tokens."""
        return None

    def close(self, cause: str, *, asked: bool) -> None:  # noqa: ARG002 - one form for head and worker
        """The last word to the head."""
        if self.member:
            self.member.close(cause)

    def stopping(self) -> bool:
        """Tell the head that this node was asked to stop. Whether to wait for it: it may need this node for what still runs."""
        if self.member and self.complete:
            self.member.tell({"say": "stopping"})
            return True
        return False


def _lost(what: str) -> Unavailable:
    return Unavailable(f"The stack has lost {what.rstrip('.')}. Every node of it ends, so that it can be started again as a whole.")

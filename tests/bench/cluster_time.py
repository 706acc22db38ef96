"""Nodes that meet: from "all containers started" to "cluster complete", against what Ray alone takes in the same containers.

Ray's own time is the sum of `ray start --head` and of `ray start` on all workers at once, with the launcher's own options.
"""

from __future__ import annotations

import concurrent.futures
import tempfile
import time
from pathlib import Path

from cluster.nodes import TOKEN, Node, build_image, empty_stack

from launcher import raynode

STORE = 100 << 20  # bytes of Ray's object store: as much in both


def ours(image: str, nodes: int) -> float:
    """Seconds until the head says that the cluster is complete."""
    with tempfile.TemporaryDirectory() as folder, empty_stack(image, Path(folder)) as stack:
        for role in ("head", *["worker"] * (nodes - 1)):
            stack.start(role, LAUNCH_NODES=str(nodes))
        began = time.monotonic()
        stack.nodes[0].wait_for("cluster complete", 300)
        return time.monotonic() - began


def ray_alone(image: str, nodes: int) -> float:
    """Seconds of `ray start` on the head and then on all workers at once."""
    with tempfile.TemporaryDirectory() as folder, empty_stack(image, Path(folder)) as stack:
        idle = {"entrypoint": ["tini", "--"], "command": ["sleep", "infinity"]}
        for role in ("head", *["worker"] * (nodes - 1)):
            stack.start(role, options=idle, **raynode.environment(TOKEN))
        head, *workers = stack.nodes
        began = time.monotonic()
        start(head, None)
        with concurrent.futures.ThreadPoolExecutor(nodes) as pool:
            list(pool.map(lambda worker: start(worker, head.address(stack.network)), workers))
        return time.monotonic() - began


def start(node: Node, head: str | None) -> None:
    """`ray start` as the launcher writes it."""
    ip = node.run("hostname", "-i").strip()
    node.run(*raynode.command(head=head, ip=ip, port=6370, gpus=1, store=STORE))


def measure(folder: Path, nodes: int, runs: int) -> tuple[list[float], list[float]]:
    """Both in turn, in seconds."""
    image = build_image(folder)
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(runs):
        times[0].append(ours(image, nodes))
        times[1].append(ray_alone(image, nodes))
    return times

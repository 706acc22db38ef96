"""Nodes that meet: every start order, real Ray, one command on each."""

from __future__ import annotations

import re
import time

import pytest
from cluster.nodes import Stack

pytestmark = pytest.mark.containers


def workers_of_engine(logs: str) -> list[str]:
    """The addresses on which the engine found its Ray workers."""
    found = re.search(r"stub: ray workers on \[(.*)\]", logs)
    return found.group(1).replace("'", "").split(", ") if found else []


def test_head_first(stack: Stack) -> None:
    """The head waits and says for whom; the worker joins; the engine runs on both nodes; both say that they are ready."""
    head = stack.start("head")
    head.wait_for("waiting for nodes: have 1 of 2 nodes, 1 of 2 GPUs; missing node 1 ")
    worker = stack.start("worker")
    head.wait_for("ready after")
    worker.wait_for("the head is ready")

    assert workers_of_engine(head.logs) == sorted(node.address(stack.network) for node in (head, worker))
    assert head.get("/v1/models")[0] == 200
    assert worker.run("launch", "health", "--ready").strip() == "ready"


def test_head_last(stack: Stack) -> None:
    """Two workers wait for the head, which finds both."""
    workers = [stack.start("worker", LAUNCH_NODES="3") for _ in range(2)]
    for worker in workers:
        worker.wait_for("the head is not there yet")
    head = stack.start("head", LAUNCH_NODES="3")
    head.wait_for("ready after")

    assert len(workers_of_engine(head.logs)) == 3


def test_all_at_once(stack: Stack) -> None:
    """A head and three workers, started together; each worker has a rank of its own."""
    nodes = [stack.start(role, LAUNCH_NODES="4") for role in ("worker", "head", "worker", "worker")]
    nodes[1].wait_for("ready after", 180)

    assert len(workers_of_engine(nodes[1].logs)) == 4
    ranks = {re.search(r"node (\d) of 4", node.logs).group(1) for node in nodes if node is not nodes[1]}  # type: ignore[union-attr]
    assert ranks == {"1", "2", "3"}


@pytest.mark.fault(13)
def test_fault_13_head_40_s_late(stack: Stack) -> None:
    """A head that comes 40 s later is joined by the worker that has been waiting, without a restart."""
    worker = stack.start("worker")
    time.sleep(40)
    head = stack.start("head")
    head.wait_for("ready after")
    worker.wait_for("the head is ready")
    worker.container.reload()

    assert worker.container.attrs["RestartCount"] == 0
    assert worker.logs.count("looking for the head") == 1

"""After any ending nothing of ours is left on the machine, and a second start works at once.

The launcher runs beside other programs here, as under Slurm, not as a container's first process, whose end would end all.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from cluster.nodes import Node, Stack

pytestmark = pytest.mark.containers


def launch(node: Node, number: int) -> None:
    """Start the launcher inside a machine that goes on without it."""
    node.run("sh", "-c", f"launch serve > /tmp/out.{number} 2>&1; echo exit $? >> /tmp/out.{number}", detach=True)


def said(node: Node, number: int, text: str, seconds: float = 120) -> str:
    """Wait for a text in the output of a start."""
    deadline = time.monotonic() + seconds
    while text not in (output := node.run("cat", f"/tmp/out.{number}", check=False)):
        assert time.monotonic() < deadline, output
        time.sleep(0.3)
    return output


def ours(node: Node) -> list[str]:
    """Every process but the machine's own."""
    rows = node.container.top(ps_args="-eo pid,args")["Processes"]
    return [row[1] for row in rows if row[1] not in ("tini -- sleep infinity", "sleep infinity")]


def test_nothing_is_left(stack: Stack) -> None:
    """Requested or not, the end leaves no process on either machine, and both start again and meet, one ending after the other."""
    head, worker = (
        stack.start(role, options={"command": ["sleep", "infinity"], "entrypoint": ["tini", "--"]}) for role in ("head", "worker")
    )
    endings: tuple[Callable[[], None], ...] = (
        lambda: head.kill("gcs_server"),
        lambda: stop(worker),
        lambda: worker.kill("launch"),
        lambda: stop(head),
    )
    for number, end in enumerate(endings):
        launch(head, number)
        launch(worker, number)
        said(head, number, "ready after")
        said(worker, number, "the head is ready")
        end()
        for node in (head, worker):
            said(node, number, "exit ")
            time.sleep(1)  # whose launcher was killed, its leash acts
            assert ours(node) == []


def stop(node: Node) -> None:
    """SIGTERM to the launcher."""
    node.run("pkill", "-TERM", "-x", "launch")

"""What must happen when a node, a network or a secret breaks. Real Ray; the numbers are those of the fault table.

Every ending is one clear line on each node, a documented exit code, and no process left.
"""

from __future__ import annotations

import re
import time
from typing import Any

import docker
import pytest
from cluster.nodes import TOKEN, Node, Stack

pytestmark = pytest.mark.containers


def ends(node: Node, seconds: float, code: int, text: str) -> float:
    """The node ends within so many seconds, with this code and a line that says this; returns the seconds."""
    began = time.monotonic()
    found = node.exit_code(seconds)
    took = time.monotonic() - began
    assert found == code, node.logs
    assert re.search(text, node.logs), node.logs
    print(f"ended after {took:.1f} s (bound {seconds:g}): {code}")
    return took


@pytest.mark.fault(12)
@pytest.mark.parametrize(("head", "why"), [("nobody", "the name nobody cannot be looked up"), ("127.0.0.1", "127.0.0.1 port 6370: ")])
def test_fault_12_head_absent(stack: Stack, head: str, why: str) -> None:
    """A worker whose head never comes tries again until its deadline, then names the address."""
    worker = stack.start("worker", LAUNCH_HEAD=head, LAUNCH_JOIN_SECONDS="6")

    assert ends(worker, 20, 69, f"The head {head}, port 6370, was not joined in 6 s: {why}") > 4


@pytest.mark.fault(14)
def test_fault_14_ray_slower_than_its_own_limit(stack: Stack) -> None:
    """Ray gives up on its raylet after its own 30 s: the launcher says so and tries again, and the next try starts.

    The first raylet is frozen at its birth, so that no machine is too fast for this.
    """
    freeze = "until pkill -STOP -x raylet; do :; done"
    head = stack.start("head", options={"entrypoint": ["tini", "--", "sh", "-c", f"({freeze}) & exec launch"]})
    head.wait_for("Ray did not start in .* s, try 1 of 3", 150)
    head.wait_for("Ray runs on", 90)

    assert "try 2 of 3" not in head.logs
    assert len(head.run("pgrep", "-x", "raylet").split()) == 1  # the frozen one has been ended


@pytest.mark.fault(15)
def test_fault_15_gcs_killed(stack: Stack) -> None:
    """Ray's control process dies: the head ends within 5 s, the worker within 75 s."""
    head, worker = stack.both()
    head.kill("gcs_server")

    ends(head, 5, 70, "Ray's gcs_server on this node was killed by SIGKILL")
    ends(worker, 75, 69, "The head ended: Ray's gcs_server on this node was killed by SIGKILL")


@pytest.mark.fault(16)
def test_fault_16_raylet_killed(stack: Stack) -> None:
    """A worker's raylet dies: the worker ends within 5 s, the head is not ready within 30 s and ends."""
    head, worker = stack.both()
    worker.kill("raylet")

    ends(worker, 5, 70, "Ray's raylet on this node was killed by SIGKILL")
    ends(head, 30, 69, r"The stack has lost node 1 \(\w+, [\d.]+\): Ray's raylet")


@pytest.mark.fault(16)
def test_fault_16_whole_worker_killed(stack: Stack) -> None:
    """A worker that vanishes without a word is noticed at once."""
    head, worker = stack.both()
    worker.container.kill("SIGKILL")

    ends(head, 30, 69, r"The stack has lost node 1 \(\w+, [\d.]+\): its connection was closed")


@pytest.mark.fault(17)
def test_fault_17_partition(stack: Stack) -> None:
    """A cut network ends both sides: the head within 75 s, the worker by itself within 120 s."""
    head, worker = stack.both()
    worker.cut()

    ends(head, 75, 69, r"The stack has lost node 1 .*: no sign of life for \d+ s")
    ends(worker, 45, 69, "no sign of life from the head at [0-9.]+ for 30 s")


@pytest.mark.fault(17)
def test_fault_17_frozen_node(stack: Stack) -> None:
    """A node that is frozen as a whole counts as lost; when it wakes up, it leaves."""
    head, worker = stack.both(LAUNCH_PEER_SECONDS="8")
    worker.container.pause()
    ends(head, 75, 69, r"The stack has lost node 1 .*: no sign of life for \d+ s")
    worker.container.unpause()

    ends(worker, 120, 69, "The head ended|the head at [0-9.]+ has gone|no sign of life")


@pytest.mark.fault(18)
def test_fault_18_head_comes_back_under_a_new_address(stack: Stack) -> None:
    """Before all are there, a worker looks the name up again; afterwards it ends, is restarted, and does the same."""
    client = docker.from_env()
    policy = {"restart_policy": {"Name": "on-failure", "MaximumRetryCount": 3}}
    worker = stack.start("worker", options=policy, LAUNCH_NODES="2")
    first = stack.start("head", LAUNCH_NODES="3", LAUNCH_INSECURE_CLUSTER="true")
    old = first.address(stack.network)
    worker.wait_for("the nodes must be alike: nodes 2 here, 3 at the head")  # and so it is refused, until the right head is there
    first.container.remove(force=True, v=True)
    stack.nodes.remove(first)
    blocker = stack.start("single", LAUNCH_NODES="1", LAUNCH_TP="1")  # takes the address that has become free
    second = stack.start("head")
    second.wait_for("ready after", 120)

    assert blocker.address(stack.network) == old
    assert second.address(stack.network) != old
    second.container.remove(force=True, v=True)
    stack.nodes.remove(second)
    worker.wait_for("the head at [0-9.]+ has gone without a word")
    third = stack.start("head")
    third.wait_for("ready after", 120)
    assert client.containers.get(worker.container.id).attrs["RestartCount"] >= 1


@pytest.mark.fault(18)
def test_fault_18_head_restarts_before_all_are_there(stack: Stack) -> None:
    """A worker that has joined joins the next head as well, without a restart of its own."""
    worker = stack.start("worker", LAUNCH_NODES="3")
    first = stack.start("head", LAUNCH_NODES="3")
    first.wait_for("have 2 of 3 nodes")
    first.container.kill("SIGKILL")
    worker.wait_for("looking for it again")
    stack.start("worker", LAUNCH_NODES="3")
    second = stack.start("head", LAUNCH_NODES="3")
    second.wait_for("ready after", 150)
    worker.container.reload()

    assert worker.container.attrs["RestartCount"] == 0


@pytest.mark.fault(19)
@pytest.mark.parametrize(
    ("gpus", "seconds", "text"),
    [
        (None, 12, r"have 1 of 2 nodes, 2 of 4 GPUs; missing node 1 \(never seen\)"),
        ("1", 30, r"have 2 of 2 nodes, 3 of 4 GPUs; node 1 \(.*\) has 1 GPUs, wanted 2"),
    ],
)
def test_fault_19_too_few(stack: Stack, gpus: str | None, seconds: int, text: str) -> None:
    """Too few nodes or GPUs at the deadline: 69, who is missing is said, and the engine was never started."""
    same = {"LAUNCH_TP": "2", "LAUNCH_PP": "2", "LAUNCH_JOIN_SECONDS": str(seconds)}
    head = stack.start("head", LAUNCH_GPUS="2", **same)
    if gpus:
        stack.start("worker", LAUNCH_GPUS=gpus, **same)
    ends(head, seconds + 30, 69, f"The stack is not complete after {seconds} s: {text}")

    assert "stub: argv" not in head.logs


@pytest.mark.fault(20)
@pytest.mark.parametrize(
    ("token", "text"), [("another", "refuses this node: its token is another"), ("-", "needs a token that all of them share")]
)
def test_fault_20_wrong_or_missing_token(stack: Stack, token: str, text: str) -> None:
    """A worker with a wrong token, or none, ends within 30 s and is told what to set; the head goes on."""
    head = stack.start("head")
    head.wait_for("head at")
    worker = stack.start("worker", LAUNCH_CLUSTER_TOKEN=token)

    ends(worker, 30, 78, text)
    assert "LAUNCH_CLUSTER_TOKEN" in worker.logs
    assert stack.start("worker")
    head.wait_for("ready after")


ASK_RAY = """
import os, sys, urllib.request, urllib.error
head, how, token = sys.argv[1:]
for port in (8265, 6375, 6376):  # the dashboard, and its agent on every node
    request = urllib.request.Request(f"http://{head}:{port}/api/jobs/", b'{"entrypoint": "id"}', {"Content-Type": "application/json"})
    try:
        print(port, "OPEN", urllib.request.urlopen(request, timeout=5).status)
    except urllib.error.HTTPError as error:
        print(port, "refused" if error.code in (401, 403) else "OPEN", error.code)
    except OSError as error:
        print(port, "refused", error)
os.environ.update(RAY_AUTH_MODE="token" if token else "disabled", RAY_AUTH_TOKEN=token)
import ray
try:
    if how.startswith("client"):
        ray.util.client.RayAPIStub().connect(f"{head}:10001", connection_retries=1)
    else:
        ray._raylet.GcsClient(address=f"{head}:6379").internal_kv_put(b"name", b"value", True)
    print(how, "OPEN")
except BaseException as error:
    answered = "from server" in str(error)  # the client's server needs packages that are not here, but it has let us in
    print(how, "OPEN" if answered else "refused", type(error).__name__, str(error)[:200].replace(chr(10), " "))
"""


@pytest.mark.fault(21)
def test_fault_21_unauthenticated_job(stack: Stack) -> None:
    """Nobody on the network gets Ray to run anything without the token: not as a job, not through its control plane, not through its client."""
    head, _ = stack.both()
    client = docker.from_env()
    asking = {
        how: client.containers.run(
            stack.image, ["-c", ASK_RAY, head.address(stack.network), how, token], entrypoint="python3", network=stack.network.name,
            shm_size="512m", detach=True,
        )
        for how, token in (
            ("control without a token", ""),
            ("control with a wrong token", "wrong"),
            ("control with the right token", TOKEN),
            ("client without a token", ""),
            ("client with a wrong token", "wrong"),
            ("client with the right token", TOKEN),
        )
    }  # fmt: skip
    for how, container in asking.items():
        container.wait(timeout=120)
        output = container.logs().decode()
        container.remove(v=True)
        assert f"{how} {'OPEN' if 'right' in how else 'refused'}" in output, output
        assert not re.search(r"^\d+ OPEN", output, re.MULTILINE), output
    assert head.get("/health")[0] == 200


@pytest.mark.fault(22)
def test_fault_22_no_token_anywhere(stack: Stack) -> None:
    """Several nodes without a token are refused; whoever says that it is on purpose gets them."""
    ends(stack.start("head", LAUNCH_CLUSTER_TOKEN="-"), 10, 78, "openssl rand -hex 32")
    open_stack: dict[str, Any] = {"LAUNCH_CLUSTER_TOKEN": "-", "LAUNCH_INSECURE_CLUSTER": "true"}
    head, _ = stack.both(**open_stack)

    assert head.get("/health")[0] == 200


def test_head_is_asked_to_stop(stack: Stack) -> None:
    """SIGTERM to the head of a ready stack: its streams finish, then both nodes end with 0."""
    head, worker = stack.both()
    head.container.kill("SIGTERM")

    ends(head, 20, 0, "stopped on request")
    ends(worker, 10, 0, "the head has stopped on request")


def test_worker_is_asked_to_stop(stack: Stack) -> None:
    """SIGTERM to a worker alone: the head drains first; the worker ends with 0, the head with 69, since the stack must start again."""
    head, worker = stack.both()
    worker.container.kill("SIGTERM")

    ends(head, 20, 69, r"node 1 .* was asked to stop, and the stack cannot go on without it")
    ends(worker, 10, 0, "stopped on request")


def test_stopped_while_nodes_meet(stack: Stack) -> None:
    """SIGTERM before all are there ends each with 0 within 10 s."""
    head, worker = stack.start("head"), stack.start("worker", LAUNCH_HEAD="nobody")
    worker.wait_for("the head is not there yet")
    head.wait_for("head at")
    for node in (worker, head):
        node.container.kill("SIGTERM")
        ends(node, 10, 0, "while the nodes meet")

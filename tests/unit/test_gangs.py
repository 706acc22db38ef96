"""LeaderWorkerSet, KubeRay and Volcano: who is the head, what starts together, and what follows from a node's end."""

from __future__ import annotations

import functools
import re
from typing import Any

import forms
import pytest

from engineroom import jobs
from engineroom.catalog import Catalog
from engineroom.errors import CannotRun

CATALOG = Catalog(forms.ROOT)
GANGS = ("lws", "kuberay", "volcano")
KINDS = {"lws": "LeaderWorkerSet", "kuberay": "RayCluster", "volcano": "Job"}


@functools.cache
def objects(stack: str, form: str) -> list[dict[str, Any]]:
    """All objects of a form."""
    return forms.objects(forms.render(CATALOG, stack, form))


def gang(stack: str, form: str) -> dict[str, Any]:
    """The object that stands for the nodes."""
    return forms.kind(objects(stack, form), KINDS[form])


def labels(stack: str, form: str) -> list[dict[str, str]]:
    """The labels of each node's pod: the form's, and what the controller adds.

    Sources: pkg/controllers in kubernetes-sigs/lws; labelPod in ray-project/kuberay, ray-operator/controllers/ray/common/pod.go;
    createJobPod in volcano-sh/volcano, pkg/controllers/job/job_controller_util.go.
    """
    item = gang(stack, form)
    name, spec = item["metadata"]["name"], item["spec"]
    if form == "lws":
        group, mark = spec["leaderWorkerTemplate"], "leaderworkerset.sigs.k8s.io"
        own = group["workerTemplate"]["metadata"]["labels"]
        return [
            {**own, f"{mark}/name": name, f"{mark}/group-index": "0", f"{mark}/worker-index": str(rank)} for rank in range(group["size"])
        ]
    if form == "kuberay":
        groups = [("head", "headgroup", 1, spec["headGroupSpec"])]
        groups += [("worker", group["groupName"], group["replicas"], group) for group in spec.get("workerGroupSpecs", [])]
        return [
            {"ray.io/cluster": name, "ray.io/node-type": kind, "ray.io/group": group, **part["template"]["metadata"]["labels"]}
            for kind, group, count, part in groups
            for _ in range(count)
        ]
    return [
        {**task["template"]["metadata"]["labels"], "volcano.sh/job-name": name, "volcano.sh/task-spec": task["name"], "volcano.sh/task-index": str(index)}
        for task in spec["tasks"]
        for index in range(task["replicas"])
    ]  # fmt: skip


def chosen(selector: dict[str, str], pods: list[dict[str, str]]) -> list[int]:
    """The ranks of the pods that a selector means."""
    return [rank for rank, pod in enumerate(pods) if selector.items() <= pod.items()]


@pytest.mark.parametrize("form", GANGS)
@pytest.mark.parametrize("stack", ["demo-cpu", "r1-32b-v100"])
def test_what_stands_around_finds_the_pods(stack: str, form: str) -> None:
    """The API is the head's alone; policy and budget are for every node; the budget counts by itself, which it must for other controllers' pods."""
    nodes, pods, found = CATALOG.stacks[stack].nodes, labels(stack, form), objects(stack, form)
    named = {(item["kind"], item["metadata"]["name"]): item["spec"] for item in found}

    assert len(pods) == nodes
    assert chosen(named["Service", f"{stack}-engine"]["selector"], pods) == [0]
    assert chosen(named["NetworkPolicy", f"{stack}-engine"]["podSelector"]["matchLabels"], pods) == list(range(nodes))
    budget = named["PodDisruptionBudget", f"{stack}-engine"]
    assert chosen(budget["selector"]["matchLabels"], pods) == list(range(nodes))
    assert (budget["minAvailable"], budget.get("maxUnavailable")) == (nodes, None)


@pytest.mark.parametrize("stack", CATALOG.stacks)
def test_names_are_what_the_controllers_take(stack: str) -> None:
    """KubeRay takes 53 characters; Services, pods and the hosts that Volcano names after them are DNS labels that begin with a letter."""
    name = jobs.label(stack)

    assert len(name) <= 53
    assert re.fullmatch(r"[a-z][-a-z0-9]{0,62}", f"{name}-worker-100")


def test_lws_restarts_the_group_and_waits_for_no_leader() -> None:
    """A leader is ready only once its workers are there, so they must not wait for that."""
    spec = gang("r1-32b-v100", "lws")["spec"]

    assert (spec["replicas"], spec["startupPolicy"]) == (1, "LeaderCreated")
    assert spec["leaderWorkerTemplate"]["restartPolicy"] == "RecreateGroupOnPodRestart"


def test_kuberay_leaves_the_launcher_alone() -> None:
    """The image's own command runs, and Ray's pinned release stands in the object."""
    item = gang("r1-32b-v100", "kuberay")
    (workers,) = item["spec"]["workerGroupSpecs"]

    assert item["metadata"]["annotations"] == {"ray.io/overwrite-container-cmd": "true"}
    assert item["spec"]["rayVersion"] == "2.55.1"
    assert (workers["replicas"], workers["minReplicas"], workers["maxReplicas"]) == (1, 1, 1)
    for group in (item["spec"]["headGroupSpec"], workers):
        (container,) = group["template"]["spec"]["containers"]
        assert not {"command", "args"} & container.keys()
        assert {"readinessProbe", "livenessProbe"} <= container.keys()  # else KubeRay adds its own, which ask Ray's dashboard


def test_kuberay_refuses_several_nodes_without_ray() -> None:
    """The reason and another form are said; one node runs, with or without Ray in its image."""
    with pytest.raises(CannotRun, match=r"(?s)vllm 0.32.0 spreads over 2 nodes without Ray.*--to lws") as raised:
        objects("demo-cpu-two-nodes", "kuberay")

    assert raised.value.exit_code == 78
    for stack in ("demo-cpu", "r1-0528-8b-a100-sglang", "r1-b200"):
        assert "workerGroupSpecs" not in gang(stack, "kuberay")["spec"]


def test_volcano_starts_all_or_none() -> None:
    """The gang is the whole stack, and no pod restarts by itself."""
    for stack, row in CATALOG.stacks.items():
        spec = gang(stack, "volcano")["spec"]

        assert spec["minAvailable"] == sum(task["replicas"] for task in spec["tasks"]) == row.nodes
        assert {task["template"]["spec"]["restartPolicy"] for task in spec["tasks"]} == {"Never"}
        assert spec["schedulerName"] == "volcano"
        assert set(spec.get("plugins", {})) == ({"svc", "pytorch"} if row.nodes > 1 else set())


def action(spec: dict[str, Any], task: str, event: str, code: int = 0) -> str:
    """What Volcano does: the first policy that fits, a task's before the job's. Source: applyPolicies in its job_controller_util.go."""
    own = next(part for part in spec["tasks"] if part["name"] == task).get("policies", [])
    for policy in (*own, *spec["policies"]):
        if policy.get("event") in (event, "*") or (code and policy.get("exitCode") == code):
            return str(policy["action"])
    return "SyncJob"


@pytest.mark.parametrize(
    ("task", "event", "code", "follows"),
    [
        ("worker", "PodFailed", 69, "RestartJob"),  # it lost the head, or the head lost it
        ("master", "PodFailed", 69, "RestartJob"),
        ("master", "PodFailed", 75, "RestartJob"),
        ("master", "PodFailed", 70, "TerminateJob"),  # its engine died
        ("worker", "PodFailed", 78, "TerminateJob"),
        ("worker", "PodFailed", 137, "TerminateJob"),
        ("master", "PodEvicted", 0, "RestartJob"),
        ("master", "TaskCompleted", 0, "CompleteJob"),
        ("worker", "TaskCompleted", 0, "SyncJob"),
    ],
)
def test_what_follows_in_volcano(task: str, event: str, code: int, follows: str) -> None:
    """A lost node and a deadline are worth another try; a dead engine ends the job; a head that was stopped completes it."""
    assert action(gang("r1-32b-v100", "volcano")["spec"], task, event, code) == follows


def test_volcanos_webhook_takes_the_policies() -> None:
    """Either an event or an exit code each, none twice, never 0: validatePolicies in pkg/webhooks/admission/jobs/validate/util.go."""
    spec = gang("r1-32b-v100", "volcano")["spec"]

    for policies in (spec["policies"], *(task.get("policies", []) for task in spec["tasks"])):
        causes = [(policy.get("event"), policy.get("exitCode")) for policy in policies]
        assert all((event is None) != (code is None) for event, code in causes)
        assert len(set(causes)) == len(causes)
        assert 0 not in [code for _, code in causes]
    assert spec["maxRetry"] == 4  # it fails when it has counted so many starts

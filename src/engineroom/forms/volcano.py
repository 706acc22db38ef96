"""Volcano: a Job whose nodes start together or not at all, and whose end is the engine's. Source: https://github.com/volcano-sh/volcano."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engineroom.catalog import Catalog
from engineroom.forms import kubernetes, manifest

Job = Mapping[str, Any]
STARTS = 4  # three more than the first, which Volcano counts as well: pkg/controllers/job/state/restarting.go
AGAIN = {69: "another node is missing or lost", 75: "a deadline passed"}  # exit codes of the launcher that are worth another try


def files(_: Catalog, job: Job) -> dict[str, str]:
    """One file: `kubectl apply` takes it."""
    master = {"volcano.sh/job-name": job["label"], "volcano.sh/task-spec": "master"}
    objects = [gang(job), *kubernetes.around(job, master)]
    lines = [*kubernetes.header(job, "docs/volcano.md"), "The queue is the cluster's default; spec.queue names another."]
    return {f"{job['name']}.volcano.yaml": manifest.text(objects, *lines)}


def gang(job: Job) -> kubernetes.Object:
    """The Job: its first node is the task `master`, as Volcano's PyTorch plugin and the launcher call it, the others are `worker`."""
    tasks = [task(job, "master", 1) | {"policies": [{"event": "TaskCompleted", "action": "CompleteJob"}]}]
    spec = {
        "schedulerName": "volcano",
        "minAvailable": job["nodes"],
        "maxRetry": STARTS,
        "policies": policies(),
    }
    if job["clustered"]:
        tasks.append(task(job, "worker", job["nodes"] - 1))
        spec["plugins"] = plugins()
    return kubernetes.thing("batch.volcano.sh/v1alpha1", "Job", job, "engine", {**spec, "tasks": tasks})


def task(job: Job, name: str, replicas: int) -> kubernetes.Object:
    """Pods of one kind. They never restart by themselves: Volcano decides about the whole."""
    template = kubernetes.pod(job)
    template["spec"] = {"restartPolicy": "Never", **template["spec"]}
    return {"name": name, "replicas": replicas, "template": template}


def policies() -> list[kubernetes.Object]:
    """What follows from a node's end. Volcano takes the first that fits, so exit codes come before failures of any kind.

    Source: applyPolicies in pkg/controllers/job/job_controller_util.go; each policy has either an event or an exit code
    (pkg/webhooks/admission/jobs/validate/util.go).
    """
    return [
        *(manifest.because({"exitCode": code, "action": "RestartJob"}, why) for code, why in AGAIN.items()),
        manifest.because({"event": "PodEvicted", "action": "RestartJob"}, "a pod was taken away"),
        manifest.because({"event": "PodFailed", "action": "TerminateJob"}, "nothing that another try would mend"),
    ]


def plugins() -> dict[str, list[str]]:
    """Names for the nodes, from their first second on, and their ranks. The stack's own NetworkPolicy lets the page in as well."""
    return {
        "svc": ["--publish-not-ready-addresses=true", "--disable-network-policy=true"],
        "pytorch": ["--master=master", "--worker=worker", "--port=23456"],
    }

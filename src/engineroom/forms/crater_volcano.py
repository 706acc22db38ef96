"""The Volcano job that Crater makes of a document, for reading, and for clusters with Volcano and without Crater's portal.

Follows github.com/raids-lab/crater at b2f1934: backend/internal/handler/vcjob/{custom,pytorch,util}.go; names in backend/pkg/utils/job.go.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from ruamel.yaml.scalarstring import LiteralScalarString

from engineroom.forms import manifest

Document = Mapping[str, Any]
Object = dict[str, Any]

USER, USER_ID, DAY, ACCOUNT, VOLUME = (
    "user",
    "1001",
    "260724",
    "default",
    "crater-rw-storage",
)  # examples; the volume is the chart's default
HEADER = """\
Made by `{command}`: what Crater makes of the documents beside this file, for reading, or for Volcano without Crater's portal.
Names of jobs (TYPE-USER-YYMMDD-xxxxx), user, account, queue, ids and volume are examples: Crater fills in its own.
Left out: the document itself, in an annotation; Crater's start script; what depends on the cluster (pull secret, tolerations, soft affinity)."""


def text(command: str, documents: Iterable[Document]) -> str:
    """All jobs in one file."""
    return manifest.text([job(document, number) for number, document in enumerate(documents)], *HEADER.format(command=command).splitlines())


def job(document: Document, number: int) -> Object:
    """A document's job; `number` stands where Crater puts five random digits."""
    data, kind = document["data"], document["type"]
    base = f"{USER}-{DAY}-{number:05x}"
    labels = {
        "crater.raids.io/task-type": kind,
        "crater.raids.io/task-user": USER,
        "crater.raids.io/base-url": base,
        "crater.raids.io/task-account": ACCOUNT,
    }
    annotations = {
        "crater.raids.io/task-name": data["jobName"],
        "crater.raids.io/alert-enabled": json.dumps(data["alertEnabled"]),
        "crater.raids.io/user-id": "1",
        "crater.raids.io/schedule-type": "1",
        **({"crater.raids.io/forwards": json.dumps(data["forwards"])} if data["forwards"] else {}),  # a Service and an Ingress of each
    }
    metadata = {
        "name": f"{'pyt' if kind == 'pytorch' else 'sg'}-{base}",
        "namespace": "crater-workspace",
        "labels": labels,
        "annotations": annotations,
    }
    pod = {"labels": labels, "annotations": {"crater.raids.io/task-name": data["jobName"], "crater.raids.io/user": USER}}
    spec = {
        "schedulerName": "volcano",
        "queue": ACCOUNT,
        "ttlSecondsAfterFinished": 604800,
        "policies": [{"event": "PodEvicted", "action": "RestartJob"}],
        **(pytorch(data, pod) if kind == "pytorch" else custom(data, pod)),
    }
    return {"apiVersion": "batch.volcano.sh/v1alpha1", "kind": "Job", "metadata": metadata, "spec": spec}


def custom(data: Document, metadata: Object) -> Object:
    """One pod. Crater gives its task no name, and Volcano calls it default0. Its network policy admits nobody, on networks that keep policies."""
    done = {"event": "TaskCompleted", "action": "CompleteJob"}
    template = {"metadata": metadata, "spec": pod_spec(data, data["task"], "custom")}
    return {
        "minAvailable": 1,
        "maxRetry": 1,
        "plugins": {"svc": ["--publish-not-ready-addresses=false", "--disable-network-policy=false"]},
        "tasks": [{"name": "default0", "replicas": 1, "policies": [done], "template": template}],
    }


def pytorch(data: Document, metadata: Object) -> Object:
    """All pods or none. Volcano adds the svc plugin by itself, and three tries. A failed head ends the job; a failed worker starts again."""
    head, worker = data["ps"], data["worker"]
    policies = [{"event": "TaskCompleted", "action": "CompleteJob"}, {"event": "PodFailed", "action": "TerminateJob"}]
    return {
        "minAvailable": head["replicas"] + worker["replicas"],
        "plugins": {"pytorch": ["--master=master", "--worker=worker", "--port=23456"]},
        "tasks": [
            {
                "name": task["taskName"],
                "replicas": task["replicas"],
                **({"policies": policies} if task is head else {}),
                "template": {
                    "metadata": metadata,
                    "spec": pod_spec(data, task, task["taskName"], "Never" if task is head else "OnFailure"),
                },
            }
            for task in (head, worker)
        ],
    }


def pod_spec(data: Document, task: Document, name: str, restart: str = "Never") -> Object:
    """A pod with one container, as root: the command gives that away before anything else starts."""
    where = [{"key": "kubernetes.io/arch", "operator": "In", "values": ["amd64"]}]
    if data["nodeSelector"]["enable"]:
        where.insert(0, {"key": "kubernetes.io/hostname", "operator": "In", "values": data["nodeSelector"]["nodes"]})
    container = {
        "name": name,
        "image": task["image"]["imageLink"],
        "command": ["sh", "-c", LiteralScalarString(task["command"])],
        "workingDir": task["workingDir"],
        "env": [*data["envs"], *({"name": key, "value": value} for key, value in user().items())],
        "resources": resources(task["resource"]),
        "resizePolicy": [{"resourceName": resource, "restartPolicy": "NotRequired"} for resource in ("cpu", "memory")],
        "securityContext": {"runAsUser": 0, "runAsGroup": 0, "capabilities": {"add": ["IPC_LOCK"]}},
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "File",
        "volumeMounts": [
            {"name": "crater-cache", "mountPath": "/dev/shm"},  # noqa: S108 - the mount point
            *({"name": VOLUME, "subPath": place(mount["subPath"]), "mountPath": mount["mountPath"]} for mount in data["volumeMounts"]),
        ],
    }
    return {
        "restartPolicy": restart,
        "enableServiceLinks": False,
        "affinity": {
            "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchExpressions": where}]}}
        },
        "containers": [container],
        "volumes": [
            {"name": "crater-cache", "emptyDir": {"medium": "Memory"}},
            {"name": VOLUME, "persistentVolumeClaim": {"claimName": VOLUME}},
        ],
    }


def user() -> dict[str, str]:
    """What Crater adds to every container's variables."""
    return {"NB_USER": USER, "NB_GID": USER_ID, "NB_UID": USER_ID}


def resources(wanted: Document) -> Object:
    """Limits are a little above requests, so that Kubernetes may resize the pod while it runs."""
    gpu = {wanted["gpu"]["model"]: str(wanted["gpu"]["count"])} if wanted["gpu"]["count"] else {}
    return {
        "requests": {"cpu": str(wanted["cpu"]), "memory": f"{wanted['memory']}Gi", **gpu},
        "limits": {"cpu": f"{wanted['cpu'] * 1000 + 1}m", "memory": f"{wanted['memory'] * 1024 + 1}Mi", **gpu},
    }


def place(source: str) -> str:
    """Where a space's folder is on the volume: backend/internal/util/volumes.go, with the chart's prefixes."""
    space, _, rest = source.partition("/")
    folder = {"user": f"users/{USER}", "account": f"accounts/{ACCOUNT}", "public": "public"}[space]
    return f"{folder}/{rest}".rstrip("/")

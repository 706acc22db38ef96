"""LeaderWorkerSet: the nodes of a stack as one group, which starts anew as a whole. Source: https://github.com/kubernetes-sigs/lws."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engineroom.catalog import Catalog
from engineroom.forms import kubernetes, manifest

Job = Mapping[str, Any]


def files(_: Catalog, job: Job) -> dict[str, str]:
    """One file: `kubectl apply` takes it."""
    leader = {"leaderworkerset.sigs.k8s.io/name": job["label"], "leaderworkerset.sigs.k8s.io/worker-index": "0"}
    objects = [group(job), *kubernetes.around(job, leader)]
    return {f"{job['name']}.lws.yaml": manifest.text(objects, *kubernetes.header(job, "docs/lws.md"))}


def group(job: Job) -> kubernetes.Object:
    """One template for leader and workers: LeaderWorkerSet gives each pod its rank, and the launcher takes its role from that."""
    spec = {
        "replicas": 1,
        "startupPolicy": "LeaderCreated",  # a leader is ready only once its workers are
        "leaderWorkerTemplate": {
            "size": job["nodes"],
            "restartPolicy": "RecreateGroupOnPodRestart",
            "workerTemplate": kubernetes.pod(job),
        },
    }
    return kubernetes.thing("leaderworkerset.x-k8s.io/v1", "LeaderWorkerSet", job, "engine", spec)

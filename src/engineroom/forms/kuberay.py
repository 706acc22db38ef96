"""KubeRay: a RayCluster whose pods run the launcher, which starts Ray itself. Source: https://github.com/ray-project/kuberay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engineroom.catalog import Catalog
from engineroom.errors import CannotRun
from engineroom.forms import kubernetes, manifest
from engineroom.rows import Release, Variable

Job = Mapping[str, Any]


def files(catalog: Catalog, job: Job) -> dict[str, str]:
    """One file: `kubectl apply` takes it. Raises CannotRun for several nodes that find each other without Ray."""
    release = catalog.release_of(catalog.stacks[job["name"]].image)
    if job["clustered"] and release.executors[0].name != "ray":
        raise CannotRun(
            f"{job['name']} on KubeRay: {release.engine} {release.version} spreads over {job['nodes']} nodes without Ray, and KubeRay's workers "
            f"wait for Ray on the head before they start.\nUse another form: engineroom jobs {job['name']} --to lws (or volcano, or k8s)."
        )
    head = {"ray.io/cluster": job["label"], "ray.io/node-type": "head"}
    objects = [cluster(job, release), *kubernetes.around(job, head)]
    return {f"{job['name']}.kuberay.yaml": manifest.text(objects, *kubernetes.header(job, "docs/kuberay.md"))}


def cluster(job: Job, release: Release) -> kubernetes.Object:
    """The RayCluster: a head, and the other nodes as one group of workers that never shrinks."""
    environment = variables(job)
    spec: kubernetes.Object = {"headGroupSpec": group(job, environment)}
    if job["clustered"]:
        count = job["nodes"] - 1
        workers = {"groupName": "worker", "replicas": count, "minReplicas": count, "maxReplicas": count, **group(job, environment)}
        spec = {"rayVersion": ray_version(release), **spec, "workerGroupSpecs": [workers]}
    found = kubernetes.thing("ray.io/v1", "RayCluster", job, "engine", spec)
    found["metadata"]["annotations"] = manifest.because(
        {"ray.io/overwrite-container-cmd": "true"}, "the image's own command stays: the launcher starts Ray"
    )
    return found


def ray_version(release: Release) -> str:
    """The Ray that is pinned beside the engine."""
    return next(package.removeprefix("ray==") for package in release.packages if package.startswith("ray=="))


def group(job: Job, environment: list[Variable]) -> kubernetes.Object:
    """A group's pods. Ray's own parameters are the launcher's business; KubeRay before 1.7 wants the field all the same."""
    return {"rayStartParams": {}, "template": kubernetes.pod(job, environment=environment)}


def variables(job: Job) -> list[Variable]:
    """What KubeRay needs on top.

    It puts a container before each worker that asks for Ray on the head with the worker's own variables and volumes, so these say
    where the token is. Its `authOptions` would want a second Secret, with another key.
    """
    if not job["clustered"]:
        return [Variable(name="LAUNCH_NODES", value="1", why="KubeRay does not say how many there are")]
    return [
        Variable(name="RAY_AUTH_MODE", value="token", why="for KubeRay's own question whether Ray is there"),
        Variable(name="RAY_AUTH_TOKEN_PATH", value=f"{job['secrets_folder']}/cluster_token", why="the same token"),
    ]

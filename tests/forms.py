"""Reads every scheduler's form of a stack back: what each node would run, and what the scheduler would add to its environment."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from engineroom import jobs
from engineroom.catalog import Catalog
from engineroom.host import Host

ROOT = Path(__file__).parents[1]
HOST = Host.load(ROOT, {})


class Node(NamedTuple):
    """One node of a stack in one form. `scheduler` is what the scheduler itself sets, `startup` the seconds until a start has failed."""

    rank: int
    image: str
    environment: dict[str, str]
    scheduler: dict[str, str]
    gpus: int
    shm_gib: int
    mounts: frozenset[str]
    grace: int
    startup: int
    probes: tuple[str, ...]


def render(catalog: Catalog, stack: str, form: str, **options: Any) -> dict[str, str]:
    """The files of a form, with nothing of this machine in them."""
    return jobs.render(catalog, HOST, stack, form, jobs.Options(**options))


def objects(files: dict[str, str]) -> list[dict[str, Any]]:
    """Every Kubernetes object of the YAML files."""
    return [item for name, text in files.items() if name.endswith(".yaml") for item in yaml.safe_load_all(text) if item]


def of_pod(spec: dict[str, Any], rank: int, scheduler: dict[str, str]) -> Node:
    """A node from its pod's spec."""
    (container,) = spec["containers"]
    shm = next(volume["emptyDir"]["sizeLimit"] for volume in spec["volumes"] if volume["name"] == "shm")
    startup = container["startupProbe"]
    return Node(
        rank,
        container["image"],
        {variable["name"]: variable["value"] for variable in container["env"]},
        scheduler,
        int(container["resources"].get("limits", {}).get("nvidia.com/gpu", 0)),
        int(shm.removesuffix("Gi")),
        frozenset(mount["mountPath"] for mount in container["volumeMounts"]),
        spec["terminationGracePeriodSeconds"],
        startup["periodSeconds"] * startup["failureThreshold"],
        tuple(" ".join(container[probe]["exec"]["command"]) for probe in ("startupProbe", "readinessProbe", "livenessProbe")),
    )


def k8s(found: list[dict[str, Any]], name: str, _: int) -> Iterator[Node]:
    """Pods of a Deployment, or of the StatefulSets head and worker: Kubernetes sets their name alone."""
    rank = 0
    for item in found:
        if item["metadata"]["labels"]["app.kubernetes.io/component"] == "engine" and item["kind"] in ("Deployment", "StatefulSet"):
            for index in range(item["spec"]["replicas"]):
                pod = f"{item['metadata']['name']}-{index if item['kind'] == 'StatefulSet' else 'c8f5d-x2v9k'}"
                yield of_pod(item["spec"]["template"]["spec"], rank, {"HOSTNAME": pod})
                rank += 1


READERS: dict[str, Callable[[list[dict[str, Any]], str, int], Iterator[Node]]] = {"k8s": k8s}


def nodes(catalog: Catalog, stack: str, form: str) -> list[Node]:
    """Every node of a stack in a form, the head first."""
    return list(READERS[form](objects(render(catalog, stack, form)), stack, catalog.stacks[stack].nodes))

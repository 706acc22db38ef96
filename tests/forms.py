"""Reads every scheduler's form of a stack back: what each node would run, and what the scheduler would add to its environment."""

from __future__ import annotations

import re
import shlex
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
    """Every Kubernetes object of the YAML files, and every script."""
    found = [item for name, text in files.items() if name.endswith(".yaml") for item in yaml.safe_load_all(text) if item]
    return found + [{"kind": "Script", "text": text} for name, text in files.items() if name.endswith(".sh")]


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


def slurm(found: list[dict[str, Any]], _: str, nodes: int) -> Iterator[Node]:
    """Tasks of a job step, as srun(1) names them. Address and ports are the job's own; nothing of Slurm's ends a start."""
    (text,) = (item["text"] for item in found)
    stack = text[text.index("# --- The stack") : text.index("# --- The page")]
    settings = dict(shlex.split(line, comments=True)[1].split("=", 1) for line in re.findall(r"^export [A-Z_]+=.*", stack, re.MULTILINE))
    asked = dict(line.split("=", 1) for line in re.findall(r"^#SBATCH --(.+=.+)", text, re.MULTILINE))
    image = re.search(r"ENGINEROOM_IMAGE:-([^}]+)", text)
    shm = re.search(r"--shm-size=(\d+)g", text)
    assert image
    assert shm
    assert (asked["nodes"], asked["ntasks-per-node"]) == (str(nodes), "1")
    for rank in range(nodes):
        yield Node(
            rank,
            image[1],
            {name: value for name, value in settings.items() if name not in ("LAUNCH_HOST", "LAUNCH_PORT", "LAUNCH_CLUSTER_PORT")},
            {
                **{name: str(nodes) for name in ("SLURM_NNODES", "SLURM_STEP_NUM_NODES", "SLURM_STEP_NUM_TASKS")},
                "SLURM_STEP_NODELIST": f"gnode[10-{9 + nodes}]",
                "SLURM_NODEID": str(rank),
                "SLURM_LOCALID": "0",
            },
            int(asked.get("gres", "gpu:0").removeprefix("gpu:")),
            int(shm[1]),
            frozenset({"/dev/shm", *re.findall(r"\$\w+:(/\w+)", text)}),
            int(asked["signal"].removeprefix("B:USR1@")),
            0,
            (),
        )


READERS: dict[str, Callable[[list[dict[str, Any]], str, int], Iterator[Node]]] = {"k8s": k8s, "slurm": slurm}


def nodes(catalog: Catalog, stack: str, form: str) -> list[Node]:
    """Every node of a stack in a form, the head first."""
    return list(READERS[form](objects(render(catalog, stack, form)), stack, catalog.stacks[stack].nodes))

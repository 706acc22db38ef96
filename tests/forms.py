"""Reads every scheduler's form of a stack back: what each node would run, and what the scheduler would add to its environment."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import charts
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
    """Every Kubernetes object of the YAML files, or of a chart; and every script."""
    if "Chart.yaml" in files:
        return list(charts.objects(files).values())
    scripts = [{"kind": "Script", "text": text} for name, text in files.items() if name.endswith(".sh")]
    return scripts + [
        item for name, text in files.items() if name.endswith(".yaml") for item in yaml.load_all(text, yaml.CSafeLoader) if item
    ]


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


def lws(found: list[dict[str, Any]], name: str, _: int) -> Iterator[Node]:
    """A group's pods, all of one template: kubernetes-sigs/lws, pkg/utils/pod/pod_utils.go."""
    item = kind(found, "LeaderWorkerSet")
    group = item["spec"]["leaderWorkerTemplate"]
    leader = f"{item['metadata']['name']}-0"
    for rank in range(group["size"]):
        env = {
            "LWS_LEADER_ADDRESS": f"{leader}.{item['metadata']['name']}.default",
            "LWS_GROUP_SIZE": str(group["size"]),
            "LWS_WORKER_INDEX": str(rank),
            "HOSTNAME": f"{leader}-{rank}" if rank else leader,
        }
        yield of_pod(group["workerTemplate"]["spec"], rank, env)


def kuberay(found: list[dict[str, Any]], name: str, _: int) -> Iterator[Node]:
    """The head, then the workers: ray-project/kuberay, setContainerEnvVars of ray-operator/controllers/ray/common/pod.go."""
    item = kind(found, "RayCluster")
    cluster, spec = item["metadata"]["name"], item["spec"]
    service = f"{cluster}-head-svc"
    head = {
        "RAY_CLUSTER_NAME": cluster,
        "RAY_CLUSTER_NAMESPACE": "default",
        "RAY_CLOUD_INSTANCE_ID": f"{cluster}-head-x7k2p",
        "RAY_NODE_TYPE_NAME": "headgroup",
        "RAY_PORT": "6379",
        "RAY_ADDRESS": "127.0.0.1:6379",
        "KUBERAY_GEN_RAY_START_CMD": "ray start --head  --block  --dashboard-agent-listen-port=52365  --dashboard-host=0.0.0.0 ",
    }
    yield of_pod(spec["headGroupSpec"]["template"]["spec"], 0, head)
    rank = 1
    for group in spec.get("workerGroupSpecs", []):
        for _replica in range(group["replicas"]):
            env = {
                **head,
                "RAY_CLOUD_INSTANCE_ID": f"{cluster}-{group['groupName']}-worker-9bq4z",
                "RAY_NODE_TYPE_NAME": group["groupName"],
                "FQ_RAY_IP": f"{service}.default.svc.cluster.local",
                "RAY_IP": service,
                "RAY_ADDRESS": f"{service}.default.svc.cluster.local:6379",
                "KUBERAY_GEN_RAY_START_CMD": f"ray start  --address={service}.default.svc.cluster.local:6379  --block ",
            }
            yield of_pod(group["template"]["spec"], rank, env)
            rank += 1


def volcano(found: list[dict[str, Any]], name: str, _: int) -> Iterator[Node]:
    """The tasks' pods, with what the plugins add that the job asks for: volcano-sh/volcano, pkg/controllers/job/plugins."""
    item = kind(found, "Job")
    job, tasks, plugins = item["metadata"]["name"], item["spec"]["tasks"], item["spec"].get("plugins", {})
    hosts = {task["name"]: [f"{job}-{task['name']}-{index}.{job}" for index in range(task["replicas"])] for task in tasks}
    shared = {}
    if "svc" in plugins:
        for task, names in hosts.items():
            shared |= {f"VC_{task.upper()}_HOSTS": ",".join(names), f"VC_{task.upper()}_NUM": str(len(names))}
    if "pytorch" in plugins:
        size = sum(task["replicas"] for task in tasks)
        shared |= {"MASTER_ADDR": hosts["master"][0], "MASTER_PORT": "23456", "WORLD_SIZE": str(size)}
    rank = 0
    for task in tasks:
        for index in range(task["replicas"]):
            mine = {"RANK": str(index + (task["name"] == "worker"))} if "pytorch" in plugins else {}
            yield of_pod(task["template"]["spec"], rank, {**shared, **mine, "HOSTNAME": f"{job}-{task['name']}-{index}"})
            rank += 1


def kind(found: list[dict[str, Any]], wanted: str) -> dict[str, Any]:
    """The only object of a kind."""
    (item,) = (item for item in found if item["kind"] == wanted)
    return item


def crater(found: list[dict[str, Any]], name: str, count: int) -> Iterator[Node]:
    """Pods of the engine's Volcano job as Crater makes it: no probes, no size of shared memory, and Kubernetes' own grace period."""
    job = next(item for item in found if item["metadata"]["annotations"]["crater.raids.io/task-name"] == name)
    own, rank = job["metadata"]["name"], 0
    for task in job["spec"]["tasks"]:
        (container,) = task["template"]["spec"]["containers"]
        for index in range(task["replicas"]):
            scheduler = {"HOSTNAME": f"{own}-{task['name']}-{index}"}
            if count > 1:
                scheduler |= {"MASTER_ADDR": f"{own}-master-0.{own}", "MASTER_PORT": "23456", "WORLD_SIZE": str(count), "RANK": str(rank)}
            else:
                scheduler["VC_DEFAULT0_HOSTS"] = f"{scheduler['HOSTNAME']}.{own}"
            yield Node(
                rank,
                container["image"],
                {variable["name"]: variable["value"] for variable in container["env"]},
                scheduler,
                sum(int(number) for kind, number in container["resources"]["limits"].items() if "/" in kind),
                0,
                frozenset(mount["mountPath"] for mount in container["volumeMounts"]),
                30,
                0,
                (),
            )
            rank += 1


def slurm(found: list[dict[str, Any]], _: str, nodes: int) -> Iterator[Node]:
    """Tasks of a job step, as srun(1) names them. Address and ports are the job's own; nothing of Slurm's ends a start."""
    text = kind(found, "Script")["text"]
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


READERS: dict[str, Callable[[list[dict[str, Any]], str, int], Iterator[Node]]] = {
    "k8s": k8s,
    "helm": k8s,
    "lws": lws,
    "kuberay": kuberay,
    "volcano": volcano,
    "crater": crater,
    "slurm": slurm,
}


def nodes(catalog: Catalog, stack: str, form: str) -> list[Node]:
    """Every node of a stack in a form, the head first."""
    return list(READERS[form](objects(render(catalog, stack, form)), stack, catalog.stacks[stack].nodes))

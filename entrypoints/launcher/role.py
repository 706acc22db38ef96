"""What this container does in its stack, and by which rule.

An explicit LAUNCH_ROLE wins. Else each scheduler that gives several nodes leaves marks in the environment; when just one has,
its word counts. Half a mark, or two schedulers at once, is refused: a wrong guess would be a hang on another machine.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Mapping
from typing import NamedTuple

from launcher.errors import Refused
from launcher.settings import Settings


class Role(NamedTuple):
    """`name` is single, head or worker; `rule` says why.

    `nodes` counts the head as well; `rank` is 0 for the head and None where the head is to give one; `head` is a name or an
    address that is looked up at each try, None where nobody has said.
    """

    name: str
    rule: str
    nodes: int = 1
    rank: int | None = 0
    head: str | None = None


Env = Mapping[str, str]


def detect(settings: Settings, env: Env) -> Role:
    """The role from settings or from the one scheduler that speaks. Raises Refused for contradictions and for half an answer."""
    if settings.nodes is not None and settings.nodes < 1:
        raise Refused(f"LAUNCH_NODES is {settings.nodes}: a stack has at least one node.")
    role = _explicit(settings) if settings.role != "auto" else _detected(settings, env)
    if role.name == "single" and role.nodes > 1:
        raise Refused(f"Role single and {role.nodes} nodes ({role.rule}): set LAUNCH_ROLE to head or worker, or LAUNCH_NODES to 1.")
    if role.name != "single" and role.nodes == 1:
        raise Refused(f"Role {role.name} of one node ({role.rule}): set LAUNCH_NODES to the number of nodes, the head included.")
    if role.name == "worker" and not role.head:
        raise Refused("This is a worker and nothing says where the head is. Set LAUNCH_HEAD to the head's name or address.")
    return role


def _explicit(settings: Settings) -> Role:
    nodes = settings.nodes or 1
    return Role(settings.role, "LAUNCH_ROLE says so", nodes, None if settings.role == "worker" else 0, settings.head)


def _detected(settings: Settings, env: Env) -> Role:
    found = [role for rule in RULES if (role := rule(env, settings.nodes))]
    several = [role for role in found if role.nodes > 1]
    if several and len(found) > 1:
        raise Refused(
            f"Two schedulers speak at once: {' and '.join(f'{role.rule} ({role.name} of {role.nodes})' for role in found)}.\n"
            "Unset the variables of the one that does not run this container, or set LAUNCH_ROLE, LAUNCH_NODES and LAUNCH_HEAD."
        )
    if not found:
        if (settings.nodes or 1) > 1:
            raise Refused(f"LAUNCH_NODES is {settings.nodes} and nothing says which node this is. Set LAUNCH_ROLE to head or worker.")
        if settings.head:
            raise Refused("LAUNCH_HEAD is set and nothing says what this node is. Set LAUNCH_ROLE to worker, and LAUNCH_NODES.")
        return Role("single", "no cluster in sight")
    role = found[0]
    if settings.nodes is not None and settings.nodes != role.nodes:
        raise Refused(
            f"LAUNCH_NODES is {settings.nodes}, and {role.rule} says {role.nodes} nodes. Unset LAUNCH_NODES, or ask for as many nodes."
        )
    return role._replace(head=settings.head or role.head)


def _lws(env: Env, _: int | None) -> Role | None:
    if not any(name in env for name in ("LWS_LEADER_ADDRESS", "LWS_GROUP_SIZE", "LWS_WORKER_INDEX")):
        return None
    nodes, rank = _number(env, "LWS_GROUP_SIZE", "LeaderWorkerSet"), _number(env, "LWS_WORKER_INDEX", "LeaderWorkerSet")
    return _ranked(
        "LeaderWorkerSet's LWS_GROUP_SIZE and LWS_WORKER_INDEX", nodes, rank, _text(env, "LWS_LEADER_ADDRESS", "LeaderWorkerSet")
    )


def _volcano(env: Env, _: int | None) -> Role | None:
    """Tasks in the order head, then workers: by name where there are two, since nothing in the environment names the pod's own task."""
    if "RANK" in env or "MASTER_ADDR" in env:  # the PyTorch plugin says the same in plainer words
        return None
    hosts = {name[3:-6]: [host for host in value.split(",") if host] for name, value in env.items() if re.fullmatch(r"VC_.+_HOSTS", name)}
    if not hosts:
        return None
    order = sorted(hosts, key=lambda task: (task not in HEAD_TASKS, task))
    everyone = [host for task in order for host in hosts[task]]
    if len(everyone) == 1:
        return Role("single", "Volcano's VC_*_HOSTS")
    me = env.get("HOSTNAME") or os.uname().nodename
    ranks = [rank for rank, host in enumerate(everyone) if host.split(".")[0] == me.split(".")[0]]
    if len(ranks) != 1:
        raise Refused(
            f"Volcano's VC_*_HOSTS name {', '.join(everyone) or 'nobody'}, and this host is {me}. Set LAUNCH_ROLE, LAUNCH_NODES and LAUNCH_HEAD."
        )
    return _ranked("Volcano's VC_*_HOSTS and this host's name", len(everyone), ranks[0], everyone[0])


def _ranks(env: Env, _: int | None) -> Role | None:
    """The variables of PyTorch's launchers, one process a node: Volcano's PyTorch plugin, Crater, Kubeflow."""
    names = [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR") if name in env]
    if not names:
        return None
    scheduler = "a PyTorch job"
    if env.get("LOCAL_WORLD_SIZE", "1") != "1":
        raise Refused(
            f"torchrun starts LOCAL_WORLD_SIZE={env['LOCAL_WORLD_SIZE']} processes on this node. Start the launcher once a node: it starts the others."
        )
    nodes, rank = _number(env, "WORLD_SIZE", scheduler), _number(env, "RANK", scheduler)
    return _ranked("RANK and WORLD_SIZE of a PyTorch job", nodes, rank, _text(env, "MASTER_ADDR", scheduler))


def _slurm(env: Env, _: int | None) -> Role | None:
    count = next((name for name in ("SLURM_STEP_NUM_NODES", "SLURM_NNODES", "SLURM_JOB_NUM_NODES") if name in env), None)
    if count is None:
        return None
    if "SLURM_STEP_NUM_NODES" not in env and env[count] != "1":
        raise Refused(
            f"Slurm gives this job {count}={env[count]} nodes, and this is the job's script, which runs on the first alone.\n"
            "Start the launcher on each with `srun --ntasks-per-node=1`, or set LAUNCH_ROLE."
        )
    local, tasks = env.get("SLURM_LOCALID", "0"), env.get("SLURM_STEP_NUM_TASKS", env[count])
    if local != "0" or tasks != env[count]:  # the first task of a node refuses as well, so that none of them is left
        raise Refused(f"Slurm runs more than one task a node (SLURM_LOCALID={local}, {tasks} tasks). Use `srun --ntasks-per-node=1`.")
    nodes = _number(env, count, "Slurm")
    if nodes == 1:
        return Role("single", f"Slurm's {count}")
    hosts = next((name for name in ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST") if name in env), "SLURM_JOB_NODELIST")
    head = first_host(_text(env, hosts, "Slurm"))
    return _ranked(f"Slurm's {count} and SLURM_NODEID", nodes, _number(env, "SLURM_NODEID", "Slurm"), head)


def _kuberay(env: Env, nodes: int | None) -> Role | None:
    """KubeRay gives workers the head service's name, and the head itself as its own address; it does not say how many there are."""
    if "RAY_CLUSTER_NAME" not in env and "FQ_RAY_IP" not in env and "KUBERAY_GEN_RAY_START_CMD" not in env:
        return None
    if nodes is None:
        raise Refused("KubeRay does not say how many nodes there are. Set LAUNCH_NODES in the head group and in the worker group.")
    if nodes == 1:
        return Role("single", "KubeRay's one node")
    if "--head" in env.get("KUBERAY_GEN_RAY_START_CMD", "").split() or env.get("RAY_NODE_TYPE_NAME") == "headgroup":
        return Role("head", "KubeRay's head group", nodes)
    return Role("worker", "KubeRay's FQ_RAY_IP", nodes, None, _text(env, "FQ_RAY_IP", "KubeRay"))


def _indexed_job(env: Env, nodes: int | None) -> Role | None:
    """Pods of an indexed Job are called JOB-INDEX; the head is JOB-0, by its full name where the Job has a subdomain."""
    if "JOB_COMPLETION_INDEX" not in env or "VC_TASK_INDEX" in env:
        return None
    if nodes is None:
        return None  # an index alone is also what a batch of independent servers has
    index = _number(env, "JOB_COMPLETION_INDEX", "an indexed Job")
    name, _, domain = socket.getfqdn().partition(".")
    head = f"{name.removesuffix(f'-{index}')}-0.{domain}" if domain and name.endswith(f"-{index}") else None
    return _ranked("an indexed Job's JOB_COMPLETION_INDEX", nodes, index, head)


HEAD_TASKS = ("MASTER", "HEAD", "LEADER", "LAUNCHER")
RULES: tuple[Callable[[Env, int | None], Role | None], ...] = (_lws, _volcano, _ranks, _slurm, _kuberay, _indexed_job)


def _ranked(rule: str, nodes: int, rank: int, head: str | None) -> Role:
    if nodes < 1 or not 0 <= rank < nodes:
        raise Refused(f"{rule} give node {rank} of {nodes}, which cannot be. Set LAUNCH_ROLE, LAUNCH_NODES and LAUNCH_HEAD instead.")
    if nodes == 1:
        return Role("single", rule)
    return Role("worker", rule, nodes, rank, head) if rank else Role("head", rule, nodes, 0, head)


def _text(env: Env, name: str, scheduler: str) -> str:
    if not env.get(name):
        raise Refused(f"The environment looks like {scheduler}, and {name} is not set. Set it, or LAUNCH_ROLE (single, head or worker).")
    return env[name]


def _number(env: Env, name: str, scheduler: str) -> int:
    text = _text(env, name, scheduler)
    if not text.isascii() or not text.isdigit():
        raise Refused(f"{name} is {text!r}, and a number was wanted.")
    return int(text)


def first_host(nodes: str) -> str:
    """The first host of Slurm's short form: `gnode[07,10-12],x1` is gnode07, and brackets may come more than once in a name."""
    name = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", name.group() if name else "")

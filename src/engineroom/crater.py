"""Crater: the documents that its job forms import, and the Volcano jobs that it makes of them.

Facts are those of github.com/raids-lab/crater at b2f1934 (July 2026): the forms' in frontend/src/utils/form.ts, components/form/types.ts and
routes/portal/jobs/new, the jobs' in backend/internal/handler/vcjob.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from engineroom.catalog import Variable
from engineroom.errors import BadRequest
from engineroom.stacks import STOP_MARGIN_SECONDS

VERSION = "20260707"  # of every job form; a document of any other version needs a migration that the portal knows
MOST_NAME = 40  # characters of a job's name in the forms
GRACE_SECONDS = 30  # Crater sets none on its pods, and this is what Kubernetes gives them then
PORT, PAGE_PORT = 8000, 8080
CORES_A_GPU, GIB_A_GPU = 4, 16  # a process of the engine, its copies between disk and GPU, the server in front
CORES_WITHOUT, GIB_WITHOUT = 4, 8
PAGE_CORES, PAGE_GIB = 2, 4

# A folder of the user's own space, made on first use; jobs of one user share it. Mounted where the images keep their caches.
SPACE, CACHE = "user/engineroom", "/cache"
TOKEN = f"{CACHE}/cluster-token"
# Crater runs every container as root; files on the user's volume are to be the user's own. `sh` has neither sudo nor useradd to do more.
AS_USER = 'exec setpriv --reuid "$NB_UID" --regid "$NB_GID" --clear-groups'
# Both nodes may be first; a link is made whole or not at all.
MAKE_TOKEN = f"""\
if [ ! -s {TOKEN} ]; then
  (umask 077; openssl rand -hex 32 >"{TOKEN}.$HOSTNAME")
  ln "{TOKEN}.$HOSTNAME" {TOKEN} || [ -s {TOKEN} ]
  rm "{TOKEN}.$HOSTNAME"
fi
chown "$NB_UID:$NB_GID" {TOKEN}
"""

Form = dict[str, Any]


def forms(job: Mapping[str, Any]) -> dict[str, Form]:
    """The engine's and the page's document, by the name of the job. Raises BadRequest for what Crater's forms cannot say."""
    engine, page = job["name"], f"{job['name']}-page"
    if len(page) > MOST_NAME:
        raise BadRequest(f"Crater takes job names of up to {MOST_NAME} characters, and {page} has {len(page)}. Give the stack a shorter name.")
    selector = _selector(job["node_selector"])
    return {engine: _pytorch(job, selector) if job["nodes"] > 1 else _custom(job, selector), page: _page(job, page, selector)}


def text(form: Form) -> str:
    """A document as a file."""
    return json.dumps(form, indent=2, ensure_ascii=False) + "\n"


def _custom(job: Mapping[str, Any], selector: Form) -> Form:
    command = f"set -eu\n{_leave_address(job)}{_owned(CACHE)}{AS_USER} tini -- launch\n"
    task = {**_task("engine", 1, job["image"], _resource(job), command), "shell": "sh"}
    return _document("custom", job["name"], _engine_variables(job), selector, task=task, **_custom_only())


def _pytorch(job: Mapping[str, Any], selector: Form) -> Form:
    """The roles' names are those that Crater gives to Volcano's plugin. A forward would go to every node, and only the head answers: there is none."""
    run = f"{_owned(CACHE)}{AS_USER} tini -- launch\n"
    head = _task("master", 1, job["image"], _resource(job), f"set -eu\n{_leave_address(job)}{MAKE_TOKEN}{run}", [{"name": "api", "port": PORT}])
    worker = _task("worker", job["nodes"] - 1, job["image"], _resource(job), f"set -eu\n{MAKE_TOKEN}{run}")
    variables = {**_engine_variables(job), "LAUNCH_CLUSTER_TOKEN_FILE": TOKEN}
    return _document("pytorch", job["name"], variables, selector, ps=head, worker=worker)


def _page(job: Mapping[str, Any], name: str, selector: Form) -> Form:
    """Nobody knows the engine's address, nor the page's own, before Crater has named the jobs: the page reads the one that the engine left."""
    data = "/app/backend/data"
    settings = {variable.name: variable.value for variable in job["page_settings"].values()}
    empty = "".join(f" {variable}=" for variable, value in settings.items() if not value)  # a form takes no empty value
    command = f"""\
set -eu
engine=$(cat {_address(job)}) && getent hosts "$engine" || {{
  echo "No engine of {job["name"]} is running. Submit {job["name"]}.json first, and this job again when it runs." >&2
  exit 69
}}
{_owned(data)}export OPENAI_API_BASE_URLS="http://$engine:{PORT}/v1"{empty}
if command -v webui; then set -- tini -e 143 -- webui; else set -- bash start.sh; fi
{AS_USER} "$@"
"""
    resource = _resources(PAGE_CORES, PAGE_GIB, {"count": 0})
    task = {**_task("page", 1, job["page_image"], resource, command, workdir="/app/backend"), "shell": "sh"}
    variables = {variable: value for variable, value in settings.items() if value} | {"DEFAULT_MODELS": job["model_name"]}
    form = _document("custom", name, variables, selector, task=task, **_custom_only())
    form["data"]["volumeMounts"].append({"type": 1, "subPath": f"{SPACE}/{name}", "mountPath": data})
    form["data"]["forwards"].append({"name": "page", "port": PAGE_PORT})
    return form


def _document(kind: str, name: str, variables: Mapping[str, str], selector: Form, **parts: Any) -> Form:
    data = {
        "jobName": name,
        **parts,
        "envs": [{"name": variable, "value": value} for variable, value in variables.items()],
        "volumeMounts": [{"type": 1, "subPath": SPACE, "mountPath": CACHE}],
        "alertEnabled": True,  # mail before Crater ends an idle job
        "nodeSelector": selector,
        "forwards": [],
    }
    return {"version": VERSION, "type": kind, "data": data}


def _custom_only() -> Form:
    return {"cpuPinningEnabled": False, "scheduleType": 1}  # an ordinary job; 0 is one that fills gaps and may be put off


def _task(name: str, replicas: int, image: str, resource: Form, command: str, ports: Iterable[Form] = (), workdir: str = CACHE) -> Form:
    return {
        "taskName": name,
        "replicas": replicas,
        "resource": resource,
        "image": {"imageLink": image, "archs": ["linux/amd64"]},
        "command": command,
        "workingDir": workdir,
        "ports": list(ports),
    }


def _resource(job: Mapping[str, Any]) -> Form:
    """What a node of the engine asks for. Memory holds /dev/shm as well: Crater's has no size of its own."""
    gpus = job["gpus"]
    if not gpus:
        return _resources(CORES_WITHOUT, GIB_WITHOUT + job["shm_gib"], {"count": 0})
    model = f"nvidia.com/{job['gpu'].rpartition('-')[0]}"  # Crater tells kinds of GPUs apart by the names of their resources
    return _resources(CORES_A_GPU * gpus, GIB_A_GPU * gpus + job["shm_gib"], {"count": gpus, "model": model})


def _resources(cores: int, gib: int, gpu: Form) -> Form:
    return {"cpu": cores, "memory": gib, "gpu": gpu, "network": {"enabled": False}, "vgpu": {"enabled": False}}  # the network is RDMA's


def _selector(labels: Mapping[str, str]) -> Form:
    """The form takes names of nodes and no other label."""
    if others := sorted(labels.keys() - {"kubernetes.io/hostname"}):
        raise BadRequest(
            f"Crater's forms choose nodes by name and GPUs by kind, and know no {', '.join(others)}. "
            "Leave --node-selector out, or name a node: --node-selector kubernetes.io/hostname=NODE."
        )
    return {"enable": bool(labels), "mode": "include", "nodes": list(labels.values())}


def _engine_variables(job: Mapping[str, Any]) -> dict[str, str]:
    settings: Mapping[str, Variable] = job["engine_environment"]
    return {
        "LAUNCH_MODEL": job["model"],
        "LAUNCH_MODEL_NAME": job["model_name"],
        **{name: variable.value for name, variable in settings.items()},
        "LAUNCH_DRAIN_SECONDS": str(GRACE_SECONDS - STOP_MARGIN_SECONDS),
    }


def _address(job: Mapping[str, Any]) -> str:
    return f"{CACHE}/{job['name']}.address"


def _leave_address(job: Mapping[str, Any]) -> str:
    """Volcano's svc plugin gives each pod a name that the namespace resolves while it runs."""
    return f"hostname -f >{_address(job)}\n"


def _owned(folder: str) -> str:
    return f'chown "$NB_UID:$NB_GID" {folder}\n'


# What Crater makes of a form, for a reader or for a cluster with Volcano alone. Names that Crater makes up are examples.
USER, UID, DAY = "user", "1001", "260724"
SERVICE = ["--publish-not-ready-addresses=false", "--disable-network-policy=false"]


def volcano(documents: Mapping[str, Form]) -> dict[str, Any]:
    """What the template of the Volcano jobs needs: each document's job as backend/internal/handler/vcjob/{custom,pytorch,util}.go make it."""
    return {"jobs": [_volcano_job(form, number) for number, form in enumerate(documents.values())], "user": USER}


def _volcano_job(form: Form, number: int) -> dict[str, Any]:
    data, distributed = form["data"], form["type"] == "pytorch"
    tasks = [data["ps"], data["worker"]] if distributed else [data["task"]]
    base = f"{USER}-{DAY}-{number:05x}"
    return {
        "name": f"{'pyt' if distributed else 'sg'}-{base}",
        "base": base,
        "title": data["jobName"],
        "kind": form["type"],
        "forwards": json.dumps([{"type": 0, **forward} for forward in data["forwards"]], separators=(",", ":")) if data["forwards"] else "",
        "plugins": {"pytorch": ["--master=master", "--worker=worker", "--port=23456"], "svc": []} if distributed else {"svc": SERVICE},
        "min_available": sum(task["replicas"] for task in tasks),
        "max_retry": 3 if distributed else 1,
        "tasks": [_volcano_task(task, distributed) for task in tasks],
        "variables": {variable["name"]: variable["value"] for variable in data["envs"]} | {"NB_USER": USER, "NB_GID": UID, "NB_UID": UID},
        "mounts": [{"path": mount["mountPath"], "space": mount["subPath"].replace("user", f"users/{USER}", 1)} for mount in data["volumeMounts"]],
        "nodes": data["nodeSelector"]["nodes"],
    }


def _volcano_task(task: Form, distributed: bool) -> dict[str, Any]:
    resource = task["resource"]
    gpu = {resource["gpu"]["model"]: resource["gpu"]["count"]} if resource["gpu"]["count"] else {}
    return {
        "name": task["taskName"] if distributed else "default0",  # Crater gives a custom job's task no name, and Volcano this one
        "container": task["taskName"] if distributed else "custom",
        "head": task["taskName"] == "master",
        "restart": "OnFailure" if task["taskName"] == "worker" else "Never",
        "completes": task["taskName"] != "worker",
        "replicas": task["replicas"],
        "image": task["image"]["imageLink"],
        "command": ["sh", "-c", task["command"]],
        "workdir": task["workingDir"],
        "ports": task["ports"],
        "requests": {"cpu": str(resource["cpu"]), "memory": f"{resource['memory']}Gi", **gpu},
        # A little more than is asked for, so that Kubernetes may resize the pod while it runs.
        "limits": {"cpu": f"{resource['cpu'] * 1000 + 1}m", "memory": f"{resource['memory'] * 1024 + 1}Mi", **gpu},
    }

"""Crater: documents that the job forms of its portal import, for the engine and for the page, and the Volcano jobs that they become.

Facts are those of github.com/raids-lab/crater at b2f1934 (July 2026); of the forms in frontend/src/utils/form.ts, components/form/types.ts
and routes/portal/jobs/new/{single-job,pytorch-ddp-job}.tsx.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from engineroom.catalog import Catalog
from engineroom.errors import BadRequest, CannotRun
from engineroom.forms import crater_volcano
from engineroom.stacks import STOP_MARGIN_SECONDS

Job = Mapping[str, Any]
Document = dict[str, Any]

VERSION = "20260707"  # of every job form; from any other version the portal needs a migration that it knows
MOST_NAME = 40  # characters of a job's name
PAGE_CORES, PAGE_GIB = 2, 4
DATA = "/app/backend/data"

# A folder of the user's own space, made on first use, where the images keep their caches. All jobs of a user see the same.
SPACE, CACHE = "user/engineroom", "/cache"
TOKEN = f"{CACHE}/cluster-token"
# Nodes start at once, and each may be first: a link is made whole or not at all.
MAKE_TOKEN = f"""\
if [ ! -s {TOKEN} ]; then
  (umask 077; openssl rand -hex 32 >"{TOKEN}.$HOSTNAME")
  ln "{TOKEN}.$HOSTNAME" {TOKEN} || [ -s {TOKEN} ]
  rm "{TOKEN}.$HOSTNAME"
fi
chown "$NB_UID:$NB_GID" {TOKEN}
"""
# Crater runs every container as root, and says who its user is. Files in the user's space are to be the user's own.
AS_USER = 'exec setpriv --reuid "$NB_UID" --regid "$NB_GID" --clear-groups'
LAUNCH = f'chown "$NB_UID:$NB_GID" {CACHE}\n{AS_USER} tini -- launch\n'


def files(catalog: Catalog, job: Job) -> dict[str, str]:
    """A document for the engine, one for the page, and both as Volcano jobs. Raises BadRequest or CannotRun for what Crater cannot say."""
    found = documents(catalog, job)
    texts = {f"{name}.json": json.dumps(document, indent=2, ensure_ascii=False) + "\n" for name, document in found.items()}
    return {**texts, f"{job['name']}-volcano.yaml": crater_volcano.text(job["command"], found.values())}


def documents(catalog: Catalog, job: Job) -> dict[str, Document]:
    """The documents by the names of their jobs."""
    page = f"{job['name']}-page"
    if len(page) > MOST_NAME:
        raise CannotRun(
            f"Crater takes job names of up to {MOST_NAME} characters, and {page} has {len(page)}. Give the stack a shorter name."
        )
    refuse(job)
    resource = resources(job["cpus"], job["memory_gib"], catalog.stacks[job["name"]].gpu, job["gpus"])
    return {job["name"]: distributed(job, resource) if job["clustered"] else single(job, resource), page: webui(job, page)}


def refuse(job: Job) -> None:
    """Raise BadRequest for options that mean nothing here, CannotRun for a gateway."""
    if job["gateway"]["enabled"]:
        raise CannotRun(
            f"{job['name']} on Crater with a gateway: Crater's forms know no Secret for its keys and no Service, and its ingress ends TLS itself and "
            "speaks plain HTTP to jobs, which the gateway does not.\nLeave --gateway out (docs/crater.md says who reaches what), or use another form."
        )
    if job["namespace"] or job["storage_class"]:
        raise BadRequest("Crater has one namespace and one volume for all jobs. Leave --namespace and --storage-class out.")
    if "hf_token" in job["secrets"] or job["cluster_token"]:
        raise BadRequest(
            "Crater's forms know no secrets: tokens are files in your space (docs/crater.md). Leave --hf-token and --cluster-token out."
        )
    if others := sorted(job["node_selector"].keys() - {"kubernetes.io/hostname"}):
        raise BadRequest(
            f"Crater's forms choose GPUs by kind and nodes by name, and know no label {', '.join(others)}. "
            "Leave --node-selector out, or name a node: --node-selector kubernetes.io/hostname=NODE."
        )


def single(job: Job, resource: Document) -> Document:
    """A custom job: one container."""
    return custom(
        job, job["name"], task("engine", job["image"], resource, f"set -eu\n{leave_address(job)}{LAUNCH}", CACHE), environment(job)
    )


def distributed(job: Job, resource: Document) -> Document:
    """A PyTorch job, whose two roles have the names that Crater tells Volcano's plugin. It has no forwards: they would lead to every node."""
    head = task("master", job["image"], resource, f"set -eu\n{leave_address(job)}{MAKE_TOKEN}{LAUNCH}", CACHE)
    worker = task("worker", job["image"], resource, f"set -eu\n{MAKE_TOKEN}{LAUNCH}", CACHE, replicas=job["nodes"] - 1)
    variables = environment(job) | {"LAUNCH_CLUSTER_TOKEN_FILE": TOKEN}
    return document("pytorch", job, job["name"], {"ps": head, "worker": worker}, variables)


def webui(job: Job, name: str) -> Document:
    """Open WebUI. No name of the engine is known before Crater has made its job, so the page reads the one that the engine left."""
    settings = {variable.name: variable.value for variable in job["page_settings"].values()}
    empty = "".join(f" {variable}=" for variable, value in settings.items() if not value)  # a form takes no empty value
    command = f"""\
set -eu
engine=$(cat {address(job)}) && getent hosts "$engine" || {{
  echo "No engine of {job["name"]} is running. Submit {job["name"]}.json, and this job again when that one runs." >&2
  exit 69
}}
chown "$NB_UID:$NB_GID" {DATA}
export OPENAI_API_BASE_URLS="http://$engine:{job["port"]}/v1"{empty}
if command -v webui; then set -- tini -e 143 -- webui; else set -- bash start.sh; fi
{AS_USER} "$@"
"""
    variables = {variable: value for variable, value in settings.items() if value} | {"DEFAULT_MODELS": job["model_name"]}
    found = custom(job, name, task("page", job["page_image"], resources(PAGE_CORES, PAGE_GIB), command, "/app/backend"), variables)
    found["data"]["volumeMounts"].append(mount(f"{SPACE}/{name}", DATA))
    found["data"]["forwards"].append({"name": "page", "port": job["page_port"]})
    return found


def custom(job: Job, name: str, only: Document, variables: Mapping[str, str]) -> Document:
    """A document of the custom form. `sh` is the shell that runs as root and asks for no sudo; schedule type 1 is an ordinary job."""
    return document("custom", job, name, {"task": {**only, "shell": "sh"}, "cpuPinningEnabled": False, "scheduleType": 1}, variables)


def document(kind: str, job: Job, name: str, parts: Mapping[str, Any], variables: Mapping[str, str]) -> Document:
    """What all forms have, in the portal's wrapper. `alertEnabled` is the mail that comes before Crater ends an idle job."""
    nodes = list(job["node_selector"].values())
    data = {
        "jobName": name,
        **parts,
        "envs": [{"name": variable, "value": value} for variable, value in variables.items()],
        "volumeMounts": mounts(job),
        "alertEnabled": True,
        "nodeSelector": {"enable": bool(nodes), "mode": "include", "nodes": nodes},
        "forwards": [],
    }
    return {"version": VERSION, "type": kind, "data": data}


def mounts(job: Job) -> list[Document]:
    """The caches, and what the user names as models."""
    return [mount(SPACE, CACHE), *([mount(job["models"], job["models_folder"])] if job["models"] else [])]


def mount(source: str, path: str) -> Document:
    """A folder of Crater's volume. Raises BadRequest for one that is in no space of it."""
    if source.split("/", maxsplit=1)[0] not in {"user", "account", "public"} or ".." in source:
        raise BadRequest(f"--models {source}: folders on Crater are below `user`, `account` or `public`, such as public/models.")
    return {"type": 1, "subPath": source, "mountPath": path}


def task(name: str, image: str, resource: Document, command: str, folder: str, *, replicas: int = 1) -> Document:
    """A role: its containers and what each of them takes."""
    return {
        "taskName": name,
        "replicas": replicas,
        "resource": resource,
        "image": {"imageLink": image, "archs": ["linux/amd64"]},
        "command": command,
        "workingDir": folder,
        "ports": [],
    }


def resources(cores: int, gib: int, gpu: str = "", gpus: int = 0) -> Document:
    """What a container takes; shared memory is part of `gib`. A kind of GPU is a resource of its own; `network` is RDMA, which is off."""
    count = {"count": gpus, "model": f"nvidia.com/{gpu.rpartition('-')[0]}"} if gpus else {"count": 0}
    return {"cpu": cores, "memory": gib, "gpu": count, "network": {"enabled": False}, "vgpu": {"enabled": False}}


def environment(job: Job) -> dict[str, str]:
    """The launcher's settings. Crater's pods have the 30 s between the request to end and the end that Kubernetes gives where nobody says more."""
    return {variable.name: variable.value for variable in job["environment"]} | {"LAUNCH_DRAIN_SECONDS": str(30 - STOP_MARGIN_SECONDS)}


def address(job: Job) -> str:
    """Where the engine leaves its address for the page."""
    return f"{CACHE}/{job['name']}.address"


def leave_address(job: Job) -> str:
    """Volcano's svc plugin gives a pod a name that the namespace knows while it runs."""
    return f"hostname -f >{address(job)}\n"

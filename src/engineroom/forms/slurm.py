"""Slurm: one `sbatch` script that starts a launcher on each node, in whatever container the cluster has.

Sources: sbatch(1) and srun(1) of Slurm 22.05 to 26.11; args.c of Pyxis 0.24; src/docker.sh of Enroot 3.4 to 4.1; action_flags.go of Apptainer 1.5.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from shlex import quote
from typing import Any
from urllib.parse import urlsplit

from engineroom import stacks
from engineroom.catalog import Catalog
from engineroom.errors import BadRequest
from engineroom.render import template
from engineroom.rows import Variable

Job = Mapping[str, Any]
HOURS = 8  # a working day; more than the longest start, and few partitions allow less
SCRIPT_SETS = ("LAUNCH_CLUSTER_TOKEN_FILE", "HF_TOKEN_FILE", "OPENAI_API_BASE_URLS")  # they depend on the job and its container
TO_FILL_IN = (
    ("partition", "gpu", "sinfo shows them"),
    ("account", "PROJECT", "where hours are counted"),
    ("constraint", "v100", "the kind of GPU, in the cluster's words"),
    ("exclusive", "user", "others on the node could reach the API and the page"),
)


def files(catalog: Catalog, job: Job) -> dict[str, str]:
    """One file: `sbatch` takes it. Raises BadRequest for options that mean nothing to Slurm."""
    if job["namespace"] or job["storage_class"]:
        raise BadRequest(
            "Slurm has no namespaces and no volumes. Leave --namespace and --storage-class out; docs/slurm.md has the folders."
        )
    if job["cluster_token"] or "hf_token" in job["secrets"]:
        raise BadRequest("Slurm keeps no secrets: set HF_TOKEN_FILE or CLUSTER_TOKEN_FILE to a file of yours when you submit.")
    if job["gateway"]["own_secrets"] or job["gateway"]["replicas"] > 1:
        raise BadRequest(
            "Slurm runs one gateway, on the first node, and its secrets are files: set GATEWAY_KEYS_FILE when you submit, and leave "
            "--gateway-replicas, --gateway-keys and --gateway-certificate out."
        )
    values = {
        **job,
        "sbatch": directives(job),
        "to_fill_in": [line for line in TO_FILL_IN if line[0] not in job["node_selector"]],
        "environment": quoted(job["environment"]),
        "page_environment": quoted(job["page_environment"]),
        "gateway": gateway(job),
        **{name: quote(job[name]) if job[name] else "" for name in ("image", "page_image", "models", "url")},
        "local_port": 80 if job["url"] == "http://localhost" else urlsplit(job["url"]).port or 3000,
        "request": quote(json.dumps({"model": job["model_name"], "messages": [{"role": "user", "content": "What is 17 + 25?"}]})),
    }
    return {f"{job['name']}.slurm.sh": template(catalog.root, "compose", "cluster/slurm.sh.j2", values)}


def gateway(job: Job) -> dict[str, Any]:
    """The gateway on the first node, in the words of the script's own variables."""
    (drain,) = (setting for setting in job["gateway"]["environment"] if setting.name == "GATEWAY_DRAIN_SECONDS")
    page = "${WEBUI_IMAGE:+127.0.0.1:$WEBUI_PORT}"
    return {
        **job["gateway"],
        "image": quote(job["gateway"]["image"]),
        "environment": stacks.gateway_environment("127.0.0.1:$API_PORT", page, "0.0.0.0:$GATEWAY_PORT", int(drain.value)),
        "secrets": stacks.GATEWAY_SECRETS,
        "choices": stacks.GATEWAY_CHOICES,
    }


def directives(job: Job) -> list[tuple[str, str]]:
    """What sbatch is asked for; times in Slurm's spelling, memory in GiB."""
    found = {
        "job-name": job["name"],
        "nodes": str(job["nodes"]),
        "ntasks-per-node": "1",
        **({"gres": f"gpu:{job['gpus']}"} if job["gpus"] else {}),
        "cpus-per-task": str(job["cpus"]),
        "mem": f"{job['memory_gib']}G",
        "time": f"{HOURS:02}:00:00",
        "signal": f"B:USR1@{job['stop_seconds']}",  # seconds before the end, for running answers
        "no-requeue": "",  # who asked for it is no longer there
        "output": "%x-%j.log",
    }
    for name, value in job["node_selector"].items():
        if not re.fullmatch(r"[a-z][a-z-]+", name) or not re.fullmatch(r"[!-~]+", value):
            raise BadRequest(
                f"--node-selector {name}={value}: for Slurm these are options of sbatch, such as partition=gpu or constraint=v100."
            )
        found[name] = value
    return list(found.items())


def quoted(variables: Iterable[Variable]) -> list[tuple[str, str, str]]:
    """Name, value for a shell, and reason."""
    return [(variable.name, quote(variable.value), variable.why) for variable in variables if variable.name not in SCRIPT_SETS]

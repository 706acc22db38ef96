"""Ray on one node: its command line, its ports, its environment. Everything listens on the node's chosen address alone."""

from __future__ import annotations

import os

from launcher.errors import Refused

# Distances from LAUNCH_CLUSTER_PORT. The launcher's own channel comes first; with the default of 6370, Ray has its usual 6379.
MASTER, NODE_MANAGER, OBJECT_MANAGER, RUNTIME_ENV, AGENT_GRPC, AGENT_HTTP, METRICS, GCS = 1, 2, 3, 4, 5, 6, 7, 9
CLIENT_PORT = 10001  # Ray's client server, on the head, where grpcio is installed; no option leaves it out
WORKER_PORTS = (10002, 19999)  # Ray's own default
OBJECT_STORE = 256 << 20  # bytes: the engines move tensors by NCCL and only small objects through Ray
LEAST_STORE = 80 << 20  # Ray refuses less
ESSENTIAL = ("gcs_server", "raylet")  # their end is the node's end
START_TRIES = 3  # Ray gives itself 30 s to start, which no option changes; a busy machine takes longer


def check_ports(cluster_port: int, api_port: int, executor: str) -> None:
    """Raises Refused when the ports of the cluster, of Ray's workers and of the API run into each other."""
    ours = range(cluster_port, cluster_port + GCS + 1)
    high = WORKER_PORTS[1]
    if executor == "ray" and ours[0] <= high and ours[-1] >= CLIENT_PORT:
        raise Refused(
            f"LAUNCH_CLUSTER_PORT {cluster_port} takes {ours[0]} to {ours[-1]}, and Ray's workers have {CLIENT_PORT} to {high}.\n"
            "Choose one whose ten ports lie below or above, the same on every node; the default is 6370."
        )
    if api_port in ours or (executor == "ray" and CLIENT_PORT <= api_port <= high):
        workers = f", and {CLIENT_PORT} to {high} for Ray's workers" if executor == "ray" else ""
        raise Refused(
            f"LAUNCH_PORT {api_port} is one of the cluster's own ports ({ours[0]} to {ours[-1]}{workers}).\nChoose another, for example 8000."
        )


def command(*, head: str | None, ip: str, port: int, gpus: int, store: int) -> list[str]:
    """`ray start` on this node; `head` is the head's address for a worker and None for the head. It returns when the node is up."""
    first = (
        ["--head", f"--port={port + GCS}", "--include-dashboard=false", "--no-monitor"]
        if head is None
        else [f"--address={head}:{port + GCS}"]
    )
    return [
        "ray",
        "start",
        *first,
        f"--node-ip-address={ip}",
        f"--node-manager-port={port + NODE_MANAGER}",
        f"--object-manager-port={port + OBJECT_MANAGER}",
        f"--runtime-env-agent-port={port + RUNTIME_ENV}",
        f"--dashboard-agent-grpc-port={port + AGENT_GRPC}",
        f"--dashboard-agent-listen-port={port + AGENT_HTTP}",
        f"--metrics-export-port={port + METRICS}",
        f"--min-worker-port={WORKER_PORTS[0]}",
        f"--max-worker-port={WORKER_PORTS[1]}",
        f"--num-gpus={gpus}",
        f"--object-store-memory={store}",
        "--disable-usage-stats",
    ]


def environment(token: str) -> dict[str, str]:
    """The token, and the mode set outright: newer releases guess it from files in the home folder."""
    auth = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token} if token else {"RAY_AUTH_MODE": "disabled"}
    return {**auth, "RAY_USAGE_STATS_ENABLED": "0", "RAY_DISABLE_IMPORT_WARNING": "1"}


def store_bytes() -> int:
    """Memory for Ray's objects: little, and no more than shared memory has room for."""
    try:
        shm = os.statvfs("/dev/shm")  # noqa: S108 - where Ray puts them
    except OSError:
        return LEAST_STORE
    return max(LEAST_STORE, min(OBJECT_STORE, shm.f_bavail * shm.f_frsize // 2))


def version() -> str:
    """Ray's release beside the `ray` program on PATH, read from its metadata: an import would take seconds. Empty when there is none."""
    import glob
    import shutil

    program = shutil.which("ray")
    if not program:
        return ""
    prefix = os.path.dirname(os.path.dirname(os.path.abspath(program)))
    found = glob.glob(os.path.join(prefix, "lib", "python3*", "*-packages", "ray-*.dist-info"))
    return os.path.basename(max(found))[len("ray-") : -len(".dist-info")] if found else "unknown"

"""What the container must give: shared memory, room and rights for caches, free ports; and a door that stays shut."""

from __future__ import annotations

import contextlib
import os
import re
import socket

from launcher import hardware, hub, raynode
from launcher.checks.common import SILENT, Case, Check, gib, ok, refused, warning

GIB = 1 << 30
# Docker gives 64 MiB. NCCL says in its chapter on troubleshooting that this is too little, and asks for 1 GiB:
# https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/troubleshooting.html#shared-memory
SEVERAL_PROCESSES = GIB
ONE_PROCESS_OF_MP = 400 << 20  # vLLM's message queue: measured, see images/images.toml
UNDER_RAY = 2 * raynode.LEAST_STORE  # below it Ray puts its objects into /tmp


def shared_memory(case: Case) -> Check:
    """Processes of one node talk through /dev/shm; a single one needs next to nothing."""
    found, processes, cluster = hardware.shm_bytes(), case.processes, case.plan.cluster
    size = "16g" if any(case.facts.gpus.values()) else "1g"
    fix = (
        f"docker run --shm-size={size} … (compose: shm_size: {size}b; Kubernetes: an emptyDir with medium: Memory, mounted at {hardware.SHM}). "
        "--ipc=host does as well."
    )
    if processes > 1 and found < SEVERAL_PROCESSES:
        return refused(
            f"{hardware.SHM} has {gib(found)}, and {processes} processes that share a model here want {gib(SEVERAL_PROCESSES)}", fix
        )
    ray = cluster is not None and cluster.executor == "ray"
    least = UNDER_RAY if ray else ONE_PROCESS_OF_MP if case.flag("distributed-executor-backend") == "mp" else 0
    if found < least:
        return warning(f"{hardware.SHM} has {gib(found)}, and {'Ray' if ray else 'the mp executor'} wants {gib(least)}", fix)
    return ok(f"{hardware.SHM} has {gib(found)}, for {processes} process{'es' if processes > 1 else ''} on this node")


def cache(case: Case) -> Check:
    """What has yet to be fetched finds room, and the folder of all caches can be written."""
    cached = case.plan.cached
    if cached and cached.lacks:
        folder = hub.cache(case.env)
        return closed(folder) or _room(case, folder, cached.folder)
    folder = case.env.get("XDG_CACHE_HOME") or os.path.expanduser("~")
    shut = closed(folder)
    return warning(f"{shut.text}: compiled kernels are not kept", shut.fix) if shut else SILENT


def closed(folder: str) -> Check | None:
    """A refusal when this user may not write a folder, or make it."""
    if os.access(_nearest(folder), os.W_OK | os.X_OK, effective_ids=True):
        return None
    user = os.geteuid()
    fix = f"Mount a volume that user {user} may write: docker run -v NAME:/cache …; on the host, `chmod -R g+rwX` on its folder."
    return refused(f"{folder} cannot be written by user {user}", fix)


def free_bytes(folder: str) -> int:
    """Bytes free on the file system on which a folder is, or will be."""
    disk = os.statvfs(_nearest(folder))
    return disk.f_bavail * disk.f_frsize


def _room(case: Case, folder: str, snapshot: str) -> Check:
    model, free = case.plan.model, free_bytes(folder)
    whole = hub.bytes_whole(model, snapshot)
    if not whole:
        return ok(f"{gib(free)} free in {folder}; how much {model} needs is not known before it is fetched")
    missing = max(whole - hub.bytes_here(model, case.env), 0)
    if missing > free:
        return refused(
            f"{model} needs {gib(missing)} more ({missing} bytes of {whole}), and {folder} has {gib(free)} free ({free} bytes)",
            "Free space there, or mount a larger volume at /cache. What is fetched already stays: a download goes on where it ended.",
        )
    return ok(f"{gib(missing)} to fetch, {gib(free)} free in {folder}")


def _nearest(folder: str) -> str:
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder) or "."
    return folder


def ports(case: Case) -> Check:
    """The ports on which this node will listen are free."""
    plan, cluster = case.plan, case.plan.cluster
    wanted = [(plan.host, plan.port, "LAUNCH_PORT")] if plan.serves else []
    if cluster:
        numbers = [0] if plan.serves else []
        if cluster.executor == "ray":
            numbers += [*range(raynode.NODE_MANAGER, raynode.METRICS + 1), *([raynode.GCS] if plan.serves else [])]
        elif plan.serves:
            numbers.append(raynode.MASTER)
        wanted += [("", cluster.port + number, "LAUNCH_CLUSTER_PORT, on every node,") for number in numbers]
    for host, port, setting in wanted:
        reason = busy(host, port)
        if reason:
            return refused(
                f"Port {port} cannot be used: {reason}", f"Stop what listens there (`ss -ltnp`), or set {setting} to another.", hard=True
            )
    listed = ", ".join(str(port) for _, port, _ in wanted)
    return ok(f"{listed} {'is' if len(wanted) == 1 else 'are'} free") if wanted else SILENT


def busy(host: str, port: int) -> str:
    """Why nothing can listen on a port, and who does; empty when it is free."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((os.fsencode(host), port))  # bytes: a text would load the idna codec
        except OSError as error:
            return f"{error.strerror or error}{holder(port)}"
    return ""


def holder(port: int) -> str:
    """`, by NAME (process N)`, as far as this user may see it in /proc."""
    sockets = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError), open(table, encoding="ascii") as file:
            sockets |= {f"socket:[{inode}]" for inode in re.findall(rf":{port:04X} [0-9A-F:]+ 0A (?:\S+ +){{5}}(\d+)", file.read())}
    for process in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            folder = f"/proc/{process}/fd"
            if any(os.readlink(f"{folder}/{name}") in sockets for name in os.listdir(folder)):
                with open(f"/proc/{process}/comm", encoding="utf-8", errors="replace") as file:
                    return f", by {file.read().strip()} (process {process})"
    return ""


def eager(case: Case) -> Check:
    """CUDA graphs are on unless somebody took a guide's word for it. Source: one H200, vLLM 0.25.1, a 7 B: 1.8 times at 128 requests, 2.8 at one."""
    if case.flag("enforce-eager", "disable-cuda-graph") != "true" or not any(case.facts.gpus.values()):
        return SILENT
    return warning(
        "CUDA graphs are switched off: an H200 gave 1.2 to 2.8 times the tokens with them",
        "Leave --enforce-eager (SGLang: --disable-cuda-graph) out, unless the start must be quick or memory is short.",
    )


def development(case: Case) -> Check:
    """VLLM's development mode opens paths that reset caches and run methods of the workers, to everybody who reaches the port."""
    if case.env.get("VLLM_SERVER_DEV_MODE", "0").strip() in ("", "0"):
        return SILENT
    return refused(
        f"VLLM_SERVER_DEV_MODE is {case.env['VLLM_SERVER_DEV_MODE']}: whoever reaches the API could reset the engine and call into its workers",
        "Unset it. For a development stack on a closed network, set LAUNCH_CHECKS=warn.",
    )

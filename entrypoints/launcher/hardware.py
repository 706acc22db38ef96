"""The GPUs that the engine will see, their driver, and the limits of this container; without torch.

NVML through nvidia-ml-py, else one call of nvidia-smi. Where neither is there, there is no GPU to be seen, and the launcher goes on.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

PROGRAM_SECONDS = 10
PROGRAM_FIELDS = "uuid,name,compute_cap,memory.total,memory.free,driver_version"  # memory in MiB
PROGRAM_USABLE = 0.99  # of the total: old drivers do not name what they reserve; 616 of 143771 MiB on an H200
NO_TOOL = "no GPU tool here, neither NVML's library nor nvidia-smi: this container was given no NVIDIA driver"
SHM = "/dev/shm"  # noqa: S108 - where processes share memory
LIBRARY_NOT_FOUND = 12  # numbers of nvmlReturn_t: https://docs.nvidia.com/deploy/nvml-api/group__nvmlDeviceEnumvs.html
REASONS = {
    4: "this user may not use the GPUs; look at the rights of /dev/nvidia* and at the device plugin",
    9: "the driver's kernel module is not loaded; on the host, `nvidia-smi` says the same until the driver is installed or loaded",
    15: "a GPU has fallen off the bus; the host's `dmesg` says why (Xid), and a reboot brings it back",
    18: "the driver was updated and the old one is still loaded; reboot the host, or unload and load its modules",
    999: "the container has lost its GPUs, which a `systemctl daemon-reload` on the host can do; create the container anew",
}


class Gpu(NamedTuple):
    """One GPU, or one MIG instance; `capability` is 90 for 9.0; `memory` in bytes as CUDA reports it, and what of it is free."""

    name: str
    capability: int
    memory: int
    free: int


class Hardware(NamedTuple):
    """The GPUs in CUDA's order, the driver's version ("" unknown), the newest CUDA that it runs (13000 for 13.0, 0 unknown).

    `found_by` says how this was found out, or why there is nothing.
    """

    gpus: tuple[Gpu, ...]
    driver: str
    cuda: int
    found_by: str


NONE = Hardware((), "", 0, "not looked for")


class Device(NamedTuple):
    """A GPU or MIG instance with its UUID; MIG instances have no place in CUDA's numbering."""

    uuid: str
    gpu: Gpu
    numbered: bool = True


class Limits(NamedTuple):
    """What this container may use: bytes of memory and how many of them are free, of /dev/shm, and CPUs."""

    memory: int
    free: int
    shm: int
    cpus: float


def look(env: Mapping[str, str]) -> Hardware:
    """GPUs and driver. Never raises: what goes wrong stands in `found_by`."""
    try:
        import pynvml
    except ImportError:
        return _by_program(env)
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return _by_program(env) if error.value == LIBRARY_NOT_FOUND else Hardware((), "", 0, f"NVML fails: {_reason(error)}")
    driver, cuda = "", 0
    try:
        driver, cuda = str(pynvml.nvmlSystemGetDriverVersion()), int(pynvml.nvmlSystemGetCudaDriverVersion_v2())
        devices = [device for index in range(pynvml.nvmlDeviceGetCount()) for device in _devices(pynvml, index)]
    except pynvml.NVMLError as error:
        return Hardware((), driver, cuda, f"NVML fails: {_reason(error)}")
    finally:
        pynvml.nvmlShutdown()
    return _chosen(devices, driver, cuda, "NVML", env)


def _reason(error: Any) -> str:
    known = REASONS.get(error.value)
    return f"{error} ({known})" if known else str(error)


def _devices(nvml: Any, index: int) -> list[Device]:
    """A GPU; in MIG mode its first instance in its place, which is the only one that CUDA shows, and all instances by their UUIDs.

    Source: https://docs.nvidia.com/datacenter/tesla/mig-user-guide/ (one process sees one MIG device)
    """
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)

    def gpu(part: Any) -> Gpu:
        memory = nvml.nvmlDeviceGetMemoryInfo(part, version=nvml.nvmlMemory_v2)
        return Gpu(nvml.nvmlDeviceGetName(part), major * 10 + minor, memory.total - memory.reserved, memory.free)

    uuid = nvml.nvmlDeviceGetUUID(handle)
    try:
        mig = nvml.nvmlDeviceGetMigMode(handle)[0] == nvml.NVML_DEVICE_MIG_ENABLE
    except nvml.NVMLError:  # a GPU or a driver without MIG
        mig = False
    if not mig:
        return [Device(uuid, gpu(handle))]
    parts = []
    for number in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        try:
            part = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number)
        except nvml.NVMLError:  # a place without an instance
            continue
        parts.append(Device(nvml.nvmlDeviceGetUUID(part), gpu(part), numbered=False))
    return [*(Device(uuid, part.gpu) for part in parts[:1]), *parts]


def _by_program(env: Mapping[str, str]) -> Hardware:
    import shutil

    if not shutil.which("nvidia-smi"):
        return Hardware((), "", 0, NO_TOOL)
    import subprocess

    command = ["nvidia-smi", f"--query-gpu={PROGRAM_FIELDS}", "--format=csv,noheader,nounits"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=PROGRAM_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return Hardware((), "", 0, f"nvidia-smi has not answered in {PROGRAM_SECONDS} s: the driver hangs; the host's `dmesg` says why")
    except OSError as error:
        return Hardware((), "", 0, f"nvidia-smi cannot be run: {error.strerror}")
    if found.returncode:
        return Hardware((), "", 0, f"nvidia-smi fails: {(found.stdout + found.stderr).strip().partition(chr(10))[0]}")
    return from_program(found.stdout, env)


def from_program(output: str, env: Mapping[str, str]) -> Hardware:
    """What nvidia-smi's lines say. It does not tell the driver's CUDA, nor MIG instances."""
    devices, driver = [], ""
    for line in output.splitlines():
        fields = [field.strip() for field in line.split(",")]
        try:
            uuid, name, capability, total, free, driver = fields
            usable = int((int(total) << 20) * PROGRAM_USABLE)
            devices.append(Device(uuid, Gpu(name, int(capability.replace(".", "")), usable, min(int(free) << 20, usable))))
        except ValueError:
            return Hardware((), "", 0, f"nvidia-smi says what is not understood here: {line}")
    return _chosen(devices, driver, 0, "nvidia-smi", env)


def _chosen(devices: list[Device], driver: str, cuda: int, tool: str, env: Mapping[str, str]) -> Hardware:
    chosen = visible(devices, env)
    asked, there = env.get("CUDA_VISIBLE_DEVICES"), sum(device.numbered for device in devices)
    how = f"{tool}, driver {driver}" + ("" if asked is None else f"; CUDA_VISIBLE_DEVICES={asked} leaves {len(chosen)} of {there}")
    return Hardware(tuple(device.gpu for device in chosen), driver, cuda, how)


def visible(devices: list[Device], env: Mapping[str, str]) -> list[Device]:
    """What CUDA_VISIBLE_DEVICES leaves, in its order: numbers, or UUIDs as far as they are unique; the list ends at the first wrong one.

    CUDA's numbers begin with the fastest GPU unless CUDA_DEVICE_ORDER is PCI_BUS_ID; which one it takes for the fastest is not
    documented, and the compute capability stands in for it here. An entry that comes twice leaves nothing (torch/cuda/__init__.py knows it).
    Source: https://docs.nvidia.com/cuda/cuda-programming-guide/05-appendices/environment-variables.html
    """
    asked = env.get("CUDA_VISIBLE_DEVICES")
    numbered = [device for device in devices if device.numbered]
    if env.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
        numbered.sort(key=lambda device: -device.gpu.capability)
    if asked is None:
        return numbered
    chosen: list[Device] = []
    for entry in asked.split(","):
        number = re.match(r"\s*(\d{1,9})", entry)
        if number:
            found = numbered[int(number[1]) : int(number[1]) + 1]
        else:
            start = entry.strip()
            found = [device for device in devices if start.startswith(("GPU-", "MIG-")) and device.uuid.startswith(start)]
        if len(found) != 1:
            break
        if found[0] in chosen:
            return []
        chosen += found
    return chosen if all(device.numbered for device in chosen) else chosen[:1]


def limits(cgroup: str = "/sys/fs/cgroup") -> Limits:
    """The limits of this container, from its cgroup (version 2, else 1) and from the machine."""
    meminfo = dict(re.findall(r"^(\w+):\s+(\d+) kB", _text("/proc/meminfo"), re.MULTILINE))
    total, free = (int(meminfo.get(name, 0)) << 10 for name in ("MemTotal", "MemAvailable"))
    limit = _number(f"{cgroup}/memory.max") or _number(f"{cgroup}/memory/memory.limit_in_bytes")
    used = _number(f"{cgroup}/memory.current") or _number(f"{cgroup}/memory/memory.usage_in_bytes")
    stat = _text(f"{cgroup}/memory.stat") or _text(f"{cgroup}/memory/memory.stat")
    cached = re.search(r"^(?:file|total_cache) (\d+)$", stat, re.MULTILINE)  # the kernel gives it back when it is wanted
    if 0 < limit < total:
        total, free = limit, max(min(free, limit - used + (int(cached[1]) if cached else 0)), 0)
    return Limits(total, free, shm_bytes(), _cpus(cgroup))


def shm_bytes() -> int:
    """Size of /dev/shm; 0 where there is none."""
    try:
        shm = os.statvfs(SHM)
    except OSError:
        return 0
    return shm.f_blocks * shm.f_frsize


def _cpus(cgroup: str) -> float:
    there = float(len(os.sched_getaffinity(0)))
    quota = _text(f"{cgroup}/cpu.max").split() or [
        str(_number(f"{cgroup}/cpu/cpu.cfs_{part}_us")) for part in ("quota", "period")
    ]  # microseconds of every so many
    if quota[0].isdigit() and int(quota[0]) and int(quota[1]):
        return min(there, int(quota[0]) / int(quota[1]))
    return there


def _text(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return file.read()
    except OSError:
        return ""


def _number(path: str) -> int:
    """A file's number; 0 where there is none, or `max` or -1, which stand for no limit."""
    text = _text(path).strip()
    return int(text) if text.isdigit() else 0

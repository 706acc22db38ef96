"""A stand-in for nvidia-ml-py, through PYTHONPATH.

STUB_GPUS: GPUs as NAME:CAPABILITY:GIB, separated by commas, `8*H200:90:141` for eight; `+mig` after GIB puts it in MIG mode with two halves.
STUB_NVML_ERROR: the number with which nvmlInit fails. STUB_DRIVER, STUB_CUDA: 580.65.06 and 13000 unless given.
STUB_USED_GIB: what others use of each.
"""

import os
from typing import NamedTuple

NVML_DEVICE_MIG_ENABLE = 1
nvmlMemory_v2 = 0x02000028  # noqa: N816 - NVIDIA's name


class NVMLError(Exception):
    def __init__(self, value):
        self.value = value
        super().__init__({18: "Driver/library version mismatch", 12: "NVML Shared Library Not Found"}.get(value, f"error {value}"))


class Device(NamedTuple):
    name: str
    capability: int
    uuid: str
    total: int
    free: int
    mig: bool
    reserved: int = 0


def nvmlInit():
    if os.environ.get("STUB_NVML_ERROR"):
        raise NVMLError(int(os.environ["STUB_NVML_ERROR"]))


def nvmlShutdown():
    pass


def _devices():
    found = []
    for part in filter(None, os.environ.get("STUB_GPUS", "").split(",")):
        count, _, row = part.rpartition("*")
        name, capability, memory = row.split(":")
        size = int(memory.removesuffix("+mig")) << 30
        for _ in range(int(count or 1)):
            uuid = f"GPU-{len(found)}a2b3c4d-0000-0000-0000-000000000000"
            used = int(os.environ.get("STUB_USED_GIB", "0")) << 30
            found.append(Device(name, int(capability), uuid, size, size - used - (1 << 29), memory.endswith("+mig")))
    return found


def nvmlSystemGetDriverVersion():
    return os.environ.get("STUB_DRIVER", "580.65.06")


def nvmlSystemGetCudaDriverVersion_v2():
    return int(os.environ.get("STUB_CUDA", "13000"))


def nvmlDeviceGetCount():
    return len(_devices())


def nvmlDeviceGetHandleByIndex(index):
    return _devices()[index]


def nvmlDeviceGetCudaComputeCapability(handle):
    return divmod(handle.capability, 10)


def nvmlDeviceGetMemoryInfo(handle, version):
    assert version == nvmlMemory_v2
    return handle


def nvmlDeviceGetName(handle):
    return handle.name


def nvmlDeviceGetUUID(handle):
    return handle.uuid


def nvmlDeviceGetMigMode(handle):
    if handle.capability < 80:
        raise NVMLError(3)
    return [int(handle.mig), int(handle.mig)]


def nvmlDeviceGetMaxMigDeviceCount(handle):
    return 7


def nvmlDeviceGetMigDeviceHandleByIndex(handle, number):
    if number > 1:
        raise NVMLError(6)
    return handle._replace(
        name=f"{handle.name} MIG", uuid=f"MIG-{number}{handle.uuid[4:]}", total=handle.total // 2, free=handle.free // 2, mig=False
    )

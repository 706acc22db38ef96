from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from launcher import hardware
from launcher.hardware import Gpu

POPEN = subprocess.Popen
H200 = "NVIDIA H200:90:141"
UUIDS = [f"GPU-{number}a2b3c4d-0000-0000-0000-000000000000" for number in range(4)]  # as the stub makes them


def look(**env: str) -> hardware.Hardware:
    return hardware.look(env)


def test_gpus_driver_and_cuda(stub_gpus: Callable[[str], None]) -> None:
    """NVML tells names, capabilities, bytes, the driver and its newest CUDA."""
    stub_gpus(f"2*{H200}")

    found = look()

    assert found.gpus == (Gpu("NVIDIA H200", 90, 141 << 30, (141 << 30) - (1 << 29)),) * 2
    assert (found.driver, found.cuda) == ("580.65.06", 13000)
    assert found.found_by == "NVML, driver 580.65.06"


@pytest.mark.parametrize(
    ("env", "names"),
    [
        ({}, "abcd"),
        ({"CUDA_VISIBLE_DEVICES": "2,1"}, "cb"),
        ({"CUDA_VISIBLE_DEVICES": "0,2,-1,1"}, "ac"),  # NVIDIA's own example
        ({"CUDA_VISIBLE_DEVICES": "0,9,1"}, "a"),
        ({"CUDA_VISIBLE_DEVICES": ""}, ""),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, ""),
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, ""),
        ({"CUDA_VISIBLE_DEVICES": "1,1"}, ""),
        ({"CUDA_VISIBLE_DEVICES": f"{UUIDS[3]},{UUIDS[0][:7]}"}, "da"),
        ({"CUDA_VISIBLE_DEVICES": "GPU-,0"}, ""),  # four GPUs begin like that
    ],
)
def test_cuda_visible_devices(stub_gpus: Callable[[str], None], env: Mapping[str, str], names: str) -> None:
    """Numbers and unique beginnings of UUIDs choose and order; the list ends at the first entry that is wrong."""
    stub_gpus("a:80:80,b:80:80,c:80:80,d:80:80")

    assert "".join(gpu.name for gpu in look(**env).gpus) == names


def test_the_order_of_numbers(stub_gpus: Callable[[str], None]) -> None:
    """CUDA counts from the fastest GPU unless it is told to count by PCI address."""
    stub_gpus("old:70:32,new:90:80")

    assert look(CUDA_VISIBLE_DEVICES="0").gpus[0].name == "new"
    assert look(CUDA_VISIBLE_DEVICES="0", CUDA_DEVICE_ORDER="PCI_BUS_ID").gpus[0].name == "old"


def test_mig_instances(stub_gpus: Callable[[str], None]) -> None:
    """Of a GPU in MIG mode CUDA shows one instance, the first or the one that is named, with its own memory."""
    stub_gpus("A100:80:80+mig")
    second = f"MIG-1{UUIDS[0][4:]}"

    for env in ({}, {"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": second}, {"CUDA_VISIBLE_DEVICES": f"{second},MIG-0"}):
        assert [(gpu.name, gpu.memory) for gpu in look(**env).gpus] == [("A100 MIG", 40 << 30)]


@pytest.mark.parametrize(("number", "sentence"), [("18", "reboot the host"), ("4", "may not use the GPUs"), ("77", "NVML fails: error 77")])
def test_a_driver_that_fails_is_explained(
    stub_gpus: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, number: str, sentence: str
) -> None:
    """NVML's failures end in a sentence with what to do, not in a traceback."""
    stub_gpus(H200)
    monkeypatch.setenv("STUB_NVML_ERROR", number)

    found = look()

    assert found.gpus == ()
    assert sentence in found.found_by


def test_no_tool(monkeypatch: pytest.MonkeyPatch, stub_gpus: Callable[[str], None], tmp_path: Path) -> None:
    """Without NVML's library and without nvidia-smi that is said, and nothing is raised."""
    stub_gpus(H200)
    monkeypatch.setenv("STUB_NVML_ERROR", "12")
    monkeypatch.setenv("PATH", str(tmp_path))

    assert look() == hardware.Hardware((), "", 0, hardware.NO_TOOL)


# In the form that nvidia-smi gives to this query.
SMI = """\
GPU-5c1f2b0e-8a3e-1f4c-9d57-3b0a5d0a7c11, Tesla V100-SXM2-32GB, 7.0, 32768, 32494, 550.54.15
GPU-7d2e3c1f-9b4f-2a5d-8e68-4c1b6e1b8d22, Tesla V100-SXM2-32GB, 7.0, 32768, 32494, 550.54.15
"""


@pytest.fixture
def nvidia_smi(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """A program of that name on PATH, and no NVML; it may be run, unlike others in these tests."""
    monkeypatch.setattr(subprocess, "Popen", POPEN)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    def write(script: str) -> None:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)

    return write


def test_nvidia_smi_stands_in(nvidia_smi: Callable[[str], None], tmp_path: Path) -> None:
    """One call with the fields that are wanted, where NVML is not there."""
    (tmp_path / "output").write_text(SMI)
    nvidia_smi(f'case "$*" in "--query-gpu={hardware.PROGRAM_FIELDS} --format=csv,noheader,nounits") cat {tmp_path}/output;; esac')

    found = look(CUDA_VISIBLE_DEVICES="1")

    usable = int((32768 << 20) * hardware.PROGRAM_USABLE)
    assert found.gpus == (Gpu("Tesla V100-SXM2-32GB", 70, usable, usable),)
    assert (found.driver, found.cuda) == ("550.54.15", 0)
    assert found.found_by == "nvidia-smi, driver 550.54.15; CUDA_VISIBLE_DEVICES=1 leaves 1 of 2"


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        ("echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18", "nvidia-smi fails: Failed to initialize NVML"),
        ("exec sleep 30", "has not answered in 0.2 s"),
        ("echo what, is, this", "nvidia-smi says what is not understood here: what, is, this"),
    ],
)
def test_nvidia_smi_fails(nvidia_smi: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, script: str, sentence: str) -> None:
    """A failure, a hang and an unknown form are named."""
    monkeypatch.setattr(hardware, "PROGRAM_SECONDS", 0.2)
    nvidia_smi(script)

    found = look()

    assert found.gpus == ()
    assert sentence in found.found_by


@pytest.mark.parametrize(
    "files",
    [
        {"memory.max": "4194304", "memory.current": "3145728", "memory.stat": "anon 2097152\nfile 1048576\n", "cpu.max": "50000 100000"},
        {
            "memory/memory.limit_in_bytes": "4194304", "memory/memory.usage_in_bytes": "3145728",
            "memory/memory.stat": "cache 1\ntotal_cache 1048576\n", "cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000",
        },
    ],
    ids=["v2", "v1"],
)  # fmt: skip
def test_limits_of_a_container(tmp_path: Path, files: Mapping[str, str]) -> None:
    """Memory and CPUs are those of the cgroup, in both versions; what the kernel caches counts as free."""
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")

    found = hardware.limits(str(tmp_path))

    assert (found.memory, found.free, found.cpus) == (4 << 20, 2 << 20, 0.5)


def test_no_limits(tmp_path: Path) -> None:
    """Without a limit they are the machine's."""
    for name, text in {"memory.max": "max", "cpu.max": "max 100000"}.items():
        (tmp_path / name).write_text(text)

    found = hardware.limits(str(tmp_path))

    assert found.memory > 256 << 20
    assert found.cpus == len(os.sched_getaffinity(0))

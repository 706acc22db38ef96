"""Is this machine ready for a stack? Every check says what was found and, where that is not well, what to type. Nothing is changed."""

from __future__ import annotations

import getpass
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from rich.filesize import decimal

from engineroom import checks, disk, machine, stacks, suits
from engineroom.catalog import Catalog
from engineroom.checks import Check, Status
from engineroom.host import Host
from engineroom.rows import Stack
from engineroom.sources import Sources

ENGINE_MIN, COMPOSE_MIN = "23", "2.20"  # as in scripts/docker-engine, which says why
DEMO_MEMORY = 3 * 10**9  # measured resident after an answer: engine 2.2 GB, a cache of 1 GiB included, page 0.3 GB
IMAGE_FILES = 130_000  # the largest image has 65,000 files, which are there twice while it is built
DRIVER_GUIDE = "https://docs.nvidia.com/datacenter/tesla/driver-installation-guide/"
TOOLKIT_GUIDE = "https://docs.nvidia.com/datacenter/cloud-native/container-toolkit/latest/install-guide.html"


class Report(NamedTuple):
    """What was found for a stack, and which images and stacks suit the hardware."""

    stack: str
    checks: tuple[Check, ...]
    images: tuple[suits.Verdict, ...]
    stacks: tuple[suits.Verdict, ...]

    def count(self, status: Status) -> int:
        """How many checks ended so."""
        return sum(check.status == status for check in self.checks)


def examine(catalog: Catalog, host: Host, stack: str) -> Report:
    """Look at everything that a stack needs. Takes a second, or the deadline of what does not answer.

    Raises UnknownName or CannotBuild for a stack that there is not.
    """
    catalog.any_stack(stack)
    doctor = Doctor(catalog, host, stack)
    return Report(
        stack,
        tuple(doctor.checks()),
        tuple(suits.images(catalog, doctor.nvidia)),
        tuple(suits.stack(catalog, name, doctor.nvidia) for name in (*catalog.stacks, *catalog.upstream_stacks)),
    )


class Doctor:
    """The checks for one stack. A check that the stack does not depend on warns at most."""

    def __init__(self, catalog: Catalog, host: Host, stack: str) -> None:
        """Asks Docker, GPUs and network, all but Docker at the same time."""
        self.catalog, self.host, self.name, self.row = catalog, host, stack, catalog.any_stack(stack)
        self.model = catalog.models[self.row.model] if isinstance(self.row, Stack) else None
        self.docker = machine.docker()
        nvidia = machine.background(machine.nvidia, catalog.gpus)
        toolkit = machine.background(machine.ask, "nvidia-ctk", "--version")
        services = machine.background(machine.services, host.root)
        self.sources = Sources(catalog, host, stack, self.docker)
        deadline, late = time.monotonic() + machine.SECONDS, f"no answer within {machine.SECONDS:.0f} s"
        self.nvidia = machine.result(nvidia, deadline, machine.Nvidia((), "", f"nvidia-smi: {late}"))
        self.toolkit = machine.result(toolkit, deadline, machine.Answer(False, "", late))
        self.running = machine.result(services, deadline, set())

    def checks(self) -> Iterator[Check]:
        """Every check, in the order in which failures are best mended."""
        yield from self._docker()
        yield from self._gpus()
        yield self._hardware()
        yield from self._disk()
        yield from self._memory()
        added = self.host.profiles & stacks.profiles(self.catalog, self.name).keys()
        yield from checks.ports(self.host, self.name, self.running, added, router=not self.model, clustered=self.row.nodes > 1)
        if not self.model:
            yield from checks.upstream(self.host)
        yield from self.sources.checks()
        if self.row.nodes > 1:
            yield checks.cluster_token(self.host, self.name, self.row.nodes)

    def _docker(self) -> Iterator[Check]:
        install, problem = "scripts/docker-engine" if os.geteuid() == 0 else "sudo scripts/docker-engine", self.docker.problem
        if "permission denied" in problem:
            yield Check("docker", "failed", problem, f"sudo usermod -aG docker {getpass.getuser()} && newgrp docker")
        elif problem and self.docker.info and os.environ.get("DOCKER_HOST"):
            yield Check("docker", "failed", problem, "Start the engine that DOCKER_HOST names, or type: unset DOCKER_HOST")
        elif problem:
            yield Check("docker", "failed", problem, install)
        else:
            yield _version("docker", self.docker.info["ServerVersion"], ENGINE_MIN, install)
        if self.docker.info:
            yield _version("compose", self.docker.plugin("compose"), COMPOSE_MIN, install)
            yield _version("buildx", self.docker.plugin("buildx"), "0", install)

    def _gpus(self) -> Iterator[Check]:
        """GPUs, their driver, and Docker's way to them."""
        otherwise: Status = "failed" if self.row.gpus else "warning"
        install = self._install_driver()
        if self.nvidia.problem:
            yield Check("gpus", otherwise, self.nvidia.problem, _mend_driver(self.nvidia.problem, install))
        elif not self.nvidia.gpus:
            yield Check("gpus", "ok", "none of NVIDIA")
        else:
            memory = min(gpu.memory for gpu in self.nvidia.gpus) / 2**30
            yield Check("gpus", "ok", f"{suits.describe(self.nvidia.gpus)}, {memory:.0f} GiB each")
            old = [name for name in self.catalog.images if suits.driver_is_old(self.catalog, name, self.nvidia)]
            status: Status = "failed" if self.row.image in old else "warning" if old else "ok"
            found = f"{self.nvidia.driver} is too old for {', '.join(old)}" if old else self.nvidia.driver
            yield Check("driver", status, found, install if old else "")
            if not self.docker.problem:
                yield self._toolkit(otherwise)

    def _install_driver(self) -> str:
        newest = max((release.min_driver for release in self.catalog.releases.values()), key=machine.numbers)
        return (
            f"sudo apt-get install nvidia-driver-pinning-{newest.split('.')[0]} cuda-drivers && sudo reboot\n"
            f"These packages are in NVIDIA's repository: {DRIVER_GUIDE}. Blackwell takes nvidia-open in the place of cuda-drivers."
        )

    def _toolkit(self, otherwise: Status) -> Check:
        devices = self.docker.info.get("DiscoveredDevices") or []
        if "nvidia" in (self.docker.info.get("Runtimes") or {}):
            return Check("nvidia toolkit", "ok", "Docker has the runtime nvidia")
        if any(str(device.get("ID", "")).startswith("nvidia.com/gpu") for device in devices):
            return Check("nvidia toolkit", "ok", "Docker has the CDI devices nvidia.com/gpu")
        restart = "systemctl restart docker" if Path("/run/systemd/system").exists() else "service docker restart"
        configure = f"sudo nvidia-ctk runtime configure --runtime=docker && sudo {restart}"
        if self.toolkit.well:
            return Check("nvidia toolkit", otherwise, "installed, and Docker does not know of it", configure)
        install = f"sudo apt-get install nvidia-container-toolkit && {configure}\nThe package is in NVIDIA's repository: {TOOLKIT_GUIDE}"
        return Check("nvidia toolkit", otherwise, "not installed: containers get no GPU", install)

    def _hardware(self) -> Check:
        verdict = suits.stack(self.catalog, self.name, self.nvidia)
        if verdict.runs:
            return Check("hardware", "ok", f"suits {self.name}: {verdict.why}")
        others = [name for name in self.catalog.stacks if suits.stack(self.catalog, name, self.nvidia).runs]
        fix = f"make up STACK={others[-1]} (this machine suits {', '.join(others)})" if others else "Use another machine."
        return Check("hardware", "failed", f"does not suit {self.name}: {verdict.why}", fix)

    def _disk(self) -> Iterator[Check]:
        """Room where Docker keeps its data, or will keep it."""
        folder = Path(self.docker.info.get("DockerRootDir") or "/var/lib")
        if not folder.is_dir():
            yield Check("disk", "ok", f"Docker's {folder} is on another machine")
            return
        missing, free, room = self.sources.missing(), disk.free_bytes(folder), os.statvfs(folder)
        wanted = sum(self.catalog.measured[name].build_bytes for name in missing if name in self.catalog.measured)
        found = f"{decimal(free)} free below {folder}" + (f", building {' and '.join(missing)} takes {decimal(wanted)}" if missing else "")
        yield Check("disk", "ok", found) if free >= wanted else Check("disk", "failed", found, disk.DOCKER_MEND)
        if 0 < room.f_favail < IMAGE_FILES:  # 0 of a file system without a limit
            found = f"{room.f_favail} files can still be made below {folder}; building an image takes up to {IMAGE_FILES}"
            yield Check("inodes", "failed" if missing else "warning", found, disk.DOCKER_MEND)
        if self.model and self.sources.needs_hub() and free - wanted < self.model.bytes:
            found = f"{self.model.title} takes {decimal(self.model.bytes)}, which do not fit below {folder} if they have to be fetched"
            yield Check("weights", "warning", found, "Set MODELS to a folder on a larger disk and MODEL to /models/NAME in .env.")

    def _memory(self) -> Iterator[Check]:
        available, shm = machine.memory(), machine.default_shm()
        if available and self.model and not self.row.gpus and self.name not in self.running:
            found = f"{decimal(available)} available, {self.name} takes {decimal(DEMO_MEMORY)}"
            fix = "End other programs: ps aux --sort -rss | head"
            yield Check("memory", "ok", found) if available >= DEMO_MEMORY else Check("memory", "failed", found, fix)
        if shm:
            found = f"Docker gives {shm} of /dev/shm to containers that ask for none; stacks ask, a plain `docker run` does not"
            yield Check("shm", "warning", found, "docker run --shm-size=1g …")


def _mend_driver(problem: str, install: str) -> str:
    if "version mismatch" in problem:  # an update replaced the libraries below a running kernel module
        return "sudo reboot"
    if "communicate with the NVIDIA driver" in problem or "Driver Not Loaded" in problem:  # nvidia-smi's words, and NVML's
        return f"sudo modprobe nvidia; if that fails: {install}"
    return install


def _version(name: str, found: str, wanted: str, fix: str) -> Check:
    if not found:
        return Check(name, "failed", "not there", fix)
    if machine.numbers(found) < machine.numbers(wanted):
        return Check(name, "failed", f"{found} is too old: {wanted} or newer is wanted", fix)
    return Check(name, "ok", found)

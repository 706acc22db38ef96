"""Images through a real registry: pushed, interrupted, resumed, pulled by digest into a second Docker engine, run."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tarfile
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import docker
import pytest
from image.conftest import ADDITION, ROOT

from engineroom import build, pushed, resolve
from engineroom.catalog import Catalog
from engineroom.host import Host

pytestmark = pytest.mark.containers
IMAGE = "engineroom-test:registry"
LOGIN = "tester:$2y$05$AGOVu7oeAHWVIGb9XewDc.y/i9sCdWlESTDik5mSF3JECIZcUgqYS"  # of `htpasswd -nbB tester a-password-of-these-tests`
ANY_MANIFEST = "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json"


@pytest.fixture(scope="module")
def registry_image(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of an image with Debian's registry."""
    catalog, host = Catalog(ROOT), build.ensure_base(Host.load(ROOT), lambda _: None)
    settings = build.target_settings(catalog.release_of("cpu"), host, tmp_path_factory.mktemp("secrets"))
    command = ["docker", "buildx", "build", "--progress=plain", "--load", "--tag", IMAGE, "--build-context", f"images={ROOT / 'images'}"]
    for secret in settings["secret"]:
        command += ["--secret", secret]
    command += ["--build-arg", f"BASE_IMAGE={settings['args'].get('BASE_IMAGE') or resolve.BASE_IMAGE}"]
    command += ["--file", str(Path(__file__).with_name("registry.Dockerfile")), str(tmp_path_factory.mktemp("context"))]
    build.run(IMAGE, command, ROOT, lambda _: None)
    return IMAGE


class Registry:
    """A registry in a container, on the same port inside and outside, so that its images have one name in both places."""

    def __init__(self, image: str, **options: Any) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.name = f"127.0.0.1:{self.port}"
        environment = {"REGISTRY_HTTP_ADDR": f":{self.port}", **options.pop("environment", {})}
        ports = {f"{self.port}/tcp": ("127.0.0.1", self.port)}
        self.container = docker.from_env().containers.run(image, detach=True, environment=environment, ports=ports, **options)
        deadline = time.monotonic() + 30
        while "listening on" not in self.log:
            assert time.monotonic() < deadline, self.log
            time.sleep(0.1)

    @property
    def log(self) -> str:
        return self.container.logs().decode()

    def manifest(self, tag: str) -> tuple[str, dict[str, Any]]:
        """What it has under a tag: the digest that it gives it, and the manifest."""
        request = urllib.request.Request(f"http://{self.name}/v2/engineroom/manifests/{tag}", headers={"Accept": ANY_MANIFEST})
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.headers["Docker-Content-Digest"], json.load(response)

    def received(self) -> list[str]:
        """The digest of each layer or configuration that it took in whole, in order."""
        return re.findall(r'"PUT /v2/engineroom/blobs/uploads/\S*digest=(sha256%3A\w+)\S* HTTP/1.1" 201', self.log)


@pytest.fixture
def registry(registry_image: str) -> Iterator[Registry]:
    made = Registry(registry_image)
    yield made
    made.container.remove(force=True, v=True)


class Checkout:
    """A copy of this checkout's catalog, whose lock is its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for part in ("images", "compose", "entrypoints"):
            shutil.copytree(ROOT / part, folder / part)
        pushed.lock_file(folder).unlink(missing_ok=True)

    def start(self, *arguments: str, **env: str) -> subprocess.Popen[str]:
        """`engineroom push`, in a process group of its own, with both outputs in one pipe."""
        return subprocess.Popen(
            ["env", "--default-signal=INT", ROOT / ".venv/bin/engineroom", "push", *arguments],
            cwd=self.folder, env={**os.environ, **env}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip

    def push(self, *arguments: str, **env: str) -> tuple[int, str]:
        """Its exit code and output."""
        with self.start(*arguments, **env) as process:
            output, _ = process.communicate(timeout=300)
        return process.returncode, output


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


@pytest.fixture
def small(checkout: Checkout) -> Iterator[Checkout]:
    """The catalog with a small image in the place of the page's: it has files, and the settings that only Docker knows."""
    engines = checkout.folder / "images/engines.toml"
    release = Catalog(checkout.folder).release_of(resolve.PAGE_IMAGE)
    engines.write_text(engines.read_text().replace(f'version = "{release.version}"', 'version = "0.0.1.test"'))
    name = resolve.tag(resolve.PAGE_IMAGE, Catalog(checkout.folder).release_of(resolve.PAGE_IMAGE))
    assert name.endswith("0.0.1.test")
    files = io.BytesIO()
    with tarfile.open(fileobj=files, mode="w") as archive:
        archive.add(ROOT / "images/locks", "locks")
    docker.from_env().api.import_image_from_data(files.getvalue(), *name.split(":"), changes=["HEALTHCHECK CMD true"])
    yield checkout
    docker.from_env().images.remove(name)


class Engine:
    """A second Docker engine with nothing in it, in the network of a container, where it cannot disturb the first one's."""

    def __init__(self, folder: Path, neighbour: Any) -> None:
        self.socket = f"unix://{folder}/sock"
        neighbour.reload()
        network = ["nsenter", "--target", str(neighbour.attrs["State"]["Pid"]), "--net"]
        places = [f"--data-root={folder}/data", f"--exec-root={folder}/exec", f"--pidfile={folder}/pid", f"--host={self.socket}"]
        space = re.sub("[^a-z0-9]", "", folder.name)  # containerd is particular about the characters
        names = [f"--containerd-namespace={space}", f"--containerd-plugins-namespace={space}plugins"]
        # --bridge=none deletes a docker0 that it finds, which is why this engine must never run in the machine's own network.
        command = [*network, "dockerd", *places, *names, "--bridge=none", "--iptables=false", "--ip6tables=false"]
        self.log = folder / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + 60
        while self("version", check=False).returncode:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.2)

    def __call__(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A command for this engine."""
        result = subprocess.run(["docker", "--host", self.socket, *arguments], capture_output=True, text=True, timeout=200, check=False)
        assert not check or result.returncode == 0, result.stdout + result.stderr
        return result

    def image_id(self, name: str) -> str:
        """The id that it gives an image."""
        return self("image", "inspect", "--format", "{{.Id}}", name).stdout.strip()


@pytest.fixture
def engine(registry: Registry) -> Iterator[Engine]:
    with tempfile.TemporaryDirectory(prefix="engineroom-test-") as folder:  # a socket's path must be short
        started = Engine(Path(folder), registry.container)
        yield started
        for container in started("ps", "--all", "--quiet").stdout.split():
            started("rm", "--force", "--volumes", container)
        started.process.terminate()
        started.process.wait(60)
        for mount in re.findall(rf" ({folder}/\S+) ", Path("/proc/mounts").read_text()):
            subprocess.run(["umount", mount], check=True)


def test_interrupted_resumed_pulled_by_digest_and_run(image: str, checkout: Checkout, registry: Registry, engine: Engine) -> None:
    """Ctrl-C in the middle of a push leaves no lock; the next run sends what is missing; elsewhere the digest alone is enough to answer."""
    wanted = ("cpu", "--registry", registry.name)
    with checkout.start(*wanted) as process:
        assert process.stdout
        before = []
        while len(before) < 10:
            line = process.stdout.readline()
            assert line, before
            before += re.findall(r"^(\w+): Pushed", line)
        os.killpg(process.pid, signal.SIGINT)
        rest = process.communicate(timeout=60)[0]
    assert (process.returncode, "Traceback" in rest) == (130, False), rest
    assert "Interrupted; nothing is broken. Run the same again to go on." in rest
    assert not pushed.lock_file(checkout.folder).exists()
    assert not build.image_id(f"{registry.name}/{image}")

    code, output = checkout.push(*wanted)
    assert code == 0, output
    assert set(before) <= set(re.findall(r"^(\w+): Layer already exists", output, re.MULTILINE))
    assert re.search(r"^\w+: Pushed", output, re.MULTILINE)
    assert len(registry.received()) == len(set(registry.received()))
    row = pushed.read(checkout.folder)["cpu"]
    digest, manifest = registry.manifest(row.tag)
    assert row.reference == f"{registry.name}/engineroom@{digest}"
    assert row.id == manifest["config"]["digest"] == build.image_id(image)
    assert not build.image_id(f"{registry.name}/{image}")

    engine("pull", "--quiet", row.reference)
    assert engine.image_id(row.reference) == row.id
    name = engine("run", "--detach", "--network", "host", row.reference).stdout.strip()
    deadline = time.monotonic() + 300
    while "ready after" not in (log := engine("logs", name).stderr):
        assert time.monotonic() < deadline, log
        time.sleep(1)
    ask = (
        "import sys, urllib.request as u\n"
        "r = u.Request('http://127.0.0.1:8000/v1/chat/completions', sys.argv[1].encode(), {'Content-Type': 'application/json'})\n"
        "print(u.urlopen(r, timeout=60).read().decode())"
    )
    answer = json.loads(engine("exec", name, "python3", "-c", ask, json.dumps(ADDITION)).stdout)
    assert r"\boxed{623}" in answer["choices"][0]["message"]["content"]


def test_zstd_layers_keep_the_image(small: Checkout, registry: Registry, engine: Engine) -> None:
    """Every layer is zstd, the image is the same one after a pull by digest, health check included; a second push sends nothing."""
    code, output = small.push("webui", "--zstd", "--registry", registry.name)
    assert code == 0, output
    row = pushed.read(small.folder)["webui"]
    digest, manifest = registry.manifest(row.tag)
    assert (row.compression, row.reference) == ("zstd", f"{registry.name}/engineroom@{digest}")
    assert {layer["mediaType"] for layer in manifest["layers"]} == {"application/vnd.oci.image.layer.v1.tar+zstd"}
    assert output.endswith(f"webui {row.reference}\n")

    engine("pull", "--quiet", row.reference)
    assert engine.image_id(row.reference) == row.id
    assert json.loads(engine("image", "inspect", row.reference).stdout)[0]["Config"]["Healthcheck"]["Test"] == ["CMD-SHELL", "true"]

    received = registry.received()
    assert received
    assert small.push("webui", "--zstd", "--registry", registry.name)[0] == 0
    assert registry.received() == received


class OldRegistry(BaseHTTPRequestHandler):
    """Passes everything on to a registry, but takes no manifest of an OCI image, as registries from before those did not."""

    protocol_version = "HTTP/1.1"
    behind = ""

    def relay(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        while self.headers.get("Transfer-Encoding") == "chunked" and (size := int(self.rfile.readline(), 16)):
            body += self.rfile.read(size)
            self.rfile.readline()
        if self.headers.get("Transfer-Encoding"):
            self.rfile.readline()
        if self.command == "PUT" and "vnd.oci" in self.headers.get("Content-Type", ""):
            status, headers = 400, {"Content-Type": "application/json"}
            answer = json.dumps({"errors": [{"code": "MANIFEST_INVALID", "message": "manifest invalid", "detail": {}}]}).encode()
        else:
            upstream = http.client.HTTPConnection(self.behind, timeout=60)
            sent = {name: value for name, value in self.headers.items() if name not in ("Transfer-Encoding", "Content-Length")}
            upstream.request(self.command, self.path, body, sent)
            response = upstream.getresponse()
            status, answer, headers = response.status, response.read(), dict(response.getheaders())
        self.send_response(status)
        for name, value in headers.items():
            if name not in ("Content-Length", "Date") or self.command == "HEAD":
                self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_HEAD = do_POST = do_PATCH = do_PUT = relay  # noqa: N815

    def log_message(self, *_: object) -> None: ...


@contextlib.contextmanager
def old_registry(registry: Registry) -> Iterator[str]:
    """The address of one in front of a registry."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Old", (OldRegistry,), {"behind": registry.name}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_registry_that_takes_no_zstd_gets_gzip(small: Checkout, registry: Registry) -> None:
    """A registry that refuses the manifest of zstd layers is said to, and has the image with gzip layers in the end."""
    with old_registry(registry) as old:
        code, output = small.push("webui", "--zstd", "--registry", old)
    row = pushed.read(small.folder)["webui"]

    assert code == 0, output
    assert "the registry takes no zstd layers, so they go as gzip: " in output
    assert row.compression == "gzip"
    digest, manifest = registry.manifest(row.tag)
    assert row.reference == f"{old}/engineroom@{digest}"
    assert manifest["layers"][0]["mediaType"].endswith(".tar.gzip")


@pytest.mark.parametrize("how", [[], ["--zstd"]])
def test_login(small: Checkout, registry_image: str, tmp_path_factory: pytest.TempPathFactory, how: list[str]) -> None:
    """Without a login: what to type, and no lock. With one of `docker login`: both ways work."""
    logins = tmp_path_factory.mktemp("logins")
    (logins / "htpasswd").write_text(LOGIN)
    environment = {"REGISTRY_AUTH": "htpasswd", "REGISTRY_AUTH_HTPASSWD_REALM": "tests", "REGISTRY_AUTH_HTPASSWD_PATH": "/logins/htpasswd"}
    registry = Registry(registry_image, environment=environment, volumes={str(logins): {"bind": "/logins", "mode": "ro"}})
    wanted, env = ["webui", *how, "--registry", registry.name], {"DOCKER_CONFIG": str(logins)}
    try:
        code, output = small.push(*wanted, **env)
        assert (code, "Traceback" in output) == (69, False), output
        assert f"Type: docker login {registry.name}; then the same again." in output
        assert not pushed.lock_file(small.folder).exists()

        login = ["docker", "login", "--username", "tester", "--password-stdin", registry.name]
        subprocess.run(login, input="a-password-of-these-tests", env={**os.environ, **env}, capture_output=True, text=True, check=True)
        code, output = small.push(*wanted, **env)
        assert code == 0, output
        assert pushed.read(small.folder)["webui"].compression == ("zstd" if how else "gzip")
    finally:
        registry.container.remove(force=True, v=True)


@pytest.mark.parametrize("how", [[], ["--zstd"]])
def test_a_registry_that_is_not_there(small: Checkout, how: list[str]) -> None:
    """69, with what to look at; the lock stays as it was."""
    lock = pushed.lock_file(small.folder)
    lock.write_text("{}\n")
    code, output = small.push("webui", *how, "--registry", "127.0.0.1:1/team/")

    assert (code, "Traceback" in output) == (69, False), output
    assert "127.0.0.1:1/team/engineroom:webui-openwebui0.0.1.test: the registry did not answer: " in output
    assert lock.read_text() == "{}\n"


def test_an_image_that_is_not_built(checkout: Checkout) -> None:
    """It is named with what builds it."""
    engines = checkout.folder / "images/engines.toml"
    release = Catalog(checkout.folder).release_of(resolve.PAGE_IMAGE)
    engines.write_text(engines.read_text().replace(f'version = "{release.version}"', 'version = "0.0.2.test"'))
    code, output = checkout.push("webui", "--registry", "127.0.0.1:1")

    assert code == 70
    assert output.endswith("webui-openwebui0.0.2.test is not here, so it cannot be pushed. Type: make image TARGET=webui\n")

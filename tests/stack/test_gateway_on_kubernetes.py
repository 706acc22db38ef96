"""The gateway's pod as it is rendered for Kubernetes, as a container: its variables, files, user and probe, in front of two servers, one of which is the page too."""

from __future__ import annotations

import io
import re
import ssl
import tarfile
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import containers
import docker
import forms
import gateway_forms
import pytest
from docker.models.containers import Container
from gateways import Door, build_image, image_name

from engineroom.catalog import Catalog

pytestmark = [pytest.mark.containers, pytest.mark.timeout(120)]
PREFIX = f"engineroom-test-pod-{uuid.uuid4().hex[:8]}"
KEY = "of-a-test-0123456789abcdef"
SERVER = """
import http.server, socket, threading
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        print("asked", self.path, flush=True)
        text = f"{socket.gethostname()}:{self.server.server_port}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)
    def log_message(self, *_): pass
threading.Thread(target=http.server.ThreadingHTTPServer(("", 80), Handler).serve_forever).start()
http.server.ThreadingHTTPServer(("", 8000), Handler).serve_forever()
"""

Start = Callable[..., Container]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start containers of the image on a network of their own, where each has some names; all goes afterwards."""
    build_image()
    client, made = docker.from_env(), []
    network = client.networks.create(PREFIX)

    def run(name: str, aliases: list[str], **options: Any) -> Container:
        container = client.containers.create(
            image_name(), name=f"{PREFIX}-{name}", hostname=name, network=PREFIX, networking_config={PREFIX: client.api.create_endpoint_config(aliases=aliases)}, **options
        )  # fmt: skip
        made.append(container)
        container.start()
        return container

    yield run
    for container in made:
        container.remove(force=True, v=True)
    network.remove()


@pytest.fixture
def volume() -> Iterator[Any]:
    """An empty volume."""
    found = docker.from_env().volumes.create(PREFIX)
    yield found
    found.remove()


def certificate(container: Container) -> tuple[str, str]:
    """A certificate and its key, by the line in docs/gateway.md."""
    line = re.search(r"^openssl req (?:.*\\\n)?.*?(?=  +#)", (forms.ROOT / "docs/gateway.md").read_text(), re.MULTILINE)
    assert line
    command = f"cd /tmp && {line[0]} 2>&1 && cat certificate.pem certificate-key.pem"
    _, output = containers.execute(container, "bash", "-euc", command)
    pem, private = re.findall(r"-----BEGIN [^-]+-----[^-]+-----END [^-]+-----\n", output)
    return pem, private


def project(volume: str, files: dict[str, str], mode: int, group: int) -> None:
    """Fill a volume as the kubelet fills one with Secrets: links to a folder that can be replaced at once, for root and the pod's group."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(f"..2026_11_23/{name}")
            member.size, member.mode, member.gid = len(text.encode()), mode, group
            tar.addfile(member, io.BytesIO(text.encode()))
        for name, target in {"..data": "..2026_11_23", **{name: f"..data/{name}" for name in files}}.items():
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, target
            tar.addfile(link)
    container = docker.from_env().containers.create(image_name(), volumes={volume: {"bind": "/to", "mode": "rw"}})
    container.put_archive("/to", out.getvalue())
    container.remove(v=True)


def test_the_pod_runs(volume: Any, start: Start) -> None:
    """As its own user, read-only, without capabilities: ready by its probe, a key opens both servers, a wrong one neither, the page comes."""
    pod = gateway_forms.pod(forms.objects(forms.render(Catalog(forms.ROOT), "demo-cpu", "k8s", gateway=True)))["spec"]
    (container,) = pod["containers"]
    security, rights, probe = pod["securityContext"], container["securityContext"], container["readinessProbe"]["httpGet"]
    engines = [
        start(f"engine-{number}", ["demo-cpu-engines", *page], command=["python3", "-c", SERVER])
        for number, page in enumerate(([], ["demo-cpu-page"]))
    ]
    pem, private = certificate(engines[0])
    secret = {"keys": f"alice:{KEY}\n", "tls.crt": pem, "tls.key": private}
    mounted = gateway_forms.mounted(pod)
    (folder,) = {path.rpartition("/")[0] for path in mounted}
    (projected,) = (entry["projected"] for entry in pod["volumes"] if "projected" in entry)
    project(
        volume.name,
        {path.rpartition("/")[2]: secret[key] for path, (_, key) in mounted.items()},
        projected["defaultMode"],
        security["fsGroup"],
    )
    (port,) = container["ports"]
    gateway = start(
        "gateway", ["demo-cpu-gateway"], environment={variable["name"]: variable["value"] for variable in container["env"]},
        user=f"{security['runAsUser']}:{security['runAsGroup']}", group_add=[security["fsGroup"]], read_only=rights["readOnlyRootFilesystem"],
        cap_drop=rights["capabilities"]["drop"], security_opt=[] if rights["allowPrivilegeEscalation"] else ["no-new-privileges"],
        tmpfs={mount["mountPath"]: "" for mount in container["volumeMounts"] if mount["name"] == "tmp"},
        volumes={volume.name: {"bind": folder, "mode": "ro"}}, ports={f"{port['containerPort']}/tcp": ("127.0.0.1", None)},
    )  # fmt: skip
    gateway.reload()
    door = Door(int(gateway.ports[f"{port['containerPort']}/tcp"][0]["HostPort"]))
    deadline = time.monotonic() + 30
    while door.status(f"GET {probe['path']}") != 200:
        gateway.reload()
        assert gateway.status == "running", gateway.logs().decode()
        assert time.monotonic() < deadline, gateway.logs().decode()
        time.sleep(0.1)

    wrong = [door.ask("GET /v1/models", key).status for key in ("", KEY[:-1], "default")]
    seen = b"".join(engine.logs() for engine in engines)
    right = [door.ask("GET /v1/models", KEY) for _ in range(8)]

    assert (wrong, seen) == ([401, 401, 401], b"")
    assert {answer.status for answer in right} == {200}
    assert {answer.body for answer in right} == {"engine-0:8000", "engine-1:8000"}
    assert door.ask("GET /").body == "engine-1:80"
    assert ssl.get_server_certificate(("127.0.0.1", door.port)) == pem
    assert containers.execute(gateway, *container["lifecycle"]["preStop"]["exec"]["command"][:1], "0")[0] == 0
    assert (KEY in gateway.logs().decode(), '"key":"alice"' in gateway.logs().decode()) == (False, True)
    assert (probe["scheme"], probe["port"], port["name"]) == ("HTTPS", "https", "https")

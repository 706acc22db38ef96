"""The page in front of another's service: the running demo is that service, behind a router that knows nothing else of it."""

from __future__ import annotations

import json
import subprocess
import tarfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest
from demo import ROOT, Demo, free_port

from engineroom.catalog import Catalog

pytestmark = pytest.mark.containers
CATALOG = Catalog(ROOT)
CANARY = "sk-canary-9b1c7f"
ACCOUNT = {"name": "First", "email": "first@example.com", "password": "correct horse battery", "profile_image_url": "/user.png"}
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
DEMO_SERVER = "http://demo-cpu-engine:8000/v1"


def ask(url: str, body: dict[str, Any] | None = None, token: str = "") -> tuple[int, Any]:
    """Status and JSON of a request."""
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
    request = urllib.request.Request(url, json.dumps(body).encode() if body else None, headers)
    try:
        with DIRECT.open(request, timeout=60) as response:
            return response.status, json.load(response)
    except HTTPError as error:
        return error.code, json.load(error)


class Upstream:
    """The stack `api` in the demo's own project, so that its router finds the demo's server by name."""

    def __init__(self, demo: Demo, folder: Path) -> None:
        self.demo, self.token = demo, ""
        self.env = {**demo.env, "WEBUI_PORT": free_port(), "ROUTER_PORT": free_port(), "UPSTREAM_KEY_FILE": str(folder / "key")}
        (folder / "key").write_text(f"{CANARY}\n")

    def compose(self, *arguments: str, **env: str) -> str:
        result = subprocess.run(
            ["docker", "compose", *arguments], cwd=ROOT, env=self.env | env, capture_output=True, text=True, timeout=300, check=True
        )
        return result.stdout

    def up(self, service: str, **env: str) -> None:
        """Start a service with these settings, and wait until it is healthy."""
        self.compose("up", "--detach", "--wait", "--no-deps", service, **env)

    def tool(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The host tool with the settings of the fixture."""
        env = {**self.env, "UPSTREAM_URL": DEMO_SERVER, "UPSTREAM_MODEL": "demo-r1"}
        command = [ROOT / ".venv/bin/engineroom", *arguments]
        return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False)

    def chat(self, question: str = "What is 348 + 275?") -> tuple[int, Any]:
        """A question as the page's own browser code sends it."""
        page = f"http://localhost:{self.env['WEBUI_PORT']}"
        if not self.token:
            self.token = ask(f"{page}/api/v1/auths/signup", ACCOUNT)[1]["token"]
        body = {"model": "demo-r1", "messages": [{"role": "user", "content": question}], "stream": False}
        return ask(f"{page}/api/chat/completions", body, self.token)

    def router(self, path: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
        """A request to the router itself."""
        return ask(f"http://localhost:{self.env['ROUTER_PORT']}{path}", body)


@pytest.fixture(scope="module")
def upstream(demo: Demo, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Upstream]:
    """The stack, built if need be, with the demo as the service and a local server that does not exist."""
    folder = tmp_path_factory.mktemp("secrets")
    folder.chmod(0o755)
    running = Upstream(demo, folder)
    built = subprocess.run(
        [".venv/bin/engineroom", "image", CATALOG.upstream_stacks["api"].image], cwd=ROOT, check=False, capture_output=True
    )
    assert built.returncode == 0, built.stderr.decode()
    running.up("api-engine", UPSTREAM_URL=DEMO_SERVER, UPSTREAM_MODEL="demo-r1", LOCAL_URL="http://nobody:8000/v1", LOCAL_MODEL="other")
    running.up("api", UPSTREAM_MODEL="demo-r1")
    yield running
    running.compose("rm", "--stop", "--force", "--volumes", "api", "api-engine")


def test_the_page_answers_through_the_service(upstream: Upstream) -> None:
    """A signed-in visitor gets thought and answer, although the local server that is asked first is not there."""
    status, found = upstream.chat()

    assert status == 200, found
    message = found["choices"][0]["message"]
    assert r"\boxed{623}" in message["content"]
    assert "The ones: 8 + 5 = 13" in message["reasoning_content"]


def test_the_router_serves_nothing_else(upstream: Upstream) -> None:
    """Its list is the one model; what administers the proxy is not reached, however it is spelled."""
    assert [row["id"] for row in upstream.router("/v1/models")[1]["data"]] == ["demo-r1"]
    for path in (
        "/model/info",
        "/config/yaml",
        "/key/generate",
        "//model/info",
        "/v1/models/../../model/info",
        "/V1/MODELS",
        "/%2e/model/info",
    ):
        assert upstream.router(path) == (404, {"error": {"message": "There is no such path.", "code": 404}})
    many = {"model": "demo-r1,demo-r1", "messages": [{"role": "user", "content": "What is 348 + 275?"}]}
    status, found = upstream.router("/v1/chat/completions", many)
    assert (status, "There is no such model" in json.dumps(found)) == (404, True)


def test_the_key_is_nowhere(upstream: Upstream) -> None:
    """It is not in the container's description, its processes' arguments and environments, its files or its log."""
    container = upstream.compose("ps", "--quiet", "api-engine").strip()
    looks = (
        ("docker", "inspect", container),
        ("docker", "logs", container),
        ("docker", "exec", container, "sh", "-c", "cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ /tmp/* | tr '\\0' '\\n'"),
    )
    for look in looks:
        result = subprocess.run(look, capture_output=True, text=True, check=False)
        assert result.stdout
        assert CANARY not in result.stdout + result.stderr
    assert upstream.compose("exec", "-T", "api-engine", "cat", "/run/secrets/upstream_key").strip() == CANARY


def test_status_smoke_logs_doctor_and_bundle_know_it(upstream: Upstream, tmp_path: Path) -> None:
    """As of a stack with an engine, as far as a router has anything to tell; the key is in none of it."""
    rows = {row["service"]: row for row in json.loads(upstream.tool("status", "api", "--json").stdout)}
    smoke = json.loads(upstream.tool("smoke", "api", "--json").stdout)
    logs = upstream.tool("logs", "api").stdout
    checks = {row["name"]: row for row in json.loads(upstream.tool("doctor", "api", "--json").stdout)["checks"]}
    bundle = upstream.tool("bundle", "api", "--to", str(tmp_path / "bundle.tar.gz"))
    with tarfile.open(tmp_path / "bundle.tar.gz") as archive:
        parts = {Path(member.name).name: archive.extractfile(member).read().decode() for member in archive.getmembers()}  # type: ignore[union-attr]

    assert {name: row["state"] for name, row in rows.items()} == {"api": "ready", "api-engine": "ready"}
    assert rows["api-engine"]["tokens_per_second"] is None
    assert (smoke["model"], r"\boxed{623}" in smoke["answer"], bool(smoke["thought"])) == ("demo-r1", True, True)
    assert f"router: demo-r1 at {DEMO_SERVER}" in logs
    assert (checks["service key"]["status"], checks["service"]["status"]) == ("ok", "warning")  # the name is the containers' alone
    assert checks[f"port {upstream.env['ROUTER_PORT']}"]["found"] == "in use by api-engine, as it should be"
    assert bundle.returncode == 0, bundle.stderr
    assert {"api.log", "api-engine.log", "doctor.json", "compose.json"} <= parts.keys()
    assert "image.json" not in parts
    assert CANARY not in logs + bundle.stdout + bundle.stderr + str(rows) + str(checks) + str(parts)


def test_a_service_that_is_gone_is_said(upstream: Upstream, demo: Demo) -> None:
    """Within seconds the page shows a sentence with the service's address; when it is back, so are the answers."""
    container, network = demo.compose("ps", "--quiet", "demo-cpu-engine").stdout.strip(), f"{demo.env['COMPOSE_PROJECT_NAME']}_default"
    subprocess.run(["docker", "network", "disconnect", network, container], check=True)
    try:
        began = time.monotonic()
        status, found = upstream.chat()
        assert time.monotonic() - began < 30
    finally:
        subprocess.run(["docker", "network", "connect", "--alias", "demo-cpu-engine", network, container], check=True)

    assert status >= 400
    assert f"{DEMO_SERVER} cannot be reached" in json.dumps(found)
    assert upstream.chat()[0] == 200


def test_the_local_server_answers_without_the_service(upstream: Upstream) -> None:
    """With the demo as the local server, a service that is not there costs nothing."""
    upstream.up(
        "api-engine", UPSTREAM_URL="https://nobody.invalid/v1", UPSTREAM_MODEL="demo-r1", LOCAL_URL=DEMO_SERVER, LOCAL_MODEL="demo-r1"
    )
    status, found = upstream.chat("What is 905 - 48?")

    assert status == 200, found
    assert r"\boxed{857}" in found["choices"][0]["message"]["content"]


def test_a_router_that_was_refused_says_why(upstream: Upstream) -> None:
    """Status and smoke have its own words, and how it ended."""
    upstream.compose("up", "--detach", "--no-deps", "api-engine", UPSTREAM_URL="", UPSTREAM_MODEL="demo-r1")
    deadline = time.monotonic() + 60
    while (row := json.loads(upstream.tool("status", "api", "--json").stdout)[1])["state"] != "exited":
        assert time.monotonic() < deadline, row
        time.sleep(1)
    smoke = upstream.tool("smoke", "api")

    assert row["last_exit"].startswith("refused before start, exit code 78: UPSTREAM_URL is not set")
    assert (smoke.returncode, "UPSTREAM_URL is not set" in smoke.stderr) == (69, True)


@pytest.mark.fault(27)
@pytest.mark.parametrize(
    ("key", "settings", "said"),
    [
        ("readable", {"PORT": "abc"}, "a port is a number"),
        ("two words", {"UPSTREAM_URL": DEMO_SERVER, "UPSTREAM_MODEL": "m"}, "holds 2 words"),
        ("of a Windows shell", {"UPSTREAM_URL": DEMO_SERVER, "UPSTREAM_MODEL": "m"}, "no plain ASCII text"),
        ("readable", {}, "UPSTREAM_URL is not set"),
        ("readable", {"UPSTREAM_URL": DEMO_SERVER, "LOCAL_URL": DEMO_SERVER, "UPSTREAM_MODEL": "m"}, "LOCAL_MODEL is not set"),
        ("root's alone", {"UPSTREAM_URL": DEMO_SERVER, "UPSTREAM_MODEL": "m"}, "Permission denied"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, key: str, settings: dict[str, str], said: str) -> None:
    """The router ends at once with 78, the setting's name and what to write."""
    file = tmp_path / "key"
    file.write_text(f"key: {CANARY}" if key == "two words" else CANARY, encoding="utf-16" if key == "of a Windows shell" else "ascii")
    file.chmod(0o600 if key == "root's alone" else 0o644)
    release = CATALOG.release_of("router")
    command = ["docker", "run", "--rm", "--read-only", "--tmpfs=/tmp", "--network=none", f"--volume={file}:/run/secrets/upstream_key:ro"]
    values = {"UPSTREAM_KEY_FILE": "/run/secrets/upstream_key", **settings}
    image = f"engineroom:router-{release.engine}{release.version}"
    result = subprocess.run(
        [*command, *(f"--env={name}={value}" for name, value in values.items()), image], capture_output=True, text=True, check=False
    )

    assert result.returncode == 78
    assert said in result.stderr
    assert "Traceback" not in result.stderr
    assert CANARY not in result.stdout + result.stderr

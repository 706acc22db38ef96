"""Every image that is built here, by the rules for Docker's official images and as container-structure-test sees it; CI builds those without a GPU."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import containers
import docker
import pytest
from image.conftest import HARDENED, ROOT, run

from engineroom import build, resolve, sbom
from engineroom.catalog import Catalog
from engineroom.host import Host

pytestmark = [pytest.mark.containers, pytest.mark.timeout(600)]
CATALOG = Catalog(ROOT)
IMAGES = list(CATALOG.images)
ALWAYS = [name for name in IMAGES if not resolve.capabilities(CATALOG, CATALOG.images[name])]


@pytest.fixture(scope="module")
def ready() -> None:
    """What CI builds is built from this checkout, so that nothing else is tested."""
    build.build(CATALOG, Host.load(ROOT), ALWAYS, lambda _: None)


def built(name: str) -> str:
    """The image's tag; the test is skipped where it is not built."""
    tag = resolve.tag(name, CATALOG.release_of(name))
    if not build.have(tag):
        pytest.skip(f"{tag} is not built here (make image TARGET={name})")
    return tag


def configuration(tag: str) -> dict[str, Any]:
    """What `docker inspect` shows of how an image starts."""
    return dict(docker.from_env().images.get(tag).attrs["Config"])


@pytest.mark.usefixtures("ready")
@pytest.mark.parametrize("name", IMAGES)
def test_command_override_works(name: str) -> None:
    """Another command than the image's own runs, with its arguments as they are and its status; one that is not there is named."""
    image = built(name)
    said = run(image, "printf", "%s|", "two words", "$HOME;", "'")
    assert (said.returncode, said.stdout) == (0, "two words|$HOME;|'|"), said.stderr
    assert run(image, "sh", "-c", "exit 7").returncode == 7

    absent = run(image, "no-such-command")
    assert absent.returncode not in (0, 7)
    assert "no-such-command" in absent.stderr
    assert "Traceback" not in absent.stderr


@pytest.mark.usefixtures("ready")
@pytest.mark.parametrize("name", IMAGES)
def test_time_zone_is_utc(name: str) -> None:
    """Logs of all containers have one time."""
    assert run(built(name), "+%Z", entrypoint="date").stdout.strip() == "UTC"


@pytest.mark.fault(26)
@pytest.mark.usefixtures("ready")
@pytest.mark.parametrize("name", IMAGES)
def test_fault_26_no_password_in_the_environment(name: str) -> None:
    """No variable of an image has the name of a secret with a value."""
    found = [text for text in configuration(built(name))["Env"] if re.match(r"(?i)\w*(passw|secret|token|api_?key|credential)\w*=.", text)]

    assert [text for text in found if not re.match(r"\w+_FILE=", text)] == []


@pytest.mark.usefixtures("ready")
@pytest.mark.parametrize("name", IMAGES)
def test_any_user_without_rights(name: str) -> None:
    """An id that no image knows, on a read-only root and without capabilities: it has a home that it may write, and gains no rights."""
    script = 'id -u; touch "$HOME/mine" && echo written; touch /etc/mine 2>/dev/null && echo root is writable; grep -E "^(CapEff|NoNewPrivs)" /proc/self/status'
    options = {**HARDENED, "user": "54321:0", "tmpfs": {"/tmp": ""}, "entrypoint": "sh", "network_mode": "none"}
    said = containers.run(built(name), ["-c", script], **options)

    assert said.split() == ["54321", "written", "CapEff:", "0000000000000000", "NoNewPrivs:", "1"]


@pytest.mark.usefixtures("ready")
@pytest.mark.parametrize("name", IMAGES)
def test_structure(name: str, tmp_path: Path) -> None:
    """container-structure-test finds what the catalog says: user, entrypoint through tini, labels, files that are root's and open to all."""
    image = built(name)
    known = configuration(image)
    files = ["/etc/engineroom/audit.json"]
    files += [resolve.OPENVEX] if CATALOG.release_of(name).exceptions else []
    files += ["/etc/engineroom/image.json", "/etc/engineroom/flags.json"] if CATALOG.release_of(name).launched else []
    wanted = {
        "schemaVersion": "2.0.0",
        "containerRunOptions": {"bindMounts": [f"{tmp_path}:{folder}" for folder in known["Volumes"] or ()]},  # else it leaves volumes behind
        "metadataTest": {
            "user": "1000:0",
            "entrypoint": known["Entrypoint"],
            "exposedPorts": [port.partition("/")[0] for port in known["ExposedPorts"]],
            "labels": [{"key": label, "value": value} for label, value in resolve.labels(CATALOG, name).items()],
        },
        "fileExistenceTests": [
            *({"name": file, "path": file, "shouldExist": True, "permissions": "-rw-r--r--", "uid": 0} for file in files),
            *({"name": file, "path": file, "shouldExist": False} for file in ("/run/secrets", "/root/.netrc", "/etc/pip.conf", "/etc/uv/uv.toml")),
        ],
        "commandTests": [
            {"name": "user", "command": "id", "args": ["-u"], "expectedOutput": ["^1000\n$"]},
            {"name": "no compiler's cache", "command": "ls", "args": ["/root/.cache"], "exitCode": 2},
        ],
    }  # fmt: skip
    config = tmp_path / "structure.json"
    config.write_text(json.dumps(wanted))

    program = next(
        (file for file in (Path(sys.executable).parent / "container-structure-test",) if file.exists()), "container-structure-test"
    )
    result = subprocess.run(
        [program, "test", "--image", image, "--config", config, "--output", "json"], capture_output=True, text=True, check=False
    )

    assert result.returncode == 0, result.stdout + result.stderr
    assert json.loads(result.stdout)["Pass"] == len(files) + 4 + 2 + 1
    assert known["Entrypoint"][0] == "tini"
    assert known["Labels"]["org.opencontainers.image.base.digest"].startswith("sha256:")
    assert known["Labels"]["org.opencontainers.image.base.name"]


def test_a_build_says_what_it_was_made_from(tmp_path: Path) -> None:
    """The label names the last commit that changed an image, `-modified` where a file differs; committing pushed digests changes nothing."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(tmp_path), "-c", "user.name=test", "-c", "user.email=test@example.com", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    def revision() -> str:
        return build.provenance(copy, Host.load(ROOT), "cpu").get("org.opencontainers.image.revision", "none")

    for part in ("images", "compose"):
        shutil.copytree(ROOT / part, tmp_path / part)
    copy = Catalog(tmp_path)
    assert revision() == "none"
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message", "one")
    first = git("rev-parse", "HEAD")
    assert revision() == first
    (tmp_path / "images/pushed.json").write_text("{}")
    (tmp_path / "notes").write_text("")
    assert revision() == first
    git("add", ".")
    git("commit", "--quiet", "--message", "two")
    assert revision() == first
    (tmp_path / "images/install-debs").write_text("")
    assert revision() == f"{first}-modified"


@pytest.mark.usefixtures("ready")
def test_page_for_any_user() -> None:
    """The page starts as a user that nobody knows, on a read-only root, without capabilities, and can write its data."""
    client = docker.from_env()
    page = client.containers.run(
        built(resolve.PAGE_IMAGE), detach=True, tmpfs={"/tmp": ""}, ports={"8080/tcp": ("127.0.0.1", None)},
        environment={"OFFLINE_MODE": "true", "HF_HUB_OFFLINE": "1", "RAG_EMBEDDING_ENGINE": "openai"}, **HARDENED,
    )  # fmt: skip
    try:
        ask = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8080/health', timeout=5).status)"
        deadline = time.monotonic() + 240
        while containers.execute(page, "python3", "-c", ask) != (0, "200\n"):
            page.reload()
            assert page.status == "running", page.logs().decode()
            assert time.monotonic() < deadline, page.logs().decode()
            time.sleep(1)
        assert containers.execute(page, "id", "-u") == (0, "12345\n")
        assert containers.execute(page, "test", "-s", "/app/backend/data/webui.db") == (0, "")
    finally:
        page.remove(force=True, v=True)


@pytest.fixture(scope="module")
def lists(ready: None) -> dict[str, dict[str, Any]]:
    """The lists of packages of what is built here."""
    del ready
    here = [name for name in IMAGES if build.have(resolve.tag(name, CATALOG.release_of(name)))]
    return {name: json.loads(sbom.write(CATALOG, name).read_text()) for name in here}


def test_every_package_is_in_the_list(lists: dict[str, dict[str, Any]]) -> None:
    """Whatever the lock and dpkg have is there once, by version and package URL, and so is what the audit found in the image."""
    for name, found in lists.items():
        urls = [component["purl"].partition("?")[0] for component in found["components"]]
        assert len(urls) == len({json.dumps(component, sort_keys=True) for component in found["components"]})
        left_out = {package for rule in (*CATALOG.leave_out, *CATALOG.release_of(name).leave_out) for package in rule.packages}
        locked = resolve.locked_versions(CATALOG, name) if CATALOG.release_of(name).install == "wheels" else {}
        wanted = {f"pkg:pypi/{package}@{version.replace('+', '%2B')}" for package, version in locked.items() if package not in left_out}
        assert wanted - set(urls) == set(), name
        audited = json.loads(run(resolve.tag(name, CATALOG.release_of(name)), "/etc/engineroom/audit.json", entrypoint="cat").stdout)
        names = {component["name"] for component in found["components"]}
        assert {package["name"] for package in audited["packages"]} - names == set(), name
        assert any(url.startswith("pkg:deb/debian/libc6@") for url in urls)


def test_the_list_is_cyclonedx_and_the_same_again(lists: dict[str, dict[str, Any]]) -> None:
    """It keeps to the schema; it names the image by Docker's id; the same image gives the same bytes."""
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    page = lists[resolve.PAGE_IMAGE]
    few = [{**component, "externalReferences": []} for component in page["components"][::8]]  # it takes 0.2 s to check an address
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps({**page, "components": few})) is None
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps({**page, "components": [{"type": "no such"}]}))
    assert "sha256:" + page["metadata"]["component"]["hashes"][0]["content"] == build.image_id(built(resolve.PAGE_IMAGE))

    file = ROOT / f"build/sbom/{resolve.PAGE_IMAGE}.cdx.json"
    before = file.read_bytes()
    assert sbom.write(CATALOG, resolve.PAGE_IMAGE).read_bytes() == before

"""Pushing: the lock, the spelling of registries, what a refusal says. What reaches a registry is tried in tests/image/test_registry.py."""

from __future__ import annotations

import json
import re
from datetime import date
from pathlib import Path

import pytest

from engineroom import build, push, pushed, resolve
from engineroom.catalog import Catalog
from engineroom.errors import BadRequest, CatalogError, UnknownName
from engineroom.host import Host

ROW = {
    "reference": f"registry.example/team/engineroom@sha256:{'a' * 64}",
    "tag": "cpu-vllm0.32.0",
    "id": f"sha256:{'b' * 64}",
    "compression": "gzip",
    "pushed": "2026-11-23",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    return tmp_path


def test_no_lock_is_an_empty_one(root: Path) -> None:
    """A checkout that pushed nothing has no digests."""
    assert pushed.read(root) == {}


def test_the_lock_is_read_as_it_is_written(root: Path) -> None:
    """Each image is added beside the others, by name; nothing but the lock is left."""
    row = pushed.LOCK.validate_json(json.dumps({"cpu": ROW}))["cpu"]
    for image in ("webui", "cpu"):
        pushed.write(root, image, row)

    assert json.loads(pushed.lock_file(root).read_text()) == {"cpu": ROW, "webui": ROW}
    assert list(pushed.read(root)) == ["cpu", "webui"]
    assert pushed.read(root)["cpu"].pushed == date(2026, 11, 23)
    assert [file.name for file in (root / "images").iterdir()] == ["pushed.json"]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"reference": "registry.example/engineroom:cpu"}, "cpu.reference"),
        ({"id": "sha256:12"}, "cpu.id"),
        ({"compression": "lz4"}, "cpu.compression"),
        ({"pushed": "yesterday"}, "cpu.pushed"),
        ({"digest": "x"}, "cpu.digest"),
    ],
)
def test_a_malformed_lock_names_file_and_field(root: Path, change: dict[str, str], field: str) -> None:
    """A row that cannot be is refused where it stands."""
    pushed.lock_file(root).write_text(json.dumps({"cpu": {**ROW, **change}}))

    with pytest.raises(CatalogError, match=f"{re.escape(str(pushed.lock_file(root)))}: {re.escape(field)}: "):
        pushed.read(root)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"cpu": null}', "\xff"])
def test_what_is_no_lock_is_refused(root: Path, text: str) -> None:
    """Half a file, another kind of file: a sentence that says what to do."""
    pushed.lock_file(root).write_bytes(text.encode("latin-1"))

    with pytest.raises(CatalogError, match="Take it from git again, or remove it and push anew"):
        pushed.read(root)


def test_stale(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was pushed is stale when the catalog has another release, or another image was built; without Docker only the first is seen."""
    tag = resolve.tag("cpu", catalog.release_of("cpu")).split(":")[1]
    row = pushed.LOCK.validate_json(json.dumps({"cpu": {**ROW, "tag": tag}}))["cpu"]
    monkeypatch.setattr("shutil.which", lambda _: None)
    assert pushed.stale(catalog, "cpu", row) == ""
    old = row.model_copy(update={"tag": "cpu-vllm0.1"})
    assert pushed.stale(catalog, "cpu", old) == f"{row.reference} was pushed as cpu-vllm0.1, and the catalog has {tag}"

    monkeypatch.setattr("shutil.which", lambda _: "/usr/bin/docker")
    for built, reason in ((row.id, ""), ("", ""), ("sha256:other", f"engineroom:{tag} was built anew since it was pushed")):
        monkeypatch.setattr(build, "image_id", lambda _, built=built: built)
        assert pushed.stale(catalog, "cpu", row) == reason


@pytest.mark.parametrize(
    "name",
    [
        "registry.example",
        "registry.example:5000/team/us",
        "localhost",
        "localhost:5000",
        "127.0.0.1:5000",
        "nas:5000",
        "docker.io/user",
        "a-b.example/x_y/z-1",
    ],
)
def test_registries(name: str) -> None:
    """With and without the slash that ENGINEROOM_REGISTRY ends in."""
    assert push.registry_name(name) == push.registry_name(f"{name}/") == name


@pytest.mark.parametrize(
    "text",
    ["https://registry.example", "user", "registry.example/Team", "registry.example/a b", "registry.example//a", "-:x", "/", "a@b.c"],
)
def test_what_is_no_registry(text: str) -> None:
    """The form is said; a bare word would be a user of Docker Hub."""
    with pytest.raises(BadRequest, match=r"is no registry: wanted is HOST\[:PORT\]"):
        push.registry_name(text)


@pytest.mark.parametrize(
    ("registry", "local"),
    [
        ("127.0.0.1:5000", True),
        ("127.3.2.1", True),
        ("localhost:5000/team", True),
        ("localhost.example:5000", False),
        ("127.0.0.1.example", False),
        ("10.0.0.1:5000", False),
        ("registry.example/127.0.0.1", False),
        ("nas:5000", False),
    ],
)
def test_plain_http_is_for_this_machine_alone(registry: str, local: bool) -> None:
    """The address decides, never a name that begins like one."""
    assert push.on_loopback(registry) is local


def test_refusals_come_before_docker(catalog: Catalog, copy: Path) -> None:
    """No registry, an image that is not known, a lock that cannot be read: nothing has run by then."""
    host = Host.load(catalog.root, {})
    pushed.lock_file(copy).write_text("{")
    with pytest.raises(CatalogError, match=r"pushed\.json: the file: Invalid JSON"):
        list(push.push(Catalog(copy), host, ["cpu"], "registry.example", print))
    with pytest.raises(BadRequest, match="Type: engineroom push --registry registry.example/team, or set ENGINEROOM_REGISTRY"):
        list(push.push(catalog, host, ["cpu"], "", print))
    with pytest.raises(UnknownName, match="Did you mean 'cpu'"):
        list(push.push(catalog, host, ["cpuu"], "registry.example", print))


@pytest.mark.parametrize(
    ("said", "code", "advice"),
    [
        ("no basic auth credentials", 69, "Type: docker login registry.example:5000; then"),
        (
            "checking whether a blob exists in registry.example:5000/engineroom: unauthorized: authentication required",
            69,
            "Type: docker login",
        ),
        ("denied: requested access to the resource is denied", 69, "Type: docker login registry.example:5000"),
        (
            'Get "https://registry.example:5000/v2/": tls: failed to verify certificate: x509: unknown authority',
            69,
            "certs.d/registry.example:5000/ca.crt",
        ),
        ('Get "https://registry.example:5000/v2/": http: server gave HTTP response to HTTPS client', 69, "Give it a certificate"),
        (
            'Get "http://registry.example:5000/v2/": dial tcp 10.0.0.1:5000: connect: connection refused',
            69,
            "what it has is not sent twice",
        ),
        ("received unexpected HTTP status: 503 Service Unavailable", 69, "did not answer"),
        ("initializing source oci:/x:: open /x/index.json: no such file or directory", 70, "Docker 25 or newer"),
        (f"manifest sha256:{'401'.center(64, 'f')} invalid", 70, "could not be pushed: manifest"),
    ],
)
def test_a_failed_push_is_explained(said: str, code: int, advice: str) -> None:
    """What Docker 26.1 and skopeo 1.9 said, and what is to be typed or looked at."""
    error = push.diagnose("registry.example:5000/engineroom:cpu", said)

    assert error.exit_code == code
    assert advice in str(error)

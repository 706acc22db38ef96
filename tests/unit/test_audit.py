"""The audit of a file system: each finding, each exception."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest

from engineroom import auditing, build, resolve, shared_objects
from engineroom.audit import audit
from engineroom.catalog import Catalog
from engineroom.device_code import opened
from engineroom.errors import BadRequest, EngineRoomError
from engineroom.shared_objects import SharedObject

DATA = Path(__file__).parents[1] / "data"
ELF = b"\x7fELF\x02\x01" + bytes(100)


def rules(*exceptions: dict[str, Any], capabilities: tuple[int, ...] = (70,)) -> dict[str, Any]:
    return {"image": "test", "capabilities": list(capabilities), "exceptions": list(exceptions)}


def exception(check: str, *files: str, capabilities: tuple[int, ...] = ()) -> dict[str, Any]:
    return {"check": check, "files": list(files), "capabilities": list(capabilities), "why": "a good reason"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A small file system without anything wrong in it."""
    site = tmp_path / "opt/engine/lib/python3.11/site-packages"
    (site / "engine-1.0.dist-info").mkdir(parents=True)
    (site / "engine-1.0.dist-info/METADATA").write_text("Name: engine\nVersion: 1.0\nLicense-Expression: Apache-2.0\n\ntext\n")
    (site / "old-2.0.dist-info").mkdir()
    (site / "old-2.0.dist-info/METADATA").write_text("Name: old\nVersion: 2.0\nClassifier: License :: OSI Approved :: MIT License\n")
    (site / "engine").mkdir()
    (site / "engine/good.so").write_bytes(ELF + (DATA / "kernels.fatbin").read_bytes())
    (tmp_path / "var/lib/dpkg").mkdir(parents=True)
    (tmp_path / "var/lib/dpkg/status").write_text("Package: tini\nStatus: install ok installed\nVersion: 0.19\n\n")
    return tmp_path


def test_clean_file_system(root: Path) -> None:
    """Nothing is found; device code and licences are listed, so that the result can be kept as a record."""
    found = audit(root, rules())

    assert found["findings"] == found["excepted"] == []
    assert found["packages"] == [
        {"name": "tini", "version": "0.19", "licence": "/usr/share/doc/tini/copyright"},
        {"name": "engine", "version": "1.0", "licence": "Apache-2.0"},
        {"name": "old", "version": "2.0", "licence": "MIT License"},
    ]
    (path,) = found["device_code"]
    assert path.endswith("engine/good.so")
    assert found["device_code"][path]["usable"] == {70: 1}
    json.dumps(found)


def test_library_for_other_gpus(root: Path) -> None:
    """A library whose code does not run on one of the GPUs is named, with that GPU."""
    library = root / "opt/engine/bad.so"
    library.write_bytes(ELF + (DATA / "kernels-compressed.fatbin").read_bytes())

    found = audit(root, rules(capabilities=(70, 80)))["findings"]

    assert found == ["opt/engine/bad.so: no device code for compute capability 70; it has SASS for 80 90, PTX for 80"]


def test_exception_with_a_reason(root: Path) -> None:
    """A named finding is kept with its reason, for the GPU that the exception names and no other."""
    (root / "opt/engine/bad.so").write_bytes(ELF + (DATA / "kernels-compressed.fatbin").read_bytes())

    found = audit(root, rules(exception("device-code", "/bad.so", capabilities=(70,))))
    assert found["findings"] == []
    assert found["excepted"] == [{"check": "device-code", "files": ["opt/engine/bad.so"], "why": "a good reason"}]
    assert len(audit(root, rules(exception("device-code", "/bad.so", capabilities=(80,))))["findings"]) == 2


def test_exception_that_nothing_needs(root: Path) -> None:
    """A reason for what is not there any more is an error: facts stay true."""
    assert audit(root, rules(exception("device-code", "/gone.so")))["findings"] == [
        "/gone.so: an exception that nothing needs: remove it from engines.toml"
    ]


@pytest.mark.parametrize(
    ("mode", "finding"),
    [
        (0o666, "anyone may write it"),
        (0o4755, "it runs with its owner's rights (set-uid or set-gid)"),
        (0o2755, "it runs with its owner's rights (set-uid or set-gid)"),
    ],
)
def test_rights_of_files(root: Path, mode: int, finding: str) -> None:
    """Writable for all, set-uid, set-gid."""
    (root / "usr").mkdir()
    (root / "usr/file").write_text("text")
    (root / "usr/file").chmod(mode)

    assert audit(root, rules())["findings"] == [f"usr/file: {finding}"]


def test_rights_of_folders(root: Path) -> None:
    """A folder that all may write must be sticky; one that hands down its group is fine."""
    for name, mode in (("sticky", 0o1777), ("shared", 0o2775), ("open", 0o777)):
        (root / name).mkdir()
        (root / name).chmod(mode)

    assert audit(root, rules())["findings"] == ["open: anyone may write it"]


@pytest.mark.fault(26)
@pytest.mark.parametrize(
    ("name", "text", "what"),
    [
        ("key.pem", "-----BEGIN RSA PRIVATE KEY-----\n" + "A" * 64, "what looks like a private key"),
        ("settings.json", '{"token": "hf_' + "a" * 34 + '"}', "what looks like a Hugging Face token"),
        ("notes.txt", "ghp_" + "a1" * 18, "what looks like a GitHub token"),
        ("notes.txt", "AKIA" + "A1" * 8, "what looks like an AWS key"),
        (".netrc", "machine here", "a file that holds credentials"),
        ("uv/uv.toml", "index-url", "a file that holds credentials"),
    ],
)
def test_fault_26_secrets_are_found_and_not_shown(root: Path, name: str, text: str, what: str) -> None:
    """The file is named; the secret is not printed."""
    (root / "etc" / name).parent.mkdir(parents=True)
    (root / "etc" / name).write_text(text)

    assert audit(root, rules())["findings"] == [f"etc/{name}: {what}"]


def test_documentation_about_secrets_is_no_secret(root: Path) -> None:
    """A placeholder in a README."""
    (root / "readme").write_text("-----BEGIN PRIVATE KEY-----\n...\nexport HF_TOKEN=hf_xxx AKIA ghp_yours")

    assert audit(root, rules())["findings"] == []


def test_a_systems_own_library_is_read() -> None:
    """The dynamic section of a real file: its name and what it needs."""
    libc = next(Path("/lib/x86_64-linux-gnu").glob("libm.so.6"))
    with opened(libc) as data:
        found = shared_objects.read(data)

    assert found is not None
    assert found.soname == "libm.so.6"
    assert "libc.so.6" in found.needed


def test_names_that_nothing_provides(tmp_path: Path) -> None:
    """A name is found by file, by a library's own name, or in the system's folders; the driver's names are the host's."""
    shutil.copy(DATA / "kernel.ptx", tmp_path / "libc.so.6")
    objects = {
        "a/one.so": SharedObject("libone.so.1", ("libtwo.so.2", "libc.so.6", "libcuda.so.1", "libgone.so.3")),
        "b/libtwo-abc.so": SharedObject("libtwo.so.2", ("libone.so.1", "libnvidia-ml.so.1")),
    }

    assert list(shared_objects.unresolved(objects, [str(tmp_path)])) == [("a/one.so", ["libgone.so.3"])]


def test_broken_library_is_no_error() -> None:
    """A file that only begins like one."""
    assert shared_objects.read(ELF) is None
    assert shared_objects.read(b"") is None


def test_every_exception_and_rule_says_why(catalog: Catalog) -> None:
    """Each image's rules hold the exceptions of its GPUs alone, each with its reason."""
    for name, image in catalog.images.items():
        found = resolve.audit_rules(catalog, name)
        assert found["capabilities"] == resolve.capabilities(catalog, image)
        assert all(len(rule["why"]) > 8 for rule in found["exceptions"])


def test_library_cut_in_the_middle() -> None:
    """Wherever a real library is cut before its dynamic section, it has none to read; that is no error."""
    whole = next(Path("/lib/x86_64-linux-gnu").glob("libm.so.6")).read_bytes()

    assert [shared_objects.read(whole[:size]) for size in range(64, 640, 61)] == [None] * 10


@pytest.mark.parametrize("flipped", [0, 40, 60, 5000])
def test_a_damaged_wheel_is_named(catalog: Catalog, tmp_path: Path, flipped: int) -> None:
    """Wherever a wheel has other bytes than it had: in a name, in what is packed, or so that it is no zip file at all."""
    wheel = tmp_path / "x-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.so", ELF + bytes(range(256)) * 100)
    whole = wheel.read_bytes()
    start, length = (flipped, 20) if flipped < len(whole) else (0, len(whole))
    wheel.write_bytes(whole[:start] + bytes(byte ^ 0xFF for byte in whole[start : start + length]) + whole[start + length :])

    with pytest.raises(EngineRoomError, match=r"x-1.0-py3-none-any.whl is no wheel, or is damaged: .*\. Fetch it again"):
        auditing.audit(catalog, str(wheel), "v100")


def test_an_image_that_cannot_be_audited(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is not built here is looked for nowhere else; --gpu is not for images, whose name is right all the same."""
    monkeypatch.setattr(build, "require_docker", lambda: None)
    monkeypatch.setattr(build, "have", lambda _: False)

    with pytest.raises(EngineRoomError, match=r"engineroom:cpu-\S+ is not built here. Type: make image TARGET=cpu"):
        auditing.audit(catalog, "cpu", None)
    with pytest.raises(BadRequest, match="--gpu is for wheels and folders; cpu is an image.*Leave --gpu out"):
        auditing.audit(catalog, "cpu", "v100")

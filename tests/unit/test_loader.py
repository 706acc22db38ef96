"""How weights are read, by the file system that they are on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher import facts, flags, loader

ROOT = Path(__file__).parents[2]
MOUNTS = """\
overlay / overlay rw,lowerdir=/a b 0 0
server:/weights {models} {kind} ro,relatime,vers=4.2 0 0
/dev/nvme0n1 {models}/local ext4 rw 0 0
tmpfs {models}\\040too tmpfs rw 0 0
"""


def image(name: str) -> tuple[facts.ImageFacts, flags.Snapshot | None]:
    found = facts.load(str(ROOT / "images" / name / "image.json"))
    return found, flags.load(str(ROOT / "images/flags" / f"{found.release}.json"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """A model of 100 bytes on a file system of the kind that the test names."""
    (tmp_path / "mounts").write_text(MOUNTS.format(models=tmp_path / "models", kind=getattr(request, "param", "nfs4")))
    (tmp_path / "models/r1/local").mkdir(parents=True)
    (tmp_path / "models/r1/model.safetensors").write_bytes(bytes(100))
    monkeypatch.setattr(loader.filesystem, "__defaults__", (str(tmp_path / "mounts"),))
    return tmp_path / "models/r1"


def test_the_innermost_mount_counts(folder: Path) -> None:
    """Not a neighbour whose name begins alike, nor the root."""
    kinds = [loader.filesystem(str(folder.parent.parent / path)) for path in ("models/r1", "models/local/x", "models too/x", "models-2")]

    assert kinds == ["nfs4", "ext4", "tmpfs", "overlay"]


@pytest.mark.parametrize("folder", ["nfs", "nfs4", "lustre", "ceph", "fuse.s3fs", "fuse.gcsfuse", "cifs"], indirect=True)
@pytest.mark.parametrize(
    ("name", "flag", "value"),
    [("h200-fp8", "safetensors-load-strategy", "prefetch"), ("a100-sglang", "weight-loader-prefetch-checkpoints", True)],
)
def test_over_a_network_weights_are_read_ahead(folder: Path, name: str, flag: str, value: object) -> None:
    """By a flag that the release has; the user's own choice counts, and what does not fit into memory is not read ahead."""
    found, known = image(name)
    chosen, notes = loader.choose(found, str(folder), [], known, lambda: 1000)

    assert chosen.args == {**found.args, flag: value}
    assert notes[0].endswith(f"they are read ahead (--{flag})")
    for words in (
        ["--load-format", "fastsafetensors"],
        ["--model-loader-extra-config", '{"enable_multithread_load": true}'],  # which vLLM refuses together with it
        ["--model_loader_extra_config.enable_multithread_load", "true"],
    ):
        assert loader.choose(found, str(folder), words, known, lambda: 1000) == (found, ())
    chosen, notes = loader.choose(found, str(folder), [], known, lambda: 100)
    assert (chosen, len(notes)) == (found, 1)


@pytest.mark.parametrize("folder", ["ext4", "xfs", "tmpfs", "fuse.fuse-overlayfs", "fuseblk"], indirect=True)
def test_local_weights_are_left_to_the_engine(folder: Path) -> None:
    found, known = image("h200-fp8")

    assert loader.choose(found, str(folder), [], known, lambda: 1000) == (found, ())


@pytest.mark.parametrize("name", ["v100-half", "b200-fp4"])
def test_a_release_that_cannot_read_ahead_gets_a_note(folder: Path, name: str) -> None:
    found, known = image(name)
    chosen, notes = loader.choose(found, str(folder), [], known, lambda: 1000)

    assert chosen == found
    assert notes == ("the weights lie on a network (nfs4), and this release does not read ahead: a copy on a local disk loads faster",)


def test_what_cannot_be_told_is_left_to_the_engine(tmp_path: Path) -> None:
    """No table of mounts, or one of another form; a model that has yet to be fetched."""
    (tmp_path / "odd").write_text("one two\n")
    found, known = image("h200-fp8")

    assert loader.filesystem("/", str(tmp_path / "none")) == loader.filesystem("/", str(tmp_path / "odd")) == ""
    assert loader.choose(found, "", [], known, lambda: 1000) == (found, ())
    assert json.dumps(loader.filesystem("/")) != '""'

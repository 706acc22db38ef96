"""The reader of device code, on files that NVIDIA's own tools made and read."""

from __future__ import annotations

import json
import shutil
import struct
import zipfile
from pathlib import Path

import pytest

from engineroom import auditing, device_code
from engineroom.catalog import Catalog
from engineroom.device_code import Code, opened, survey
from engineroom.errors import AuditFailed, EngineRoomError, UnknownName

DATA = Path(__file__).parents[1] / "data"
ALL = (DATA / "kernels.fatbin").read_bytes()
COMPRESSED = (DATA / "kernels-compressed.fatbin").read_bytes()


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (ALL, "SASS for 70 80 90 100, PTX for 90"),
        (COMPRESSED, "SASS for 80 90, PTX for 80"),
        ((DATA / "kernel-70.cubin").read_bytes(), "SASS for 70"),
        ((DATA / "kernel-100.cubin").read_bytes(), "SASS for 100"),
        (b"some code" + ALL + bytes(40) + COMPRESSED, "SASS for 70 80 90 100, PTX for 80 90"),
    ],
)
def test_kinds_and_architectures(data: bytes, shown: str) -> None:
    """As the makers of the files say, compressed or not, wherever the code stands in a library."""
    assert str(survey(data, [70])) == shown


@pytest.mark.parametrize("data", [b"", b"x" * 200, device_code.FATBIN, device_code.FATBIN + bytes(60), ALL[:40]])
def test_files_without_device_code(data: bytes) -> None:
    """No code, a magic number by chance, a file that was cut."""
    assert survey(data, [70]) is None


@pytest.mark.parametrize(
    ("kind", "arch", "capability", "runs"),
    [
        ("sass", 80, 86, True),
        ("sass", 86, 80, False),
        ("sass", 80, 90, False),
        ("sass", 100, 103, True),
        ("sass", 100, 120, False),
        ("ptx", 80, 90, True),
        ("ptx", 90, 80, False),
    ],
)
def test_what_runs_where(kind: str, arch: int, capability: int, runs: bool) -> None:
    """SASS upwards within a major version, PTX upwards: capabilities are integers, so 100 is more than 90."""
    assert Code(kind, arch, 0, 0).runs_on(capability) is runs


def test_empty_ptx_makes_nothing_usable() -> None:
    """A PTX module without kernels for 52, as nvcc's linker leaves it in old libraries, would else run on every GPU."""
    text = b".version 8.7\n.target sm_52\n.address_size 64\n"
    entry = struct.pack("<HHIQ12xI32x", 1, 0x101, 64, len(text), 52) + text
    data = struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(entry)) + entry

    found = survey(data, [100])
    assert found is not None
    assert found.usable == {100: 0}


def test_blanking_keeps_what_the_gpu_loads(tmp_path: Path) -> None:
    """The bytes for the GPU stay as they are, the rest is zero, nothing moves; what is left compresses well."""
    file = tmp_path / "library.so"
    file.write_bytes(ALL + COMPRESSED)

    zeroed = device_code.blank(file, [90])

    after = file.read_bytes()
    found = survey(after, [70, 80, 90, 100])
    assert len(after) == len(ALL + COMPRESSED)
    assert zeroed > len(ALL) // 2
    assert found is not None
    assert found.usable == {70: 0, 80: 0, 90: 2, 100: 0}
    assert found.pieces["sass"] == {90: 2}
    assert "ptx" not in found.pieces
    kept = next(code for code in next(device_code.fat_binaries(ALL)) if code.arch == 90)
    assert after[kept.start : kept.start + kept.size] == ALL[kept.start : kept.start + kept.size]


def test_blanking_keeps_ptx_where_there_is_nothing_better(tmp_path: Path) -> None:
    """A GPU without SASS of its own compiles PTX: that stays."""
    file = tmp_path / "library.so"
    file.write_bytes(COMPRESSED)

    device_code.blank(file, [100])

    with opened(file) as data:
        found = survey(data, [100])
    assert found is not None
    assert found.pieces == {"ptx": {80: 1}, "blanked": {80: 1, 90: 1}}


def wheel(folder: Path, **members: bytes) -> Path:
    file = folder / "engine-1.0-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members.items():
            archive.writestr(f"engine/{name}.so", data)
    return file


def test_wheel_for_another_gpu_is_refused(catalog: Catalog, tmp_path: Path) -> None:
    """The libraries without code for the GPU are named, with what they have."""
    file = wheel(tmp_path, good=ALL, bad=COMPRESSED, plain=b"no code")

    result = auditing.audit(catalog, str(file), "v100")

    with pytest.raises(AuditFailed) as error:
        auditing.summary("engine.whl", result)
    assert str(error.value) == (
        "engine.whl: 1 finding\n  engine/bad.so: no device code for compute capability 70; it has SASS for 80 90, PTX for 80"
    )
    assert error.value.exit_code == 78


def test_folder_for_its_gpu_is_clean(catalog: Catalog, tmp_path: Path) -> None:
    """A folder is read as a wheel is; loose cubins for others count by folder."""
    elf = b"\x7fELF\x02\x01" + bytes(100)
    (tmp_path / "good.so").write_bytes(elf + ALL)
    shutil.copy(DATA / "kernel-70.cubin", tmp_path)

    assert auditing.audit(catalog, str(tmp_path), "v100")["findings"] == []
    findings = auditing.audit(catalog, str(tmp_path), "h200")["findings"]
    assert findings == ["./*.cubin: 1 that do not run on compute capability 90"]
    json.dumps(auditing.audit(catalog, str(tmp_path), "h200"))


@pytest.mark.parametrize(
    ("target", "gpu", "error", "text"),
    [
        ("v100-halv", None, UnknownName, "Did you mean 'v100-half'?"),
        (".", None, EngineRoomError, "Name the GPU"),
        (".", "v10", UnknownName, "Did you mean 'v100'?"),
        ("none.whl", "v100", EngineRoomError, "none.whl does not exist"),
    ],
)
def test_bad_targets(catalog: Catalog, target: str, gpu: str | None, error: type[EngineRoomError], text: str) -> None:
    """Bad input says what to type."""
    with pytest.raises(error, match=text.replace("?", r"\?")):
        auditing.audit(catalog, target, gpu)


def test_broken_wheel(catalog: Catalog, tmp_path: Path) -> None:
    """A download that was cut is said to be one."""
    file = tmp_path / "cut.whl"
    file.write_bytes(b"PK\3\4 and no more")

    with pytest.raises(EngineRoomError, match="no wheel"):
        auditing.audit(catalog, str(file), "v100")

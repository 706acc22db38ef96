"""Our reader of device code against NVIDIA's, on files of NVIDIA's own tools."""

from __future__ import annotations

import re
import shutil
import subprocess
import sysconfig
from collections import Counter
from pathlib import Path

import pytest

from engineroom.device_code import opened, survey

DATA = Path(__file__).parents[1] / "data"
CUOBJDUMP = Path(sysconfig.get_path("purelib"), "nvidia/cu13/bin/cuobjdump")


@pytest.mark.parametrize("file", sorted(DATA.glob("*.fatbin")), ids=lambda file: file.name)
def test_both_find_the_same(file: Path, tmp_path: Path) -> None:
    """The same pieces for the same architectures, compressed or not."""
    program = tmp_path / "cuobjdump"
    shutil.copy(CUOBJDUMP, program)
    program.chmod(0o755)
    shown = subprocess.run([program, "--list-elf", "--list-ptx", file], capture_output=True, text=True, check=False)
    theirs = Counter((kind, int(arch)) for arch, kind in re.findall(r"sm_(\d+)\.(cubin|ptx)", shown.stdout))

    with opened(file) as data:
        found = survey(data, [])

    assert found is not None
    ours = {("cubin" if kind == "sass" else kind, arch): count for kind, archs in found.pieces.items() for arch, count in archs.items()}
    assert ours == theirs

"""Bad input and missing services at the host tool's real command line: a message that names the fix, and no traceback."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def engineroom(*arguments: str, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    """The host tool, run in a folder, with variables added."""
    command = [ROOT / ".venv/bin/engineroom", *arguments]
    return subprocess.run(command, cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True, check=False)


def copy_catalog(folder: Path) -> Path:
    """A checkout's catalog and rendered files, to spoil."""
    for part in ("images", "compose", "docs", "entrypoints"):
        shutil.copytree(ROOT / part, folder / part)
    for file in ("compose.yaml", "README.md"):
        shutil.copy(ROOT / file, folder)
    return folder


@pytest.mark.parametrize(
    ("arguments", "env", "code", "message"),
    [
        (("image", "cpuu"), {}, 2, "Did you mean 'cpu'?"),
        (("up", "r1-7b-v10"), {}, 2, "Did you mean 'r1-7b-v100'?"),
        (("image", "v100-trtllm"), {}, 78, "a V100 is 70.\nUse v100-half instead."),
        (("up", "v3-a100x2"), {}, 78, "313 GiB on each of two A100"),
        (("image", "cpu"), {"DOCKER_HOST": "tcp://127.0.0.1:1"}, 69, "Type: scripts/docker-engine"),
        (("image", "--all"), {"DOCKER_HOST": "tcp://127.0.0.1:1"}, 69, "Type: scripts/docker-engine"),
        (("image",), {}, 2, "Name images, or say --all"),
        (("images",), {"DOCKER_HOST": "tcp://127.0.0.1:1"}, 69, "Type: scripts/docker-engine"),
        (("down",), {"PATH": "/nowhere"}, 69, "There is no docker on PATH"),
        (("up", "demo-cpu"), {"DOCKER_HOST": "tcp://127.0.0.1:1"}, 69, "127.0.0.1:1"),
        (("up", "demo-cpu"), {"API_PORT": "eighty"}, 78, "API_PORT is 'eighty', which is no port"),
        (("lock", "b200-fp4"), {}, 70, "there is nothing to lock"),
        (("audit", "v100-halv"), {}, 2, "Did you mean 'v100-half'?"),
        (("audit", "images"), {}, 70, "Name the GPU that images is for: --gpu v100"),
        (("audit", "cpu"), {"DOCKER_HOST": "tcp://127.0.0.1:1"}, 69, "Type: scripts/docker-engine"),
        (("flags", "write", "cpuu"), {}, 2, "Did you mean 'cpu'?"),
        (("rendr",), {}, 2, "No such command 'rendr'"),
    ],
)
def test_bad_input(arguments: tuple[str, ...], env: dict[str, str], code: int, message: str) -> None:
    """Each ends with its code, says what to type, and shows no traceback."""
    result = engineroom(*arguments, **env)

    assert (result.returncode, "Traceback" in result.stderr) == (code, False), result.stderr
    assert message in result.stderr


def test_malformed_toml(tmp_path: Path) -> None:
    """A syntax error in a catalog file names the file and the line."""
    copy = copy_catalog(tmp_path)
    (copy / "compose/stacks.toml").write_text("[demo-cpu\n")
    result = engineroom("render", cwd=copy)

    assert result.returncode == 78
    assert "compose/stacks.toml is no valid TOML" in result.stderr
    assert "line 1" in result.stderr


def test_render_check_names_the_file(tmp_path: Path) -> None:
    """`render --check` fails on an edited file and names it, and `render` mends it."""
    copy = copy_catalog(tmp_path)
    (copy / "compose/demo-cpu.yaml").write_text("services: {}\n")
    checked = engineroom("render", "--check", cwd=copy)

    assert checked.returncode == 1
    assert "compose/demo-cpu.yaml: stale or edited" in checked.stderr
    assert engineroom("render", cwd=copy).stdout == "compose/demo-cpu.yaml\n"
    assert engineroom("render", "--check", cwd=copy).returncode == 0


@pytest.mark.parametrize("seed", ["1", "2"])
def test_render_does_not_depend_on_hashes(seed: str) -> None:
    """The order of sets and dicts leaves no trace in a rendered file."""
    assert engineroom("render", "--check", PYTHONHASHSEED=seed).returncode == 0


def test_no_network(tmp_path: Path) -> None:
    """Without its index a lock fails with the cause, and the old lock stays."""
    copy = copy_catalog(tmp_path)
    before = (copy / "images/locks/open-webui-0.12.4.txt").read_text()
    result = engineroom("lock", "webui", "--upgrade", cwd=copy, UV_DEFAULT_INDEX="http://127.0.0.1:1/simple", UV_HTTP_RETRIES="0")

    assert result.returncode == 69
    assert "cannot be reached" in result.stderr
    assert (copy / "images/locks/open-webui-0.12.4.txt").read_text() == before


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A catalog on a disk with no byte left."""
    if os.geteuid():
        pytest.skip("mounting needs root")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", tmp_path], check=True)
    try:
        copy_catalog(tmp_path)
        (tmp_path / "compose/demo-cpu.yaml").unlink()
        with (tmp_path / "filler").open("wb", buffering=0) as filler:
            while True:
                try:
                    filler.write(bytes(4096))
                except OSError:
                    break
        yield tmp_path
    finally:
        subprocess.run(["umount", "--lazy", tmp_path], check=True)


def test_disk_full(full_disk: Path) -> None:
    """A full disk is called that, with what to do."""
    result = engineroom("render", cwd=full_disk)

    assert result.returncode == 70
    assert "the disk is full" in result.stderr
    assert "Traceback" not in result.stderr

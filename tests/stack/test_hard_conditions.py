"""Builds without network, side by side, interrupted, from altered files; images that travel in a file. All real."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import containers
import docker
import pytest
from docker.errors import ImageNotFound

from engineroom import build, resolve, wheels
from engineroom.catalog import Catalog
from engineroom.host import Host

ROOT = Path(__file__).parents[2]
PARTS = (".dockerignore", "compose", "compose.yaml", "entrypoints", "images", "models", "scripts", "src")
MINUTES = 60

pytestmark = pytest.mark.containers


class Checkout:
    """A copy of this checkout whose images have tags of their own, so that the user's stay what they are."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.repository = folder, f"engineroom-test-{uuid.uuid4().hex[:8]}"
        for part in PARTS:
            source = ROOT / part
            (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / part)
        if (ROOT / ".env").exists():
            shutil.copy(ROOT / ".env", folder)
        self.edit("images/bake.json", '"engineroom:', f'"{self.repository}:')
        self.catalog = Catalog(folder)

    def edit(self, file: str, old: str, new: str) -> None:
        """Replace a text in a file, which must hold it."""
        text = (self.folder / file).read_text()
        assert old in text
        (self.folder / file).write_text(text.replace(old, new))

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """The host tool in a process group of its own, with both outputs in one pipe."""
        return subprocess.Popen(
            ["env", "--default-signal=INT", ROOT / ".venv/bin/engineroom", *arguments],  # a background job would ignore it
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )

    def run(self, *arguments: str, seconds: float = 10 * MINUTES) -> subprocess.CompletedProcess[str]:
        """The host tool, to its end."""
        with self.start(*arguments) as process:
            output, _ = process.communicate(timeout=seconds)
        return subprocess.CompletedProcess(arguments, process.returncode, output)

    def interrupt(self, *arguments: str, at: str) -> subprocess.CompletedProcess[str]:
        """The host tool, interrupted as by Ctrl-C when its output shows a text, to its end."""
        with self.start(*arguments) as process:
            assert process.stdout
            lines: list[str] = []
            for line in process.stdout:
                lines.append(line)
                if re.search(at, line):
                    break
            else:
                pytest.fail(f"no {at!r} in:\n{''.join(lines[-30:])}")
            time.sleep(1)
            os.killpg(process.pid, signal.SIGINT)
            rest, _ = process.communicate(timeout=2 * MINUTES)
        return subprocess.CompletedProcess(arguments, process.returncode, "".join(lines) + rest)

    def tag(self, image: str) -> str:
        """An image's full name here."""
        return resolve.tag(image, self.catalog.release_of(image)).replace("engineroom:", f"{self.repository}:")

    def built(self, image: str) -> dict[str, Any] | None:
        """What Docker knows about an image; None when it has none of this name."""
        try:
            return dict(docker.from_env().images.get(self.tag(image)).attrs)
        except ImageNotFound:
            return None


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[Checkout]:
    copy = Checkout(tmp_path)
    yield copy
    for image in docker.from_env().images.list(name=copy.repository):
        docker.from_env().images.remove(image.tags[0])


@pytest.fixture(scope="session")
def whole() -> Path:
    """The folder of `cpu`'s wheels and Debian packages, filled here."""
    catalog = Catalog(ROOT)
    folder = wheels.default_folder(catalog, "cpu")
    wheels.fill(catalog, Host.load(ROOT), "cpu", folder, lambda _: None)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """The same files in a folder to spoil: replace files there, never write into them."""
    return Path(shutil.copytree(whole, tmp_path / "wheels", copy_function=os.link))


def test_two_builds_at_once(checkout: Checkout) -> None:
    """Two processes build an image each at the same time, each with something new to do, and both succeed."""
    for file in ("entrypoints/webui", "entrypoints/launcher/__init__.py"):
        with (checkout.folder / file).open("a") as text:
            text.write(f"# {checkout.repository}\n")
    both = [checkout.start("image", image) for image in ("cpu", "webui")]
    outputs = [process.communicate(timeout=15 * MINUTES)[0] for process in both]

    assert [process.returncode for process in both] == [0, 0], outputs
    assert checkout.built("cpu")
    assert checkout.built("webui")


def test_interrupted_build(checkout: Checkout) -> None:
    """Ctrl-C ends a build at once, with nothing under its tag and nothing left running; the next one passes."""
    step = f"RUN touch /half; : {checkout.repository}; sleep 1111\n"
    checkout.edit("images/webui/Dockerfile", "FROM body AS image\n", f"FROM body AS image\n{step}")
    result = checkout.interrupt("image", "webui", at=rf"RUN touch /half; : {checkout.repository}")

    assert result.returncode == 130, result.stdout
    assert "Interrupted; nothing is broken. Run the same again" in result.stdout
    assert "Traceback" not in result.stdout
    assert checkout.built("webui") is None
    deadline = time.monotonic() + 30
    while any(checkout.repository in command and "sleep 1111" in command for command in commands()):
        assert time.monotonic() < deadline, "the interrupted step still runs"
        time.sleep(0.5)

    checkout.edit("images/webui/Dockerfile", step, "")
    result = checkout.run("image", "webui")
    assert result.returncode == 0, result.stdout[-3000:]
    assert checkout.built("webui")


def commands() -> Iterator[str]:
    """The command line of every process of this machine."""
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield file.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except OSError:
            continue


def spoil(file: Path) -> None:
    """Change one byte, and nothing else that a look at the folder would show."""
    content, before = bytearray(file.read_bytes()), file.stat()
    content[len(content) // 2] ^= 1
    file.unlink()
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("pattern", ["click-*.whl", "debs/tini_*.deb"])
def test_one_byte_stops_the_build(checkout: Checkout, folder: Path, pattern: str) -> None:
    """A wheel or Debian package that differs by one byte is named, and nothing is built, whatever is in a cache."""
    file = next(folder.glob(pattern))
    spoil(file)
    result = checkout.run("image", "cpu", "--offline", "--wheels", str(folder))

    assert result.returncode == 70, result.stdout
    assert f"{file} is not the file that was" in result.stdout
    assert f"Type: engineroom wheels cpu --to {folder}" in result.stdout
    assert checkout.built("cpu") is None


def test_a_folder_is_mended(checkout: Checkout, folder: Path) -> None:
    """A run on a folder with a damaged and a missing wheel fetches these two; the next has nothing to fetch."""
    missing = next(folder.glob("idna-*.whl"))
    missing.unlink()
    damaged = next(folder.glob("click-*.whl"))
    spoil(damaged)
    result = checkout.run("wheels", "cpu", "--to", str(folder))

    assert result.returncode == 0, result.stdout
    assert f"{damaged} is not the file that was locked" in result.stdout
    assert len(re.findall("^fetched ", result.stdout, re.MULTILINE)) == 1
    assert missing.exists()
    again = checkout.run("wheels", "cpu", "--to", str(folder))
    assert (again.returncode, "fetch" in again.stdout) == (0, False), again.stdout


def test_offline_build(checkout: Checkout, whole: Path) -> None:
    """`cpu` is built from its folder alone: no network in any step, nothing cached, interrupted once in the middle.

    Its files are those of the image that was built with a network, byte for byte: the same lock gives the same files.
    """
    checkout.edit("images/cpu/Dockerfile", "type=cache,target=/root/.cache/uv", "type=tmpfs,target=/root/.cache/uv")
    checkout.edit("images/cpu/Dockerfile", "FROM system AS body\n", f"FROM system AS body\nENV NEVER_BUILT_BEFORE={checkout.repository}\n")
    command = ("image", "cpu", "--offline", "--wheels", str(whole))
    result = checkout.interrupt(*command, "--no-cache", at=r"install-layer torch")

    assert result.returncode == 130, result.stdout
    assert checkout.built("cpu") is None

    result = checkout.run(*command)
    assert result.returncode == 0, result.stdout[-3000:]
    assert "https://" not in result.stdout
    assert checkout.built("cpu")
    check = "import torch, vllm; from importlib.metadata import version; print(version('vllm'), torch.__version__)"
    build.build(Catalog(ROOT), Host.load(ROOT), ["cpu"], lambda _: None)
    assert files(checkout.tag("cpu")) == files(resolve.tag("cpu", checkout.catalog.release_of("cpu")))
    shown = containers.run(checkout.tag("cpu"), ["-c", check], entrypoint="python3", network_mode="none")
    assert shown.splitlines()[-1] == f"{checkout.catalog.release_of('cpu').version}+cpu {locked('torch', checkout.catalog)}"


def files(image: str) -> list[str]:
    """Mode, time, path and digest of every file of engine and launcher; Debian's may be renewed by a mirror at any time."""
    shown = "find /opt -type f -printf '%m %T@ %p\\n' | sort -k 3; find /opt -type l -printf '%p %l\\n' | sort; find /opt -type f -print0 | sort -z | xargs -0 sha256sum"
    return containers.run(image, ["-c", shown], entrypoint="sh", network_mode="none").splitlines()


def locked(package: str, catalog: Catalog) -> str:
    """The version of a package in `cpu`'s lock."""
    return next(row.version for row in wheels.locked(catalog, "cpu") if row.package == package)


@pytest.fixture
def base(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A second name for the base image: a small image to save."""
    name = f"engineroom-test-{uuid.uuid4().hex[:8]}:base"
    host = build.ensure_base(Host.load(ROOT), lambda _: None)
    subprocess.run(["docker", "tag", host.base_image or resolve.BASE_IMAGE, name], check=True)
    monkeypatch.setenv("BASE_IMAGE", name)
    yield name
    subprocess.run(["docker", "image", "rm", name], capture_output=True, check=False)


def test_save_and_load(checkout: Checkout, base: str) -> None:
    """An image comes back from its file with its id; a cut, altered or mislabelled file is refused and changes nothing."""
    file = checkout.folder / "base.tar.gz"
    before = build.image_id(base)
    assert checkout.run("save", "base", "--to", str(file)).returncode == 0
    assert sorted(path.name for path in checkout.folder.glob("base.tar.gz*")) == ["base.tar.gz", "base.tar.gz.json"]
    subprocess.run(["docker", "image", "rm", base], capture_output=True, check=True)

    result = checkout.run("load", str(file))
    assert (result.returncode, build.image_id(base)) == (0, before), result.stdout
    assert f"{base} {before}" in result.stdout

    subprocess.run(["docker", "image", "rm", base], capture_output=True, check=True)
    manifest = file.with_name("base.tar.gz.json")
    text = manifest.read_text()
    manifest.write_text(text.replace(before, "sha256:" + "0" * 64))
    result = checkout.run("load", str(file))
    assert result.returncode == 70
    assert f"{base}: found {before}, wanted sha256:0000" in result.stdout
    assert build.image_id(base) == ""

    manifest.write_text(text)
    whole = file.stat().st_size
    spoil(file)
    assert f"{file} is altered: found sha256" in checkout.run("load", str(file)).stdout
    os.truncate(file, whole - 1)
    assert f"{file} is cut short: {whole - 1} bytes, wanted {json.loads(text)['bytes']}" in checkout.run("load", str(file)).stdout
    assert build.image_id(base) == ""


def test_save_of_what_is_not_there(checkout: Checkout, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image that is not here is named with what makes it, and nothing is written."""
    monkeypatch.setenv("BASE_IMAGE", f"{checkout.repository}:none")
    result = checkout.run("save", "base", "--to", str(checkout.folder / "x.tar.gz"))

    assert result.returncode == 70
    assert f"{checkout.repository}:none is not here, so it cannot be saved. Type: scripts/debian-base" in result.stdout
    assert not list(checkout.folder.glob("x.tar.gz*"))

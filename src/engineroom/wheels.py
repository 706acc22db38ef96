"""A folder with everything that a build needs: the locked wheels, file by file as their hashes say, and Debian's packages.

Such a folder makes builds possible where there is no network, and its files are checked before any build reads them.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import InvalidWheelFilename, NormalizedName, canonicalize_name, parse_wheel_filename
from packaging.version import Version

from engineroom import build, resolve
from engineroom.catalog import Catalog
from engineroom.errors import EngineRoomError, NotAsLocked, ServiceUnavailable
from engineroom.host import Host
from engineroom.rows import Release

PYTHON = (3, 11)  # Debian bookworm's; a vendor's image takes no wheels but the tools', which fit any
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in range(36, 4, -1)]  # from bookworm's glibc down
PLATFORMS += [f"{name}_x86_64" for name in ("manylinux2014", "manylinux2010", "manylinux1", "linux")]
TAGS = frozenset((*cpython_tags(PYTHON, platforms=PLATFORMS), *compatible_tags(PYTHON, "cp311", PLATFORMS)))
TOOLS = ("uv", "launcher")  # locks that every image needs but those of Debian packages alone
BATCH = 8  # wheels a download: few enough to lose little when it is interrupted
WORKERS = 2
SHOWN = 5
Say = Callable[[str], None]


@dataclass(frozen=True)
class Locked:
    """One package of a lock: its lines, the sha256 sums that it may have, and the index that has it, if not the default one."""

    package: str
    version: str
    lines: str
    sums: frozenset[str]
    index: str = ""


@dataclass(frozen=True)
class Damaged:
    """A file that says it is a locked wheel, and is not."""

    file: Path
    package: Locked
    found: str

    def __str__(self) -> str:
        sums = self.package.sums
        wanted = f"sha256 {min(sums)}" if len(sums) == 1 else f"one of the {len(sums)} sums in its lock"
        return f"{self.file} is not the file that was locked: found sha256 {self.found}, wanted {wanted}"


@dataclass(frozen=True)
class State:
    """What a folder has not of the locked wheels: those without a good file, and the files that are damaged."""

    missing: list[Locked]
    damaged: list[Damaged]


def default_folder(catalog: Catalog, image: str) -> Path:
    """Where an image's wheels go: one folder a release."""
    return catalog.root / "build" / "wheels" / catalog.image(image).engine


def locked(catalog: Catalog, image: str) -> list[Locked]:
    """Every package that a build of this image installs, from its own lock and those of the tools."""
    release = catalog.release_of(image)
    tools: tuple[str, ...] = () if release.install == "debs" else TOOLS
    tools += ("nvcc",) if catalog.image(image).kernels else ()
    texts = [("", (catalog.root / "images" / "locks" / f"{tool}.txt").read_text()) for tool in tools]
    if release.install == "wheels":
        lock = resolve.lock_file(catalog, image)
        if not lock.is_file():
            raise EngineRoomError(f"{lock} is missing. Type: engineroom lock {image}")
        texts += [(layer.source, layer.requirements) for layer in resolve.layers(release, lock.read_text())]
    found: dict[tuple[str, str], Locked] = {}
    for index, text in texts:
        for package, lines in resolve.locked(text):
            row = _locked(package, lines, index)
            twin = found.setdefault((row.package, row.version), row)  # in two locks: what both accept
            found[row.package, row.version] = replace(row, sums=row.sums & twin.sums)
    return list(found.values())


def _locked(package: str, lines: str, index: str) -> Locked:
    version = re.search(r"==([^\s;]+)", lines)
    return Locked(package, version[1] if version else "", lines, frozenset(re.findall(r"sha256:([0-9a-f]{64})", lines)), index)


def look(folder: Path, packages: Sequence[Locked]) -> State:
    """Compare a folder with a lock, reading every wheel whose name is in it."""
    wanted = {(canonicalize_name(package.package), Version(package.version)): package for package in packages}
    good: set[Locked] = set()
    damaged: list[Damaged] = []
    for file, name, version in _wheels(folder):
        package = wanted.get((name, version))
        if package is None:
            continue
        found = _sum(file)
        if found in package.sums:
            good.add(package)
        else:
            damaged.append(Damaged(file, package, found))
    return State([package for package in packages if package not in good], damaged)


def _wheels(folder: Path) -> Iterator[tuple[Path, NormalizedName, Version]]:
    """The wheels of a folder that an image's Python can install."""
    for file in sorted(folder.glob("*.whl")):
        try:
            name, version, _, tags = parse_wheel_filename(file.name)
        except InvalidWheelFilename:
            continue
        if _fits(tags):
            yield file, name, version


def _sum(file: Path) -> str:
    with file.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()


def _fits(tags: frozenset[Tag]) -> bool:
    return not TAGS.isdisjoint(tags)


def require(catalog: Catalog, image: str, folder: Path) -> None:
    """Make sure that an image can be built from a folder alone. Raises NotAsLocked with each file that is wrong or missing."""
    repair = f"Type: engineroom wheels {image}" + ("" if folder == default_folder(catalog, image) else f" --to {folder}")
    if not folder.is_dir():
        raise NotAsLocked(f"{image} without network needs a folder of its wheels; {folder} is not there.\n{repair}")
    packages = locked(catalog, image)
    state = look(folder, packages)
    findings = [str(damaged) for damaged in state.damaged]
    named = {damaged.package for damaged in state.damaged}
    if absent := [package for package in state.missing if package not in named]:
        findings.append(f"{folder} lacks {_names(absent)}, {len(absent)} of {len(packages)} wheels")
    findings += _debs_wrong(folder / "debs")
    if findings:
        raise NotAsLocked(f"{image} cannot be built without network:\n  " + "\n  ".join(findings) + f"\n{repair}")


def fill(catalog: Catalog, host: Host, image: str, folder: Path, say: Say) -> None:
    """Fetch what a folder lacks for an image, and fetch anew what is damaged, which goes only when its replacement is there.

    Raises ServiceUnavailable when an index or mirror has not what is needed, or there is no Docker for Debian's packages; NotAsLocked
    when the place of these is taken by what somebody else put there.
    """
    catalog.image(image)
    _require_own(folder / "debs")
    build.require_docker()
    folder.mkdir(parents=True, exist_ok=True)
    packages = locked(catalog, image)
    if host.wheels and host.wheels.samefile(folder):  # pip must not take what is damaged for the replacement
        host = replace(host, wheels=None)
    state = look(folder, packages)
    for damaged in state.damaged:
        say(f"{damaged}; fetching it anew")
    say(f"{len(packages) - len(state.missing)} of {len(packages)} wheels are in {folder}")
    _fetch(catalog.release_of(image), host, folder, state.missing, say)
    state = look(folder, packages) if state.missing else state
    for damaged in state.damaged:  # under another name than the good one's
        if damaged.package not in state.missing:
            damaged.file.unlink()
    if state.missing:
        raise NotAsLocked(
            f"{folder} still lacks {_names(state.missing)}: no index gave the locked file.\nSet PIP_INDEX_URL or WHEELS to one that has it."
        )
    _fill_debs(catalog, host, image, folder, say)


def _fetch(release: Release, host: Host, folder: Path, missing: Sequence[Locked], say: Say) -> None:
    own = {layer.index for layer in release.layers if layer.index and not (host.wheels and build.has_wheels(host.wheels, release, layer))}
    batches = [
        (index if index in own else "", group[start : start + BATCH])
        for index in sorted({package.index for package in missing})
        for group in [[package for package in missing if package.index == index]]
        for start in range(0, len(group), BATCH)
    ]
    with ThreadPoolExecutor(WORKERS) as pool:
        tasks = [pool.submit(_download, host, folder, batch, index) for index, batch in batches]
        try:
            for task, (_, batch) in zip(tasks, batches, strict=True):
                task.result()
                say(f"fetched {_names(batch)}")
        finally:
            pool.shutdown(cancel_futures=True)


def _download(host: Host, folder: Path, packages: Sequence[Locked], index: str) -> None:
    """Let pip fetch exact files: its indexes, folders and certificates are this machine's own configuration, with our settings over it."""
    options = ["--require-hashes", "--no-deps", "--only-binary", ":all:", "--no-cache-dir"]
    options += ["--python-version", ".".join(map(str, PYTHON)), *(f"--platform={platform}" for platform in PLATFORMS)]
    options += ["--find-links", str(host.wheels)] if host.wheels else []
    options += ["--extra-index-url", index] if index else []
    env = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    env |= {"PIP_INDEX_URL": host.index} if host.index else {}
    env |= {"PIP_CERT": str(host.ca)} if host.ca else {}
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetching-") as work:
        lock, fetched = Path(work, "lock.txt"), Path(work, "fetched")
        fetched.mkdir()
        lock.write_text("".join(package.lines for package in packages))
        command = [sys.executable, "-m", "pip", "download", "--quiet", *options, "--dest", str(fetched), "-r", str(lock)]
        result = subprocess.run(command, capture_output=True, text=True, check=False, env={**env, "TMPDIR": work})
        for file in fetched.iterdir():  # not fetched into the folder itself: pip first deletes what has the name and another sum
            file.replace(folder / file.name)
    if result.returncode:
        said = [line for line in result.stderr.splitlines() if "is ignored: it is neither" not in line] or ["no reason given"]
        raise ServiceUnavailable(
            f"{_names(packages)} could not be fetched; pip says:\n  "
            + "\n  ".join(said[-SHOWN:])
            + "\nCheck the network; mirrors are settings: PIP_INDEX_URL, WHEELS (a folder of wheels), BUILD_CA (an extra certificate "
            "authority). Then run the same again: what was fetched stays."
        )


def _fill_debs(catalog: Catalog, host: Host, image: str, folder: Path, say: Say) -> None:
    """Debian's packages for the base in use, unless they are there. Packages of other images in the same folder stay in it."""
    release, debs = catalog.release_of(image), folder / "debs"
    base, host = _base(release, host, say)
    record = debs / "made-for.json"
    made_for = _made_for(record)
    wanted = {*resolve.apt_packages(release), *resolve.TOOLS_PACKAGES}
    wanted |= {*resolve.COMPILER_PACKAGES} if catalog.image(image).kernels else set()
    wrong = _debs_wrong(debs)
    if not wrong and made_for.get("base") == build.image_id(base) and wanted <= set(made_for.get("packages", [])):
        say(f"Debian's packages are in {debs}")
        return
    for line in wrong:
        say(line)
    packages = sorted(wanted | set(made_for.get("packages", [])))
    say(f"fetching Debian's packages for {base}")
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetching-") as work:
        _fetch_debs(host, base, packages, Path(work), say)
        Path(work, "out", "debs", record.name).write_text(json.dumps({"base": build.image_id(base), "packages": packages}, indent=1) + "\n")
        shutil.rmtree(debs, ignore_errors=True)
        Path(work, "out", "debs").rename(debs)


def _require_own(debs: Path) -> None:
    """Debian's packages are replaced as a whole, so nothing may be in their place but what an earlier run put there."""
    if (debs / "made-for.json").is_file() or not debs.exists() or (debs.is_dir() and not any(debs.iterdir())):
        return
    raise NotAsLocked(
        f"{debs} was not made by `engineroom wheels`, which would replace it.\nName another place with --to FOLDER, or move it away."
    )


def _made_for(record: Path) -> dict[str, Any]:
    """For which base and packages Debian's were fetched; nothing when that cannot be read, and they are fetched anew."""
    try:
        found = json.loads(record.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) and isinstance(found.get("packages"), list) else {}


def _base(release: Release, host: Host, say: Say) -> tuple[str, Host]:
    """The base image that a build would use, and the settings that name it."""
    if release.install != "vendor":
        host = build.ensure_base(host, say)
        base = host.base_image or resolve.BASE_IMAGE
    else:
        base = host.vendor_image or release.base
    if not build.have(base) and (problem := build.pull_problem(base, say)):
        raise ServiceUnavailable(f"The base image {problem}\nVENDOR_IMAGE or BASE_IMAGE may name another.")
    return base, host


def _fetch_debs(host: Host, base: str, packages: Sequence[str], work: Path, say: Say) -> None:
    """Run images/debs.Dockerfile, whose result lands in `work`/out. A build, since that reaches any engine, with the same secrets."""
    (work / "context").mkdir()
    secrets = {"ca": host.ca, "apt": host.apt_sources}
    command = ["docker", "buildx", "build", "--progress=plain", "--no-cache", "--file", str(host.root / "images" / "debs.Dockerfile")]
    command += ["--build-arg", f"BASE_IMAGE={base}", "--build-arg", f"PACKAGES={' '.join(packages)}"]
    command += [part for name, file in secrets.items() if file for part in ("--secret", f"id={name},src={file}")]
    build.run("Debian's packages", [*command, "--output", f"type=local,dest={work / 'out'}", str(work / "context")], host.root, say)


def _debs_wrong(debs: Path) -> list[str]:
    """What is wrong with a folder of Debian packages, by its list of sums; nothing when it is as it was written."""
    sums = debs / "SHA256SUMS"
    if not sums.is_file():
        return [f"{sums} is missing: the folder has no Debian packages"]
    findings, listed = [], set()
    for line in sums.read_text(errors="replace").splitlines():
        wanted, _, name = line.partition("  ")
        file = debs / name
        listed.add(file)
        if not name:
            findings.append(f"{sums} is cut short: found {line!r}, wanted a sum and a name")
        elif not file.is_file():
            findings.append(f"{file} is missing")
        elif (found := _sum(file)) != wanted:
            findings.append(f"{file} is not the file that was fetched: found sha256 {found}, wanted {wanted}")
    if not listed:
        findings.append(f"{sums} is empty: the folder has no Debian packages that can be checked")
    return findings + [f"{file} is not in {sums.name}" for file in sorted(debs.glob("*.deb")) if listed and file not in listed]


def _names(packages: Sequence[Locked]) -> str:
    more = len(packages) - SHOWN
    return ", ".join(f"{package.package} {package.version}" for package in packages[:SHOWN]) + (f" and {more} more" if more > 0 else "")

"""Images in a file: from one machine to another where no registry is between them.

Beside FILE stands FILE.json, with the names and ids of the images and the file's sum: a file that is not as it was written is
refused before Docker sees it.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from pydantic import ValidationError

from engineroom import build, disk, resolve
from engineroom.catalog import Catalog
from engineroom.errors import EngineRoomError, NotAsLocked, ServiceUnavailable
from engineroom.host import Host
from engineroom.rows import Row

BASE = "base"  # stands for the base image, which offline builds need as well
CHUNK = 2**20
FASTEST = 1  # gzip's level: images hold much that is compressed already


class SavedImage(Row):
    """An image in the file: its full name, Docker's id of it, its bytes unpacked, and when it was made."""

    name: str
    id: str
    unpacked_bytes: int
    created: str


class Manifest(Row):
    """What FILE.json holds."""

    file: str
    bytes: int
    sha256: str
    images: tuple[SavedImage, ...]


def manifest_file(file: Path) -> Path:
    """The manifest beside a file of images."""
    return file.with_name(f"{file.name}.json")


def default_file(catalog: Catalog, images: Sequence[str]) -> Path:
    """Where `save` writes when nothing else is said."""
    return catalog.root / "build" / "saved" / ("+".join(images) + ".tar.gz")


def save(catalog: Catalog, host: Host, images: Sequence[str], file: Path, say: build.Say) -> Manifest:
    """Write images and their manifest. A file of that name is replaced only when the new one is whole.

    Raises EngineRoomError for an image that is not built here, NoSpace when the file may not fit.
    """
    names = [_name(catalog, host, image) for image in images]
    build.require_docker()
    saved = [_inspect(image, name) for image, name in zip(images, names, strict=True)]
    file.parent.mkdir(parents=True, exist_ok=True)
    wanted = sum(_file_bytes(catalog, image, row) for image, row in zip(images, saved, strict=True))
    disk.require_space(file.parent, wanted, f"{file.name} may take that much: it", "Name another place with --to FILE.")
    part, part_manifest = file.with_name(f"{file.name}.part"), file.with_name(f"{file.name}.json.part")
    say(f"writing {file}")
    try:
        size, sha256 = _stream(names, part)
        manifest = Manifest(file=file.name, bytes=size, sha256=sha256, images=tuple(saved))
        part_manifest.write_text(json.dumps(manifest.model_dump(), indent=2) + "\n")
        manifest_file(file).unlink(missing_ok=True)  # from here to the end there is no manifest rather than a wrong one
        part.rename(file)
        part_manifest.rename(manifest_file(file))
    finally:
        part.unlink(missing_ok=True)
        part_manifest.unlink(missing_ok=True)
    return manifest


def load(file: Path, say: build.Say) -> Manifest:
    """Give a saved file's images to Docker, after a check of the file and before one of what Docker made of it.

    Raises NotAsLocked with the file's or the image's name when one differs; names that stood for other images do so again then.
    """
    manifest = check(file, say)
    build.require_docker()
    before = {image.name: build.image_id(image.name) for image in manifest.images}
    wanted = sum(image.unpacked_bytes for image in manifest.images if before[image.name] != image.id)
    disk.require_docker_space(wanted, f"loading {file.name}")
    say(f"loading {', '.join(before)}")
    try:
        _load(file, manifest)
    except BaseException:
        _restore(before)
        raise
    return manifest


def _load(file: Path, manifest: Manifest) -> None:
    """Let Docker load a file, and compare what it has then with the manifest."""
    result = subprocess.run(["docker", "load", "--quiet", "--input", str(file)], capture_output=True, text=True, check=False)
    if result.returncode:
        raise ServiceUnavailable(f"Docker could not load {file}: {result.stderr.strip() or 'no reason given'}")
    found = {image.name: build.image_id(image.name) for image in manifest.images}
    wrong = [image for image in manifest.images if found[image.name] != image.id]
    if wrong:
        findings = "\n  ".join(f"{image.name}: found {found[image.name] or 'nothing'}, wanted {image.id}" for image in wrong)
        raise NotAsLocked(f"{file} holds other images than {manifest_file(file).name} says:\n  {findings}\nSave the images anew.")


def check(file: Path, say: build.Say) -> Manifest:
    """The manifest of a file that is as it was written. Raises NotAsLocked with the file's name when it is not."""
    if not file.is_file():
        raise NotAsLocked(f"There is no file {file}. engineroom save writes one.")
    beside = manifest_file(file)
    try:
        manifest = Manifest.model_validate_json(beside.read_text())
    except FileNotFoundError:
        raise NotAsLocked(f"{beside} is not there: bring it along with {file.name}, or save the images anew.") from None
    except (ValidationError, UnicodeDecodeError):
        raise NotAsLocked(f"{beside} is no manifest of `engineroom save`. Bring it again from where it was saved.") from None
    again = "Bring it again from where it was saved."
    if (size := file.stat().st_size) != manifest.bytes:
        raise NotAsLocked(
            f"{file} is {'cut short' if size < manifest.bytes else 'altered'}: {size} bytes, wanted {manifest.bytes}. {again}"
        )
    say(f"checking {file.name}")
    with file.open("rb") as data:
        found = hashlib.file_digest(data, "sha256").hexdigest()
    if found != manifest.sha256:
        raise NotAsLocked(f"{file} is altered: found sha256 {found}, wanted {manifest.sha256}. {again}")
    return manifest


def _name(catalog: Catalog, host: Host, image: str) -> str:
    if image != BASE:
        return resolve.tag(image, catalog.release_of(image))
    base = host.base_image or (build.LOCAL_BASE if build.have(build.LOCAL_BASE) else resolve.BASE_IMAGE)
    if "@" in base:
        raise EngineRoomError(
            f"The base image {base} has no name that a file keeps.\nType: docker tag {base} {build.LOCAL_BASE}; then the same again."
        )
    return base


def _inspect(image: str, name: str) -> SavedImage:
    result = subprocess.run(["docker", "image", "inspect", name], capture_output=True, text=True, check=False)
    if result.returncode:
        make = "scripts/debian-base" if image == BASE else f"make image TARGET={image}"
        raise EngineRoomError(f"{name} is not here, so it cannot be saved. Type: {make}")
    found: dict[str, Any] = json.loads(result.stdout)[0]
    return SavedImage(name=name, id=found["Id"], unpacked_bytes=found["Size"], created=found["Created"])


def _file_bytes(catalog: Catalog, image: str, saved: SavedImage) -> int:
    """What an image takes in a file, as measured and some more; else as much as it takes unpacked."""
    measured = catalog.measured.get(image)
    return measured.compressed_mb * 1_200_000 if measured and measured.compressed_mb else saved.unpacked_bytes


def _stream(names: Sequence[str], file: Path) -> tuple[int, str]:
    """`docker save`, compressed on its way to a file. Returns the file's bytes and sum."""
    with docker_save(names) as source, file.open("wb") as target, gzip.GzipFile("", "wb", FASTEST, target, mtime=0) as packed:
        shutil.copyfileobj(source, packed, CHUNK)
    with file.open("rb") as data:
        return file.stat().st_size, hashlib.file_digest(data, "sha256").hexdigest()


@contextlib.contextmanager
def docker_save(names: Sequence[str]) -> Iterator[IO[bytes]]:
    """What `docker save` writes, as it comes. Raises ServiceUnavailable when that failed."""
    process = subprocess.Popen(["docker", "save", *names], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout  # noqa: S101 - both are pipes
    assert process.stderr  # noqa: S101
    try:
        yield process.stdout
    finally:
        process.stdout.close()  # after an error here, docker must not wait for a reader
        said = process.stderr.read().decode("utf-8", "replace").strip()
        process.stderr.close()
        status = process.wait()
    if status:
        raise ServiceUnavailable(f"docker save {' '.join(names)} failed: {said or 'no reason given'}")


def _restore(before: dict[str, str]) -> None:
    """Let each name stand for what it stood for."""
    for name, image in before.items():
        if build.image_id(name) != image:
            command = ["docker", "tag", image, name] if image else ["docker", "image", "rm", name]
            subprocess.run(command, capture_output=True, check=False)

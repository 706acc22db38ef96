"""The lock of pushed images, images/pushed.json: under which digest a registry has each. Committed by whoever pushes."""

from __future__ import annotations

import json
import shutil
from datetime import date
from pathlib import Path
from typing import Annotated, Literal

from pydantic import StringConstraints, TypeAdapter, ValidationError

from engineroom import build, resolve
from engineroom.catalog import Catalog
from engineroom.errors import CatalogError
from engineroom.rows import Row

DIGEST = r"sha256:[0-9a-f]{64}"


class Pushed(Row):
    """An image in a registry: its name there by digest, its tag, Docker's id of it, its layers' compression, the day (UTC)."""

    reference: Annotated[str, StringConstraints(pattern=rf"^[^\s@]+@{DIGEST}$")]
    tag: str
    id: Annotated[str, StringConstraints(pattern=rf"^{DIGEST}$")]
    compression: Literal["gzip", "zstd"]
    pushed: date


LOCK = TypeAdapter(dict[str, Pushed])


def lock_file(root: Path) -> Path:
    """Where the digests stand."""
    return root / "images" / "pushed.json"


def read(root: Path) -> dict[str, Pushed]:
    """What was pushed, by image. Empty without the file; raises CatalogError with file and field for one that is malformed."""
    file = lock_file(root)
    try:
        return LOCK.validate_json(file.read_bytes())
    except FileNotFoundError:
        return {}
    except ValidationError as error:
        found = error.errors()[0]
        field = ".".join(map(str, found["loc"]))
        raise CatalogError(f"{file}: {field or 'the file'}: {found['msg']}.\nTake it from git again, or remove it and push anew.") from None


def write(root: Path, image: str, row: Pushed) -> None:
    """Note an image: the old file or the new one is there at any time."""
    rows = dict(sorted({**read(root), image: row}.items()))
    file = lock_file(root)
    part = file.with_name(f"{file.name}.part")
    part.write_text(json.dumps(LOCK.dump_python(rows, mode="json"), indent=2) + "\n")
    part.replace(file)


def stale(catalog: Catalog, image: str, row: Pushed) -> str:
    """Why what was pushed is no longer what this checkout has; empty when it is. Without Docker only the tag is compared."""
    name, tag = resolve.tag(image, catalog.release_of(image)), _tag(catalog, image)
    if row.tag != tag:
        return f"{row.reference} was pushed as {row.tag}, and the catalog has {tag}"
    built = build.image_id(name) if shutil.which("docker") else ""
    return f"{name} was built anew since it was pushed" if built not in ("", row.id) else ""


def reference(catalog: Catalog, image: str, otherwise: str, say: build.Say) -> str:
    """An image's name for other machines: by digest where this release of it was pushed, else `otherwise`, and why is said."""
    row = read(catalog.root).get(image)
    why = stale(catalog, image, row) if row else f"{image} has not been pushed"
    found = row.reference if row and row.tag == _tag(catalog, image) else otherwise
    if why:
        say(f"{why}: the job names {found}. Type: make push TARGET={image} REGISTRY=…")
    return found


def _tag(catalog: Catalog, image: str) -> str:
    return resolve.tag(image, catalog.release_of(image)).rpartition(":")[2]

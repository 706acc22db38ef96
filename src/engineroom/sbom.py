"""What is in a built image, as CycloneDX: Python packages as cyclonedx-bom finds them, and Debian's from dpkg's own records."""

from __future__ import annotations

import email.parser
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import uuid
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from dotenv import dotenv_values

from engineroom.build import client, require_built
from engineroom.catalog import Catalog
from engineroom.errors import BuildFailed

if TYPE_CHECKING:
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component

# Records alone, not what they record: some megabytes of an image of many gigabytes.
RECORDS = (
    r"{ find / -xdev \( -name '*.dist-info' -o -name '*.egg-info' \) ! -path '/proc/*' -prune -print0 2>/dev/null; "
    r"find /var/lib/dpkg/status /usr/lib/os-release -print0 2>/dev/null; } | tar --create --null --files-from=- 2>/dev/null"
)


def write(catalog: Catalog, image: str) -> Path:
    """Write build/sbom/IMAGE.cdx.json of a built image, the same bytes for the same image, and return its path. Uses no network.

    Raises EngineRoomError where the image is not built here, BuildFailed where its packages cannot be read.
    """
    from cyclonedx.output.json import JsonV1Dot6

    name = require_built(catalog, image)
    details = client().images.get(name).attrs
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        _copy_records(name, root)
        bom = _python_packages(root, datetime.fromisoformat(details["Created"]))
        bom.components.update(_debian_packages(root))
    _describe(bom, image, name, details["Id"])
    file = catalog.root / "build" / "sbom" / f"{image}.cdx.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(JsonV1Dot6(bom).output_as_string(indent=1) + "\n")  # checking it against the schema takes half a minute: a test does
    return file


def _copy_records(name: str, root: Path) -> None:
    """Copy from an image what its packages say of themselves, as their own user: nothing of the image's runs but find and tar."""
    command = ["docker", "run", "--rm", "--network=none", "--read-only", "--cap-drop=ALL", "--entrypoint=/bin/sh", name, "-c", RECORDS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                archive.extractall(root, filter="data")
        except tarfile.TarError as error:
            raise BuildFailed(f"{name}: its packages could not be read: {error}") from None


def _python_packages(root: Path, created: datetime) -> Bom:
    """Every Python package below a folder. cyclonedx-bom asks an interpreter where its packages are; a script answers in its place."""
    from cyclonedx.model.bom import Bom

    places = sorted({str(found.parent) for shape in ("dist", "egg") for found in root.rglob(f"*.{shape}-info")}) or [str(root)]
    interpreter = root / "python"
    interpreter.write_text(f"#!/bin/sh\ncat <<'END'\n{json.dumps(places)}\nEND\n")
    interpreter.chmod(0o755)
    result = subprocess.run(
        [sys.executable, "-m", "cyclonedx_py", "environment", "--output-reproducible", "--no-validate", str(interpreter)],
        env={**os.environ, "SOURCE_DATE_EPOCH": str(int(created.timestamp()))}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if result.returncode:
        raise BuildFailed(f"cyclonedx-bom failed: {result.stderr.strip()}")
    found = Bom.from_json(json.loads(result.stdout))  # type: ignore[attr-defined]
    assert isinstance(found, Bom)  # noqa: S101 - for the type checker
    return found


def _debian_packages(root: Path) -> Iterator[Component]:
    """Installed packages of dpkg's records, with the name and version of their source, by which Debian's security tracker knows them."""
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    release = dotenv_values(root / "usr/lib/os-release")  # the same form: NAME="value" lines
    for block in (root / "var/lib/dpkg/status").read_text(errors="replace").split("\n\n"):
        fields = email.parser.HeaderParser().parsestr(block)
        if fields["Status"] == "install ok installed":
            source, _, version = (fields["Source"] or fields["Package"]).partition(" ")
            qualifiers = {"arch": fields["Architecture"], "upstream": f"{source}@{version.strip('()') or fields['Version']}"}
            purl = PackageURL(
                "deb", release["ID"], fields["Package"], fields["Version"], {**qualifiers, "distro": release["VERSION_ID"] or ""}
            )
            yield Component(
                type=ComponentType.LIBRARY, name=fields["Package"], version=fields["Version"], purl=purl, bom_ref=purl.to_string()
            )


def _describe(bom: Bom, image: str, name: str, image_id: str) -> None:
    """Say what the list is of: the image by tag and by Docker's id. A list of the same image has the same serial number."""
    from cyclonedx.model import HashAlgorithm, HashType
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    repository, _, tag = name.partition(":")
    algorithm, _, digest = image_id.partition(":")
    bom.serial_number = uuid.uuid5(uuid.NAMESPACE_OID, image_id)
    bom.metadata.component = Component(
        type=ComponentType.CONTAINER,
        name=image,
        version=tag,
        bom_ref=name,
        purl=PackageURL("oci", None, repository, None, {"tag": tag}),
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=digest)] if algorithm == "sha256" else [],
    )
    bom.register_dependency(bom.metadata.component, bom.components)

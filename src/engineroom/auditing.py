"""Audit from outside: a built image, a wheel or a folder, against the GPUs that it is for."""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from docker.errors import ImageNotFound

from engineroom import resolve, vex
from engineroom.audit import ELF, SECRETS, device_code_findings
from engineroom.build import client, require_built
from engineroom.catalog import Catalog
from engineroom.device_code import Data, opened, survey
from engineroom.errors import AuditFailed, BadRequest, EngineRoomError, UnknownName
from engineroom.images import MOST_LAYER_BYTES, layer_sizes
from engineroom.rows import Gpu

PROGRAM = ("audit.py", "device_code.py", "shared_objects.py")


def audit(catalog: Catalog, target: str, gpu: str | None) -> dict[str, Any]:
    """Audit an image of the catalog, or a wheel or folder for one GPU of it. The result has `findings`, empty when all is well.

    Raises UnknownName, EngineRoomError when the target is not there or no GPU is named for it.
    """
    path = Path(target)
    if target in catalog.images and gpu is None:
        return audit_image(catalog, target)
    if target in catalog.images and not path.is_dir():
        raise BadRequest(f"--gpu is for wheels and folders; {target} is an image, and the catalog says for which GPUs. Leave --gpu out.")
    if not (path.is_dir() or path.suffix == ".whl"):
        raise UnknownName("image, wheel or folder", target, catalog.images)
    if not path.exists():
        raise EngineRoomError(f"{target} does not exist.")
    gpus = {name: row for name, row in catalog.gpus.items() if row.compute_capability}
    if gpu is None:
        raise EngineRoomError(f"Name the GPU that {target} is for: --gpu {' | '.join(gpus)}")
    if gpu not in gpus:
        raise UnknownName("GPU", gpu, gpus)
    return audit_files(path, gpus[gpu])


def audit_image(catalog: Catalog, name: str) -> dict[str, Any]:
    """Run the audit of the build once more, in the image as it is, and look at what only Docker shows of it. Raises as `build.require_built`."""
    image = require_built(catalog, name)
    source = Path(__file__).parent
    with tempfile.TemporaryDirectory() as folder:
        rules = Path(folder, "audit-rules.json")
        rules.write_text(json.dumps(resolve.audit_rules(catalog, name)))
        Path(folder).chmod(0o755)
        mounts = [f"{source / file}:/run/engineroom/{file}:ro" for file in PROGRAM] + [f"{rules}:/run/audit-rules.json:ro"]
        result = subprocess.run(
            ["docker", "run", "--rm", "--network=none", "--user=0", "--read-only", "--entrypoint=/usr/bin/env"]
            + [part for mount in mounts for part in ("--volume", mount)]
            + [image, "-i", "PYTHONPATH=/run", "/usr/bin/python3", "-m", "engineroom.audit", "/run/audit-rules.json", "/dev/stdout"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    if not result.stdout.startswith("{"):
        raise EngineRoomError(f"{image} could not be audited: {result.stderr.strip()}")
    found: dict[str, Any]
    found, _ = json.JSONDecoder().raw_decode(result.stdout)
    found["findings"] += list(_outside(image))
    holes = list(vex.due({catalog.image(name).engine: catalog.release_of(name)}, datetime.now(UTC).date()))
    found["findings"] += [row.text for row in holes if row.past]
    found["due"] = [row.text for row in holes if not row.past]
    return found


def _outside(image: str) -> Iterator[str]:
    """The user, secrets in what `docker inspect` and `docker history` show, and layers too large for registries."""
    try:
        details = client().images.get(image)
    except ImageNotFound:
        return
    user = details.attrs["Config"]["User"]
    if user.split(":")[0] in ("", "0", "root"):
        yield f"it runs as {user or 'root'}: USER must be an ordinary user"
    shown = json.dumps([details.attrs, details.history()]).encode()
    yield from (f"its history or environment holds what looks like {what}" for what, _, shape in SECRETS if re.search(shape, shown))
    for layer in layer_sizes(image):
        if layer.bytes > MOST_LAYER_BYTES:
            yield f"its layer {layer.holds!r} is {layer.bytes / 2**30:.2f} GiB: split it in engines.toml, registries like 2 GiB at most"


def audit_files(path: Path, gpu: Gpu) -> dict[str, Any]:
    """The device code in a wheel's or folder's files."""
    wanted = [gpu.compute_capability]
    codes = {name: found for name, data in _binaries(path) if (found := survey(data, wanted))}
    return {
        "findings": [str(finding) for finding in device_code_findings(codes)],
        "device_code": {
            name: {**found.pieces, "usable": found.usable, "fat_binaries": found.fat_binaries} for name, found in codes.items()
        },
    }


def _binaries(path: Path) -> Iterator[tuple[str, Data]]:
    if path.is_file():
        try:
            with zipfile.ZipFile(path) as wheel:
                for name in wheel.namelist():
                    if name.endswith((".so", ".cubin", ".fatbin")) or ".so." in name:
                        yield name, wheel.read(name)
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:  # the last: encrypted, or packed in another way
            raise EngineRoomError(f"{path} is no wheel, or is damaged: {error}. Fetch it again.") from None
        return
    for file in sorted(file for file in path.rglob("*") if file.is_file() and not file.is_symlink() and file.stat().st_size):
        with opened(file) as data:
            if data[: len(ELF)] == ELF or file.suffix == ".fatbin":
                yield str(file.relative_to(path)), data


def summary(target: str, result: dict[str, Any]) -> str:
    """What was found, for people. Raises AuditFailed when anything is wrong."""
    surveys = result["device_code"]
    if result["findings"]:
        raise AuditFailed(target, result["findings"])
    lines = [f"{target}: clean. {len(surveys)} files hold device code, {len(result.get('packages', []))} packages."]
    lines += [f"  accepted ({rule['check']}): {', '.join(rule['files'])}\n    {rule['why']}" for rule in result.get("excepted", [])]
    lines += [f"  soon: {text}" for text in result.get("due", [])]
    return "\n".join(lines)

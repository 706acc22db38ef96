"""Tables in the documentation that are made from the catalog, each between two marks in its file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from engineroom import vex
from engineroom.catalog import Catalog
from engineroom.errors import CatalogError


def documents(catalog: Catalog) -> dict[str, str]:
    """Every document with a table of ours, with the table as it must be. Raises CatalogError where the marks are gone."""
    tables = {
        "README.md": ("images", requirements(catalog)),
        "docs/images.md": ("measured", sizes(catalog)),
        "docs/presets.md": ("presets", presets(catalog)),
        "docs/security.md": ("exceptions", exceptions(catalog)),
    }
    return {file: _placed(catalog.root / file, *table) for file, table in tables.items()}


def requirements(catalog: Catalog) -> list[str]:
    """What each image holds and asks of a machine."""
    rows = []
    for name, image in catalog.images.items():
        release = catalog.release_of(name)
        gpus = [catalog.gpus[gpu] for gpu in image.gpus]
        wanted = ", ".join(f"{gpu.title} ({gpu.compute_capability / 10})" for gpu in gpus if gpu.compute_capability)
        python = f"{'3.11' if release.install == 'wheels' else 'of the base'} ({release.python})" if release.python else "none"
        engine = f"{release.engine} {release.version}"
        rows.append((f"`{name}`", engine, wanted or "none", release.cuda or "none", release.min_driver or "none", python))
    return _table(("Image", "Engine", "GPU (compute capability)", "CUDA inside", "Driver, at least", "Python (the engine takes)"), rows)


def sizes(catalog: Catalog) -> list[str]:
    """What was measured of each image, beside what upstream's image for the same engine weighs."""
    rows = []
    for name, found in catalog.measured.items():
        upstream = catalog.release_of(name).upstream
        beside = f"{upstream.image}: {upstream.weighs} ([source]({upstream.source}))" if upstream else "none"
        rows.append(
            (
                f"`{name}`",
                _gigabytes(found.unpacked_mb),
                _gigabytes(found.compressed_mb),
                _gigabytes(found.pruned_mb),
                _seconds(found.cold_seconds),
                _seconds(found.warm_seconds),
                beside,
            )
        )
    return _table(("Image", "Unpacked", "Compressed", "Pruned, compressed", "Cold build", "Warm build", "Upstream's"), rows)


def presets(catalog: Catalog) -> list[str]:
    """The flags of each image's profiles, and what each of them gave."""
    rows = []
    for name, image in catalog.images.items():
        for profile, flags in image.profiles.items():
            for preset in flags:
                shapes = [
                    f"{row.head_dim} numbers a head, {', '.join(map(str, row.groups))} queries to a key"
                    for row in image.kernels
                    if preset.kernels
                ]
                models = f" (only {', '.join((*preset.model_types, *shapes))})" if preset.model_types or shapes else ""
                rows.append((f"`{name}`", f"`{profile}`", f"`--{preset.flag} {preset.value}`{models}", preset.why, preset.measured))
    return _table(("Image", "Profile", "Flag", "Why", "Measured"), rows)


def exceptions(catalog: Catalog) -> list[str]:
    """The known holes of each release, what contains them, and when somebody must look again."""
    rows = []
    for name, release in catalog.releases.items():
        for hole in release.exceptions:
            links = ", ".join(f"[{cve}]({vex.advisory(cve, entry)})" for cve, entry in hole.advisories.items())
            rows.append((f"`{name}`", hole.package, links, vex.IN_WORDS[hole.status], hole.why, str(hole.until)))
    return _table(("Release", "Package", "Hole", "The image is", "What contains it, or what to do", "Look again by"), rows)


def _gigabytes(megabytes: int | None) -> str:
    if not megabytes:
        return "not measured"
    return f"{megabytes / 1000:.1f} GB" if megabytes >= 1000 else f"{megabytes} MB"  # noqa: PLR2004


def _seconds(seconds: float | None) -> str:
    return "not measured" if seconds is None else f"{seconds:.0f} s"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *rows)]


def _placed(file: Path, mark: str, table: Sequence[str]) -> str:
    text = file.read_text()
    new, count = re.subn(rf"(?<=<!-- {mark} -->\n).*?(?=<!-- /{mark} -->)", lambda _: "\n".join(table) + "\n", text, flags=re.DOTALL)
    if not count:
        raise CatalogError(f"{file.name} has no place for a table: put <!-- {mark} --> and <!-- /{mark} --> where it belongs.")
    return new

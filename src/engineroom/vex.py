"""Known holes that pinned releases keep: as OpenVEX documents, and when somebody must look again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import date, timedelta
from typing import Any, NamedTuple

from engineroom import resolve
from engineroom.catalog import Catalog
from engineroom.errors import AuditFailed
from engineroom.rows import KnownHole, Release

NOTICE = timedelta(days=31)  # how long before its day an exception is spoken of
CONTEXT = "https://openvex.dev/ns/v0.2.0"
IN_WORDS = {"affected": "affected", "not_affected": "not affected", "under_investigation": "not known"}


class Due(NamedTuple):
    """An exception whose day is near or past, and in words what is to be done."""

    past: bool
    text: str


def document(catalog: Catalog, image: str) -> dict[str, Any] | None:
    """openvex.json of an image, after OpenVEX 0.2.0; None where it has nothing to state, since a document needs a statement.

    OpenVEX knows no end of a statement: the day by which somebody must look again stands in its notes.
    """
    release = catalog.release_of(image)
    holes = release.exceptions
    if not holes:
        return None
    day = max(hole.checked for hole in holes)
    versions = {} if release.install == "debs" else resolve.locked_versions(catalog, image)
    product = f"pkg:oci/{resolve.REPOSITORY}?tag={resolve.tag(image, release).partition(':')[2]}"
    return {
        "@context": CONTEXT,
        "@id": f"urn:engineroom:openvex:{image}:{day}",
        "author": "Engine Room",
        "timestamp": _midnight(day),
        "version": int(f"{day:%Y%m%d}"),  # it must rise with every change; no change comes without a look
        "statements": [
            _statement(product, _package(versions, hole), hole, name, entry) for hole in holes for name, entry in hole.advisories.items()
        ],
    }


def _package(versions: dict[str, str], hole: KnownHole) -> str:
    """What has the hole. Of Debian's packages, which no lock names, the build takes the revision that there is on that day."""
    return f"pkg:pypi/{hole.package}@{versions[hole.package]}" if versions else f"pkg:deb/debian/{hole.package}"


def _statement(product: str, package: str, hole: KnownHole, name: str, entry: str) -> dict[str, Any]:
    return {
        "vulnerability": {"@id": advisory(name, entry), "name": name, **({"aliases": [entry]} if entry else {})},
        "timestamp": _midnight(hole.checked),
        "products": [{"@id": product, "subcomponents": [{"@id": package}]}],
        "status": hole.status,
        **({"justification": hole.justification} if hole.justification else {}),
        **({"action_statement": hole.why} if hole.status == "affected" else {}),
        "status_notes": f"{'' if hole.status == 'affected' else f'{hole.why} '}To be looked at again by {hole.until}.",
    }


def advisory(name: str, entry: str) -> str:
    """Where a vulnerability is described: GitHub's entry where there is one, else its record at cve.org."""
    return f"https://github.com/advisories/{entry}" if entry else f"https://www.cve.org/CVERecord?id={name}"


def due(releases: Mapping[str, Release], today: date) -> Iterator[Due]:
    """Exceptions of these releases whose day is past, or less than a month away."""
    for name, release in releases.items():
        for hole in release.exceptions:
            if hole.until < today + NOTICE:
                past = hole.until < today
                yield Due(
                    past,
                    f"{name}: {', '.join(hole.advisories)} ({hole.package}) {'had' if past else 'has'} to be looked at again by {hole.until}. "
                    "Read the advisories, move the pin or the row's dates in images/engines.toml, and type: make render",
                )


def require_current(catalog: Catalog, today: date, say: Callable[[str], None]) -> None:
    """Give every exception that is due within a month to `say`. Raises AuditFailed with those whose day is past."""
    found = list(due(catalog.releases, today))
    for coming in (row for row in found if not row.past):
        say(f"soon: {coming.text}")
    if past := [row.text for row in found if row.past]:
        raise AuditFailed("known holes of pinned releases", past)


def _midnight(day: date) -> str:
    return f"{day}T00:00:00Z"

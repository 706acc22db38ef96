from __future__ import annotations

import json
import re
from datetime import date, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from engineroom import auditing, cli, render, resolve, vex
from engineroom.catalog import Catalog
from engineroom.errors import AuditFailed, CatalogError
from engineroom.rows import KnownHole

ROOT = Path(__file__).parents[2]
WITH = [name for name in Catalog(ROOT).images if Catalog(ROOT).release_of(name).exceptions]
# What OpenVEX 0.2.0 wants of a statement, by its status.
WANTED = {"affected": "action_statement", "not_affected": "justification", "under_investigation": "status_notes"}


@pytest.mark.parametrize("image", WITH)
def test_the_document_is_openvex(catalog: Catalog, image: str) -> None:
    """Every statement names a vulnerability once, with what its status asks for, of a package as it is in the lock."""
    found = vex.document(catalog, image)
    assert found
    assert found["@context"] == "https://openvex.dev/ns/v0.2.0"
    assert set(found) == {"@context", "@id", "author", "timestamp", "version", "statements"}
    locked = resolve.locked_versions(catalog, image)
    entries = {name: entry for hole in catalog.release_of(image).exceptions for name, entry in hole.advisories.items()}

    for statement in found["statements"]:
        assert WANTED[statement["status"]] in statement
        assert ("action_statement" in statement, "justification" in statement) != (True, True)
        named = statement["vulnerability"]
        assert named.get("aliases", []) == list(filter(None, [entries[named["name"]]]))
        assert named["@id"].endswith(named.get("aliases", [named["name"]])[0])
        product = statement["products"][0]
        assert product["@id"].endswith(f"?tag={image}-{catalog.release_of(image).engine}{catalog.release_of(image).version}")
        package, version = re.fullmatch(r"pkg:pypi/([\w-]+)@(.+)", product["subcomponents"][0]["@id"]).groups()  # type: ignore[union-attr]
        assert locked[package] == version
    stated = [(s["vulnerability"]["name"], s["products"][0]["subcomponents"][0]["@id"]) for s in found["statements"]]
    assert len(stated) == len(set(stated))


def test_holes_of_debian_packages(copy: Path) -> None:
    """An image of Debian packages can have rows too: its document names them without a version, and a package that it is not made of is refused."""
    file = copy / "images/engines.toml"
    row = """[["nginx-1.22.1".exceptions]]
package = "nginx"
advisories = { CVE-2026-99999 = "" }
status = "affected"
why = "Let only the gateway's own configuration in."
checked = 2026-11-23
until = 2027-05-22
"""
    text = file.read_text()
    begin = text.index('[["nginx-1.22.1".apt]]')
    file.write_text(text[:begin] + row + text[begin:])
    found = vex.document(Catalog(copy), "gateway")

    assert found
    (statement,) = found["statements"]
    assert statement["vulnerability"] == {"@id": "https://www.cve.org/CVERecord?id=CVE-2026-99999", "name": "CVE-2026-99999"}
    assert statement["products"][0]["subcomponents"] == [{"@id": "pkg:deb/debian/nginx"}]
    assert "openvex.json" in render.outputs(Catalog(copy))["images/gateway/Dockerfile"]
    file.write_text(text[:begin] + row.replace('"nginx"', '"bind9"', 1) + text[begin:])
    with pytest.raises(CatalogError, match="name bind9, which `apt` does not"):
        Catalog(copy)


@pytest.mark.parametrize("image", WITH)
def test_what_is_said_to_be_absent_is_absent(catalog: Catalog, image: str) -> None:
    """A hole that is closed by a package's absence would open with a lock that has it."""
    locked = resolve.locked_versions(catalog, image)
    there = [name for hole in catalog.release_of(image).exceptions for name in hole.absent if name in locked]

    assert there == []


@pytest.mark.parametrize("image", WITH)
def test_no_image_is_started_with_its_asserts_off(catalog: Catalog, image: str) -> None:
    """Some holes are closed by an assert of the engine's, which PYTHONOPTIMIZE or `python -O` would take away."""
    started = [ROOT / "entrypoints/launch", *ROOT.glob("entrypoints/launcher/engines/*.py"), ROOT / f"images/{image}/Dockerfile"]

    assert [str(file) for file in started if re.search(r"PYTHONOPTIMIZE|python3?\"?,? \"?-O", file.read_text())] == []


def test_the_image_holds_its_document(catalog: Catalog) -> None:
    """An image has the file and a label that says where, or neither."""
    for name in catalog.images:
        text = (ROOT / f"images/{name}/Dockerfile").read_text()
        assert ("openvex.json" in text) is (name in WITH)
        assert ("io.engineroom.openvex" in resolve.labels(catalog, name)) is (name in WITH)
        assert (ROOT / f"images/{name}/openvex.json").exists() is (name in WITH)


def hole(**fields: object) -> KnownHole:
    row = {
        "package": "vllm",
        "advisories": {"CVE-2026-48746": "GHSA-94f4-hr76-p5j6"},
        "status": "affected",
        "why": "Let only the gateway reach it.",
        "checked": "2026-11-23",
        "until": "2027-05-22",
    }
    return KnownHole.model_validate_json(json.dumps(row | fields))


@pytest.mark.parametrize(
    ("today", "said"),
    [("2027-04-20", []), ("2027-04-22", [False]), ("2027-05-22", [False]), ("2027-05-23", [True])],
)
def test_a_month_before_its_day_and_after_it(catalog: Catalog, today: str, said: list[bool]) -> None:
    """Nothing, a warning for a month up to and with the day, then a finding; it names the hole, the day and what to do."""
    release = catalog.releases["vllm-0.9.2"].model_copy(update={"exceptions": (hole(),)})
    found = list(vex.due({"vllm-0.9.2": release}, date.fromisoformat(today)))

    assert [row.past for row in found] == said
    for row in found:
        assert "vllm-0.9.2: CVE-2026-48746 (vllm)" in row.text
        assert "by 2027-05-22" in row.text
        assert "images/engines.toml" in row.text


def test_a_day_that_passed_fails_the_check(catalog: Catalog) -> None:
    """Every row of the catalog comes due, and none is forgotten: the last day's morrow names all."""
    assert {"CVE-2026-12772", "CVE-2026-12795", "CVE-2026-12796"} <= {
        n for h in catalog.release_of("router").exceptions for n in h.advisories
    }
    last = max(hole.until for release in catalog.releases.values() for hole in release.exceptions)
    with pytest.raises(AuditFailed) as error:
        vex.require_current(catalog, last + timedelta(days=1), pytest.fail)

    rows = [hole for release in catalog.releases.values() for hole in release.exceptions]
    assert str(error.value).count("had to be looked at again") == len(rows)


def test_the_command_ends_with_78(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`engineroom exceptions`, which `make lint` and CI run, fails when a day has passed."""
    file = copy / "images/engines.toml"
    monkeypatch.chdir(copy)
    assert CliRunner().invoke(cli.cli, ["exceptions"]).exit_code == 0

    file.write_text(file.read_text().replace("checked = 2026-11-23\nuntil = 2027-05-22", "checked = 2025-01-01\nuntil = 2025-05-22", 1))
    result = CliRunner().invoke(cli.cli, ["exceptions"])

    assert isinstance(result.exception, AuditFailed)
    assert result.exception.exit_code == 78
    assert "CVE-2025-30165 (vllm) had to be looked at again by 2025-05-22" in str(result.exception)
    assert "engineroom exceptions" in (ROOT / "Makefile").read_text()


def test_the_audit_says_what_comes_due() -> None:
    """What is near shows in a clean audit; what is past is among its findings, and fails it."""
    clean = {"findings": [], "device_code": {}, "due": ["vllm-0.9.2: look"]}

    assert "soon: vllm-0.9.2: look" in auditing.summary("v100-half", clean)
    with pytest.raises(AuditFailed, match="vllm-0.9.2: look"):
        auditing.summary("v100-half", {**clean, "findings": ["vllm-0.9.2: look"]})


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('justification = "component_not_present"\n', "", "a justification goes with"),
        ('absent = ["librosa"]\n', "", "needs `absent`"),
        ('"component_not_present"', '"it_is_fine"', "component_not_present"),
        ("until = 2027-05-22", "until = 2026-11-23", "later than"),
        ('"GHSA-9pcc-gvx5-r5wm"', '"none"', "pattern"),
        ("CVE-2025-30165", "CVE-25", "pattern"),
        ('status = "affected"', 'status = "fine"', "affected"),
    ],
)
def test_a_row_that_says_too_little_is_refused(copy: Path, old: str, new: str, said: str) -> None:
    """Rows without a justification, an end or an advisory are named with file, row and field."""
    file = copy / "images/engines.toml"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))

    with pytest.raises(CatalogError, match=rf"images/engines.toml: \[vllm-0.9.2\].*{said}"):
        Catalog(copy)

"""Docs, data and files agree."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from engineroom.catalog import Catalog
from launcher.settings import SECRETS, SETTINGS

ROOT = Path(__file__).parents[2]


def test_readme_names_every_stack_and_image(catalog: Catalog) -> None:
    """A reader of the README sees each stack and each image."""
    readme = (ROOT / "README.md").read_text()
    missing = [name for name in (*catalog.stacks, *catalog.images) if f"`{name}`" not in readme]

    assert missing == []


def test_env_example_documents_every_variable() -> None:
    """Each variable that a compose file reads stands in .env.example with its meaning."""
    example = (ROOT / ".env.example").read_text()
    used = {name for file in ROOT.glob("compose/*.yaml") for name in re.findall(r"\$\{(\w+)", file.read_text())}
    missing = sorted(name for name in used if not re.search(rf"^#?{name}=", example, re.MULTILINE))

    assert missing == []


def test_launcher_settings_are_documented() -> None:
    """Every LAUNCH_ setting and every secret has a row in docs/launcher.md."""
    text = (ROOT / "docs/launcher.md").read_text()
    missing = [name for name in (*(s.variable for s in SETTINGS), *SECRETS) if f"`{name}`" not in text]

    assert missing == []


def test_version_is_one() -> None:
    """The launcher and the host tool have one version."""
    from launcher import __version__

    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == __version__


def test_what_uses_the_demo_runs_one_at_a_time() -> None:
    """There is one demo for a session: a file that shares it must not be among those that run beside each other in `make test`."""
    line = re.search(r"^DEMO := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert line
    using = {path.name for path in ROOT.glob("tests/[!bu]*/test_*.py") if re.search(r"\b(demo: Demo|door: Door)\b", path.read_text())}

    assert using <= set(re.findall(r"test_\w+\.py", line[1]))
    assert "tests/browser" in line[1]

"""Fault 42: whatever stands in the catalog, a rendered file holds it as one value, or the catalog is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from engineroom import catalog as catalogs
from engineroom import render
from engineroom.catalog import Catalog
from engineroom.errors import CatalogError
from engineroom.rows import FILES

HOSTILE = [
    "two\nlines: [RUN, id]",
    "\x1b[2J cleared",
    "a line\u2028another, for YAML",
    "\"; id; '",
    "$(id) `id` ${HF_TOKEN} $HOME $$",
    "{{ 7 * 7 }}{% for x in [1] %}x{% endfor %}",
    "{{ ''.__class__.__mro__ }}",
    "# a comment, {a: mapping}, [a, list], *an alias, !!python/object",
    "' + __import__('os').system('id') + '",
]
# Field of a row, as it stands in its file, and what is rendered from it. `TEXT` is replaced.
FREE = [
    ("compose/stacks.toml", 'title = "R1-Distill-Qwen-7B on one V100-32GB"', "title = TEXT"),
    ("compose/stacks.toml", 'why = "Its kernel wants NVLink between all four GPUs, which PCIe V100s lack."', "why = TEXT"),
    ("compose/stacks.toml", 'value = "fp8"', "value = TEXT"),
    ("images/engines.toml", 'why = "the stack\'s own server"', "why = TEXT"),
    ("images/engines.toml", 'value = "user"', "value = TEXT"),
    ("images/gpus.toml", 'title = "NVIDIA V100"', "title = TEXT"),
]  # fmt: skip
SHAPED = [
    ("images/engines.toml", 'version = "0.9.2"', "version = TEXT"),
    ("images/engines.toml", 'packages = ["libnuma1"]', "packages = [TEXT]"),
    ("images/engines.toml", 'packages = ["open-webui==0.12.4", "typer"]', "packages = [TEXT]"),
    ("images/engines.toml", 'base = "nvcr.io/nvidia/tensorrt-llm/release:1.2.1"', "base = TEXT"),
    ("images/engines.toml", 'published = "ghcr.io/open-webui/open-webui:v0.12.4-slim"', "published = TEXT"),
    ("images/engines.toml", 'index = "https://download.pytorch.org/whl/cpu"', "index = TEXT"),
    ("images/models.toml", 'hub = "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"', "hub = TEXT"),
    ("images/engines.toml", '["vllm-0.25.1"]', "[TEXT]"),
    ("compose/stacks.toml", "[r1-7b-v100]", "[TEXT]"),
    ("images/images.toml", "[v100-half]", "[TEXT]"),
    ("images/engines.toml", 'name = "ENABLE_SIGNUP"', "name = TEXT"),
    ("compose/stacks.toml", 'flag = "quantization"', "flag = TEXT"),
]  # fmt: skip

pytestmark = pytest.mark.fault(42)


def put(root: Path, file: str, old: str, new: str, text: str) -> None:
    """Write a text into the catalog, as TOML spells it."""
    whole = (root / file).read_text()
    assert old in whole, old
    (root / file).write_text(whole.replace(old, new.replace("TEXT", json.dumps(text)), 1))


def skeleton(path: str, text: str) -> Any:
    """What a rendered file does: the instructions of a Dockerfile, the keys of a Compose file; not what its values say."""
    if path.endswith("Dockerfile"):
        return [line.split()[0] for line in re.sub(r"\\\n", " ", text).splitlines() if line.strip() and not line.startswith("#")]
    if path.endswith(".yaml"):
        return keys(yaml.load(text, yaml.CSafeLoader))
    return None


def keys(value: Any) -> Any:
    """The shape of a value: names, and how many things are in a list."""
    if isinstance(value, dict):
        return {name: keys(inner) for name, inner in value.items()}
    return [keys(inner) for inner in value] if isinstance(value, list) else type(value)


@pytest.mark.parametrize("text", HOSTILE)
def test_fault_42_a_free_text_stays_one_value(copy: Path, catalog: Catalog, text: str) -> None:
    """Titles, reasons and values with anything printable in them change no instruction and no key; with a line break they are refused."""
    if not text.isprintable():
        for file, old, new in FREE:
            before = (copy / file).read_text()
            put(copy, file, old, new, text)
            with pytest.raises(CatalogError, match=rf"{file}: \[.*one line of printable characters"):
                Catalog(copy)
            (copy / file).write_text(before)
        return
    for field in FREE:
        put(copy, *field, text)
    whole = render.outputs(Catalog(copy))

    expected = render.outputs(catalog)
    assert whole.keys() == expected.keys()
    for path in whole:
        assert skeleton(path, whole[path]) == skeleton(path, expected[path]), path
    given = [value for path in whole if path.endswith(".yaml") for value in values(yaml.load(whole[path], yaml.CSafeLoader))]
    pages = len(catalog.stacks) + len(catalog.upstream_stacks)
    assert given.count(text.replace("$", "$$")) == 1 + pages, "a value of one stack, and of every page; Compose reads $$ as $"


def values(value: Any) -> list[Any]:
    """Every scalar below a value."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [found for one in inner for found in values(one)] or [value]


@pytest.mark.parametrize(("file", "old", "new"), SHAPED)
def test_fault_42_what_goes_into_commands_has_a_shape(copy: Path, file: str, old: str, new: str) -> None:
    """Names, versions, packages, references and addresses are refused where they are more than one plain word."""
    (table,) = (kind for kind, name in FILES.items() if name == file)
    before = (copy / file).read_text()
    for text in (*HOSTILE, "two words", "--flag", "../up", "a'b", 'a"b', "a;b", "a$b", "a}b"):
        put(copy, file, old, new, text)
        with pytest.raises(CatalogError, match=re.escape(file)):
            catalogs._read(copy, table)
        (copy / file).write_text(before)
    catalogs._read(copy, table)


@pytest.mark.parametrize("text", ["{{ 7 * 7 }}", "{{ ''.__class__ }}", "{% include '/etc/passwd' %}"])
def test_fault_42_a_template_leaves_its_folder_nowhere(copy: Path, text: str) -> None:
    """A template that is itself hostile can write text: it reads no file outside of its folder, and no attribute of Python's."""
    (copy / "compose/templates/root.yaml.j2").write_text(text)
    if "7" in text:
        assert render.outputs(Catalog(copy))["compose.yaml"] == "49"
        return
    with pytest.raises(Exception, match=r"root.yaml.j2.*(unsafe|/etc/passwd)"):
        render.outputs(Catalog(copy))

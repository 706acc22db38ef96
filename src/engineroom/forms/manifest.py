"""Kubernetes objects as YAML that people read: block style, and reasons beside values."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap


def because(fields: Mapping[str, Any], why: str) -> CommentedMap:
    """A mapping with its reason behind its last value."""
    found = CommentedMap(fields)
    found.yaml_add_eol_comment(why, next(reversed(found)), column=0)
    return found


def text(objects: Iterable[Mapping[str, Any]], *header: str) -> str:
    """All objects in one file, below a comment."""
    yaml = YAML()
    yaml.width = 1_000_000  # a long value stays on its line
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.representer.ignore_aliases = lambda _: True  # what stands twice is written twice
    out = io.StringIO()
    out.writelines(f"# {line}\n" for line in header)
    for item in objects:
        out.write("---\n")
        yaml.dump(item, out)
    return out.getvalue()

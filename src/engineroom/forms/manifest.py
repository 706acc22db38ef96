"""Kubernetes objects as YAML that people read: block style, and reasons beside values."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.representer import RoundTripRepresenter
from ruamel.yaml.resolver import VersionedResolver

STRING = "tag:yaml.org,2002:str"
READER = VersionedResolver(version=(1, 1))  # kubectl's YAML, to which `yes` and `off` are booleans; ruamel writes 1.2


class Representer(RoundTripRepresenter):
    """Quotes what YAML 1.1 takes for something else than a string, keys and values alike."""

    def string(self, text: str) -> ScalarNode:
        """A string, plain where every reader takes it for one."""
        plain = READER.resolve(ScalarNode, text, (True, False)) == STRING
        return self.represent_scalar(STRING, text, style=None if plain else '"')


Representer.add_representer(str, Representer.string)


def because(fields: Mapping[str, Any], why: str) -> CommentedMap:
    """A mapping with its reason behind its last value."""
    found = CommentedMap(fields)
    found.yaml_add_eol_comment(why, next(reversed(found)), column=0)
    return found


def text(objects: Iterable[Mapping[str, Any]], *header: str) -> str:
    """All objects in one file, below a comment."""
    yaml = YAML()
    yaml.Representer = Representer
    yaml.width = 1_000_000  # a long value stays on its line
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.representer.ignore_aliases = lambda _: True  # what stands twice is written twice
    out = io.StringIO()
    out.writelines(f"# {line}\n" for line in header)
    for item in objects:
        out.write("---\n")
        yaml.dump(item, out)
    return out.getvalue()

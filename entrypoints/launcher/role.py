"""What this container does in its stack, and by which rule. First match wins and is printed."""

from __future__ import annotations

from typing import NamedTuple

from launcher.errors import Refused
from launcher.settings import Settings


class Role(NamedTuple):
    """`name` is single, head or worker; `rule` says why."""

    name: str
    rule: str


def detect(settings: Settings) -> Role:
    """The role from explicit settings, else the only node. Raises Refused for what this release cannot do."""
    if settings.role != "auto":
        role = Role(settings.role, "LAUNCH_ROLE says so")
    elif settings.nodes > 1:
        raise Refused(f"LAUNCH_NODES is {settings.nodes} and nothing says which node this is. Set LAUNCH_ROLE to head or worker.")
    else:
        role = Role("single", "no cluster in sight")
    if role.name != "single" or settings.nodes > 1:
        raise Refused(
            f"Role {role.name} of {settings.nodes} nodes: this release starts single nodes only.\n"
            "Choose a model that fits one node, or leave LAUNCH_ROLE and LAUNCH_NODES unset."
        )
    return role

"""Profiles of an image: flags for few requests or for many, below whatever the user sets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from launcher.engines.common import flag_value
from launcher.errors import Refused, did_you_mean
from launcher.facts import ImageFacts
from launcher.settings import Settings
from launcher.sizing import Choice


def apply(settings: Settings, facts: ImageFacts, config: Mapping[str, Any]) -> tuple[ImageFacts, tuple[Choice, ...]]:
    """The image with the flags of LAUNCH_PROFILE among its own, and each of them with its reason and where that was measured.

    `config` is the model's config.json: some flags are for models of some types alone. Raises Refused for a profile that the image does not have.
    """
    if not settings.profile:
        return facts, ()
    if settings.profile not in facts.profiles:
        has = f"it has {', '.join(facts.profiles)}" if facts.profiles else "it has none: its settings are for every load"
        hint = did_you_mean(settings.profile, list(facts.profiles))
        raise Refused(
            f"Image {facts.image} has no profile {settings.profile}; {has}.{hint} Set LAUNCH_PROFILE to one that it has, or unset it."
        )
    taken: dict[str, Any] = {}
    told: dict[str, Any] = {}
    choices = []
    for row in facts.profiles[settings.profile]:
        flag = row["flag"]
        if flag in settings.args or flag_value(settings.extra, flag):
            source = "not taken: yours counts"
        elif row["model_types"] and config.get("model_type") not in row["model_types"]:
            source = f"not taken: it is for {', '.join(row['model_types'])}"
        else:
            source = f"{row['why']} {row['measured']}"
            taken[flag] = row["value"]
            told |= row["says"]
        choices.append(Choice(f"--{flag}", str(row["value"]), source))
    return facts._replace(args={**facts.args, **taken}, told=told), tuple(choices)

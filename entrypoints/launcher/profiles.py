"""Profiles of an image: flags for few requests or for many, below whatever the user sets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from launcher import fit
from launcher.engines.common import flag_value
from launcher.errors import Refused, did_you_mean
from launcher.facts import ImageFacts
from launcher.settings import Settings
from launcher.sizing import Choice

NO_KERNELS = "the image has no kernels for this model's shape"


def apply(settings: Settings, facts: ImageFacts, config: Mapping[str, Any], gpus: int) -> tuple[ImageFacts, tuple[Choice, ...]]:
    """The image with the flags of LAUNCH_PROFILE among its own, and each of them with its reason and where that was measured.

    `config` is the model's config.json and `gpus` how many the whole takes: some flags are for models of some types or shapes alone. Raises Refused for a profile that the image does not have.
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
    env: dict[str, str] = {}
    choices = []
    for row in facts.profiles[settings.profile]:
        flag = row["flag"]
        if is_set(flag, settings):
            source = "not taken: yours counts"
        elif row["model_types"] and config.get("model_type") not in row["model_types"]:
            source = f"not taken: it is for {', '.join(row['model_types'])}"
        elif lacks := row["kernels"] and without_kernels(settings, facts, config, gpus):
            source = f"not taken: {lacks}"
        else:
            source = f"{row['why']} {row['measured']}"
            taken[flag] = row["value"]
            told |= row["says"]
            env |= row["env"]
        choices.append(Choice(f"--{flag}", str(row["value"]), source))
    return facts._replace(args={**facts.args, **taken}, env={**facts.env, **env}, told=told), tuple(choices)


def is_set(flag: str, settings: Settings) -> bool:
    """Whether the user has set a flag of the engine, or a part of one that takes JSON (`--speculative-config.method`)."""
    return any(key.partition(".")[0].rstrip("+") == flag for key in settings.args) or bool(flag_value(settings.extra, flag))


def without_kernels(settings: Settings, facts: ImageFacts, config: Mapping[str, Any], gpus: int) -> str:
    """Why the attention that was compiled into the image is not for this model; empty where it is.

    On several GPUs vLLM 0.25.1 would have FlashInfer add up their parts as well, for which nothing is compiled (enable_allreduce_rms_fusion in its config/vllm.py).
    """
    shape = fit.shape(config)
    if not shape or shape.latent or any(shape.windows) or config.get("use_sliding_window") or config.get("is_causal") is False:
        return NO_KERNELS
    group = shape.heads // shape.kv_heads
    found = next((row for row in facts.kernels if row["head_dim"] == shape.head_dim and group in row["groups"]), None)
    if not found:
        return NO_KERNELS
    if (config.get("torch_dtype") or config.get("dtype")) != "bfloat16" or (config.get("quantization_config") or {}).get("kv_cache_scheme"):
        return "its kernels are for bfloat16, and a cache without scales of its own"
    if gpus > 1:
        return "its kernels are for one GPU"
    untried = [f"--{flag}" for flag in found["unless"] if is_set(flag, settings)]
    return f"not tried with your {', '.join(untried)}" if untried else ""

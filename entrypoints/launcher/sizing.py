"""Settings that nobody gave, from what the model takes and what the GPUs have; each with where it comes from."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from launcher import fit, hub, safetensors, tensors
from launcher.engines.common import flag_value
from launcher.errors import Refused
from launcher.facts import ImageFacts
from launcher.hardware import Gpu
from launcher.layout import Layout
from launcher.settings import Settings

MARGIN = 0.95  # of the tokens that fit by our count: the engine counts once more, and refuses a context that is a block too long
LEAST_REQUEST = 1024  # tokens: requests that may run at once have at least so many each, or they would push each other out of the cache
PROCESS = 600 * fit.MIB  # what CUDA itself takes of a GPU before the engine looks at what is free; 520 MiB on an H200 with driver 580


class Choice(NamedTuple):
    """A setting as it will be, and why."""

    name: str
    value: str
    source: str


class Model(NamedTuple):
    """A model's config.json, as far as it is known, and the folder with its files, empty where they are yet to be fetched."""

    config: dict[str, Any]
    folder: str


class Node(NamedTuple):
    """How the model is cut over so many nodes, and the GPUs that this one gives to it."""

    cut: Layout
    nodes: int
    gpus: Sequence[Gpu]


class Sizing(NamedTuple):
    """What fits, None where that cannot be known, for the reason in `unknown`; and the values for settings that were not given.

    `wanted` is the longest context in tokens, of the settings or of the model; 0 where nothing says.
    """

    fit: fit.Fit | None
    unknown: str
    wanted: int
    max_model_len: int | None
    max_seqs: int | None
    fraction: float | None
    choices: tuple[Choice, ...]


def config_of(model: str, env: Mapping[str, str]) -> dict[str, Any]:
    """The model's config.json: from its folder or the cache, else what is known of it before it is fetched; empty where nothing is."""
    found = hub.config(model, env)
    if not found and not os.path.isdir(model):
        found = dict(hub.known(model).get("config", {}))
    return found


def size(settings: Settings, facts: ImageFacts, command: Sequence[str], model: Model, node: Node) -> Sizing:
    """What the model takes, and what follows from it. `command` is the engine's as far as it is known."""
    shape, memory = fit.shape(model.config), facts.memory
    wanted = settings.max_model_len or (shape.context if shape else 0)
    nothing = Sizing(None, "", wanted, None, None, None, tuple(_given(settings, node.cut)))
    if not node.gpus or memory is None or shape is None:
        why = (
            "no GPU is seen"
            if not node.gpus
            else "its config.json says too little"
            if memory
            else "how this engine uses memory is not known"
        )
        return nothing._replace(unknown=why)
    try:
        held = tensors.of_config(model.config) or (safetensors.in_folder(model.folder) if model.folder else [])
        engine = fit.engine(memory, lambda *names: flag_value(command, *names))
    except (Refused, ValueError) as error:
        return nothing._replace(unknown=str(error).partition("\n")[0])
    if not held:
        return nothing._replace(unknown="the files that say how large its tensors are have yet to be fetched")
    fraction = _fraction(node, engine, command)
    engine = engine._replace(fraction=fraction or engine.fraction)
    here = min(gpu.memory for gpu in node.gpus)
    limits = fit.Limits(settings.max_model_len or 0, settings.max_seqs or 0)
    found = fit.fit(held, shape, _held(node.cut, command), engine, here, limits)
    if not found.tokens:
        return nothing._replace(fit=found)
    length = None if settings.max_model_len else _length(found, shape)
    seqs = None if settings.max_seqs else max(min(engine.seqs, found.tokens // LEAST_REQUEST), 1)
    choices = list(nothing.choices)
    if not settings.max_model_len:
        source = f"the most that fits; the model has {shape.context}" if length else "the model's own"
        choices.append(Choice("LAUNCH_MAX_MODEL_LEN", str(length or shape.context), source))
    if seqs:
        source = "the engine's own" if seqs == engine.seqs else f"the cache holds {found.tokens:,} tokens, {LEAST_REQUEST} for each"
        choices.append(Choice("LAUNCH_MAX_SEQS", str(seqs), source))
    free = f"{min(gpu.free for gpu in node.gpus) / fit.GIB:.1f} of {here / fit.GIB:.1f} GiB are free, since something else runs there"
    source = free if fraction else "as set" if flag_value(command, *fit.FRACTION) else "the engine's own"
    choices.append(Choice("memory fraction", f"{engine.fraction:g}", source))
    return Sizing(found, "", wanted, length, seqs if seqs != engine.seqs else None, fraction, tuple(choices))


def _given(settings: Settings, cut: Layout) -> Iterator[Choice]:
    """The layout, and what was given."""
    yield Choice("LAUNCH_TP", str(cut.tp), "as set" if settings.tp else "the GPUs of a node that can share a layer")
    yield Choice("LAUNCH_PP", str(cut.pp), "as set" if settings.pp else "what tensor parallel leaves")
    for name, value in (("LAUNCH_MAX_MODEL_LEN", settings.max_model_len), ("LAUNCH_MAX_SEQS", settings.max_seqs)):
        if value:
            yield Choice(name, str(value), "as set")


def _held(cut: Layout, command: Sequence[str]) -> fit.Layout:
    """How weights and cache are held, by the engine's flags."""
    weights = "fp8" if flag_value(command, "quantization").startswith("fp8") else "stored"
    return fit.Layout(cut.tp, cut.pp, weights, 1 if flag_value(command, "kv-cache-dtype").startswith("fp8") else 2)


def _length(found: fit.Fit, shape: fit.Shape) -> int | None:
    """The longest context that surely fits; None for the model's own, and where none fits."""
    longest = min(found.context, int(found.tokens * MARGIN)) // fit.STEP * fit.STEP
    return longest if 0 < longest < shape.context else None


def _fraction(node: Node, engine: fit.Engine, command: Sequence[str]) -> float | None:
    """A smaller share of the GPU than the engine's own, where something else holds a part of it; None where that is not so.

    On several nodes all must come to the same: then it stays.
    """
    if node.nodes > 1 or engine.share != "all" or flag_value(command, *fit.FRACTION):
        return None
    share = min((gpu.free - PROCESS) / gpu.memory for gpu in node.gpus)
    return int(share * 100) / 100 if 0 < share < engine.fraction else None

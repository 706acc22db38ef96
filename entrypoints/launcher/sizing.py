"""Settings that nobody gave, from what the model takes and what the GPUs have; each with where it comes from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
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
CACHE_SIZES = ("kv-cache-memory-bytes", "num-gpu-blocks-override")  # vLLM then looks at no fraction
FLASHINFER_BYTES = 2 * 394 * fit.MIB  # two workspaces, after the cache is sized (v1/attention/backends/flashinfer.py of vLLM 0.25.1)
PROCESS = 600 * fit.MIB  # what CUDA itself takes of a GPU before the engine looks at what is free; 520 MiB on an H200 with driver 580


class Choice(NamedTuple):
    """A setting as it will be, and why."""

    name: str
    value: str
    source: str


class Model(NamedTuple):
    """A model's config.json, as far as it is known, and the folder with its files, empty where they are yet to be fetched."""

    config: Mapping[str, Any]
    folder: str


class Node(NamedTuple):
    """How the model is cut over so many nodes, by what means, and the GPUs of this one that it is given."""

    cut: Layout
    nodes: int
    executor: str
    gpus: Sequence[Gpu]


class Sizing(NamedTuple):
    """What fits, None where that cannot be known, for the reason in `unknown`; and values for settings that were not given.

    `wanted` is the longest context in tokens, of the settings or of the model, and `context` the model's; 0 where nothing says. `free` is
    what the engine can have of the fullest GPU, in bytes; `shares_all` says that it takes its whole share of a GPU at once.
    """

    fit: fit.Fit | None
    unknown: str
    wanted: int
    context: int
    free: int
    shares_all: bool
    max_model_len: int | None
    max_seqs: int | None
    fraction: float | None
    choices: tuple[Choice, ...]


def config_of(model: str, folder: str) -> dict[str, Any]:
    """The model's config.json: of its folder, else what is known of it before it is fetched; empty where nothing is.

    Models of several modalities keep what counts here in `text_config`.
    """
    found = hub.config(folder) if folder else dict(hub.known(model).get("config", {}))
    inner = found.get("text_config")
    return {**found, **inner} if isinstance(inner, dict) else found


def size(settings: Settings, facts: ImageFacts, command: Sequence[str], model: Model, node: Node) -> Sizing:
    """What the model takes, and what follows from it. `command` is the engine's as far as it is known."""
    shape = fit.shape(model.config)
    context = shape.context if shape else 0
    sized = Sizing(None, "", settings.max_model_len or context, context, 0, False, None, None, None, tuple(_given(settings, node)))

    def flag(*names: str) -> str:
        """A flag's value on the command line, or in a file that a flag names."""
        return flag_value(command, *names) or next((str(facts.told[name]) for name in names if name in facts.told), "")

    if why := _unknown(facts, flag, model, node, shape):
        return sized._replace(unknown=why)
    assert shape, "an unknown shape is a reason"  # noqa: S101 - for the type checker
    try:
        engine = fit.engine(facts.memory or {}, flag)
        held = tensors.of_config(model.config) or (safetensors.in_folder(model.folder) if model.folder else [])
    except (Refused, ValueError) as error:
        return sized._replace(unknown=str(error).partition("\n")[0])
    if not held:
        return sized._replace(unknown="the files that say how large its tensors are have yet to be fetched")
    here, free = min(gpu.memory for gpu in node.gpus), min(gpu.free for gpu in node.gpus) - PROCESS
    beside = FLASHINFER_BYTES if flag("attention-backend") == "FLASHINFER" else 0
    fraction = _fraction(node, engine, flag, (free - beside) / here)
    if fraction is not None:
        engine = engine._replace(fraction=fraction)
    weights = "fp8" if flag("quantization").startswith("fp8") else "stored"
    cut = fit.layout(facts.engine, flag, node.cut.tp, node.cut.pp, weights)
    found = fit.fit(held, shape, cut, engine, here, fit.Limits(settings.max_model_len or 0, settings.max_seqs or 0))
    why = (
        f"{free / fit.GIB:.1f} of {here / fit.GIB:.1f} GiB can be had, since something else runs there" if fraction else "the engine's own"
    )
    share = Choice("memory fraction", f"{engine.fraction:g}", "as set" if flag(*fit.FRACTION) else why)
    sized = sized._replace(fit=found, free=free, shares_all=engine.share == "all", fraction=fraction, choices=(*sized.choices, share))
    if not found.tokens or node.executor == "native":  # nodes that differ by a little would come to different flags
        return sized
    return _with_limits(sized, settings, found, shape, engine.seqs)


def _with_limits(sized: Sizing, settings: Settings, found: fit.Fit, shape: fit.Shape, most: int) -> Sizing:
    """Context and requests that were not given: the most that fits. `most` is how many requests the engine takes by itself."""
    if not settings.max_model_len:
        length = _length(found, shape)
        why = f"the most that fits; the model has {shape.context}" if length else "the model's own"
        choice = Choice("LAUNCH_MAX_MODEL_LEN", str(length or shape.context), why)
        sized = sized._replace(max_model_len=length, choices=(*sized.choices, choice))
    if not settings.max_seqs:
        each = min(LEAST_REQUEST, sized.max_model_len or sized.wanted)
        seqs = max(min(most, found.tokens // each), 1)
        why = "the engine's own" if seqs == most else f"the cache holds {found.tokens:,} tokens, {each} for each"
        choice = Choice("LAUNCH_MAX_SEQS", str(seqs), why)
        sized = sized._replace(max_seqs=seqs if seqs < most else None, choices=(*sized.choices, choice))
    return sized


def _unknown(facts: ImageFacts, flag: Callable[..., str], model: Model, node: Node, shape: fit.Shape | None) -> str:
    """Why it cannot be known beforehand what the model takes; empty where it can."""
    stored = model.config.get("quantization_config")
    stored = str(stored.get("quant_method")) if isinstance(stored, dict) else ""
    quantised = flag("quantization", "q")
    if not node.gpus:
        return "no GPU is seen"
    if facts.memory is None:
        return "how this engine uses memory is not in its image.json"
    if shape is None:
        return "config.json says too little of its sizes"
    if quantised and not quantised.startswith("fp8") and quantised != stored:
        return f"--quantization {quantised} changes what the weights take"
    for name in CACHE_SIZES:
        if flag(name):
            return f"--{name} sets the cache's size by itself"
    return "--cpu-offload-gb keeps a part of the weights elsewhere" if flag("cpu-offload-gb") not in ("", "0") else ""


def _given(settings: Settings, node: Node) -> Iterator[Choice]:
    """The layout, and what was given."""
    yield Choice(
        "LAUNCH_TP", str(node.cut.tp), "as set" if settings.tp else "the GPUs of a node that can share a layer" if node.gpus else "no GPU"
    )
    yield Choice("LAUNCH_PP", str(node.cut.pp), "as set" if settings.pp else "what tensor parallel leaves")
    for name, value in (("LAUNCH_MAX_MODEL_LEN", settings.max_model_len), ("LAUNCH_MAX_SEQS", settings.max_seqs)):
        if value:
            yield Choice(name, str(value), "as set")


def _length(found: fit.Fit, shape: fit.Shape) -> int | None:
    """The longest context that surely fits; None for the model's own, and where none fits."""
    longest = min(found.context, int(found.tokens * MARGIN)) // fit.STEP * fit.STEP
    return longest if 0 < longest < shape.context else None


def _fraction(node: Node, engine: fit.Engine, flag: Callable[..., str], share: float) -> float | None:
    """A smaller share of the GPU than the engine's own, where something else holds a part of it; None where that is not so.

    On several nodes all must come to the same: then it stays.
    """
    if node.nodes > 1 or engine.share != "all" or flag(*fit.FRACTION) or share >= engine.fraction:
        return None
    return max(int(share * 100), 1) / 100

"""Will it fit? What a model takes on these GPUs, what is left for contexts, and the smallest layout that works. Needs no GPU and no network."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from engineroom.catalog import Catalog
from engineroom.errors import BadRequest, UnknownName
from engineroom.rows import Gpu, Memory, Model
from launcher import fit, safetensors, sizing, tensors
from launcher.errors import LaunchError

GPUS_A_NODE = 8
MOST_NODES = 8  # of the smallest layout that is looked for
MOST_GPUS = 64  # of a node, or nodes, that are taken for what somebody meant
DOES_NOT_FIT = 78  # exit status
USEFUL_CONTEXT = 8192  # tokens: a thought of a reasoning model and its answer; less is no use of it
GENERIC = Memory(share="all", fraction=0.9, tokens=8192, seqs=256, logit_bytes=38, fixed_mib=1024, source="no image of ours: a guess")
GPU = re.compile(r"(?P<kind>[a-z0-9.]+?)(?:-(?P<gib>\d{1,9}))?(?::(?P<count>\d{1,9}))?")
NAMES = {"auto": "16 bits", "half": "float16", "bfloat16": "bfloat16", "fp8-weights": "FP8 weights", "fp8": "FP8", "fp4": "FP4"}


class Machines(NamedTuple):
    """GPUs of one kind: `gpus` in each of `nodes` nodes; `memory` is the bytes that CUDA reports for one, `gib` what it is sold as."""

    kind: str
    gib: int
    memory: int
    gpus: int
    nodes: int

    @property
    def devices(self) -> int:
        """All GPUs."""
        return self.gpus * self.nodes

    def __str__(self) -> str:
        """For people: 2 nodes of 4 x V100-32GB."""
        where = f"{self.nodes} nodes of " if self.nodes > 1 else ""
        return f"{where}{self.gpus} x {self.kind.upper()}-{self.gib}GB"


class Checkpoint(NamedTuple):
    """A model to plan for: of the catalog, or in a folder. `precision` is how its files hold the weights."""

    name: str
    title: str
    precision: str
    shape: fit.Shape
    tensors: tuple[safetensors.Tensor, ...]
    row: Model | None


class CannotCut(BadRequest):
    """A model that so many GPUs cannot share."""


class Wanted(NamedTuple):
    """What is asked of a plan; empty and 0 leave it to the plan.

    A precision to hold the weights in, an image, tokens of context, requests at once, a tensor parallel size, flags of the engine.
    """

    precision: str = ""
    image: str = ""
    context: int = 0
    seqs: int = 0
    tp: int = 0
    args: Mapping[str, object] = MappingProxyType({})

    def flag(self, *names: str) -> str:
        """The value of the first of these flags that is set, as text; "" where none is."""
        return next((str(self.args[name]) for name in names if name in self.args), "")


class Plan(NamedTuple):
    """One model on one layout.

    `held` is the precision that was asked for, or the checkpoint's; `precision` what it is on this GPU. `wanted` is the context in tokens, `asked` all
    that was asked for. `image` is empty where none of ours serves it, and `why_not` says why.
    """

    checkpoint: Checkpoint
    machines: Machines
    image: str
    why_not: str
    held: str
    precision: str
    layout: fit.Layout
    found: fit.Fit
    wanted: int
    asked: Wanted

    @property
    def works(self) -> bool:
        """Whether the weights and the wanted context fit, in an image of ours."""
        return bool(self.image) and self.found.context >= self.wanted

    @property
    def serves(self) -> bool:
        """Whether it serves contexts that are of use, if not the wanted one."""
        return bool(self.image) and self.found.context >= min(self.wanted, USEFUL_CONTEXT)


def machines(catalog: Catalog, text: str, nodes: int = 1) -> Machines:
    """GPUs as people write them: `v100`, `v100:8`, `a100-80:2`. Without a size, the largest. Raises BadRequest or UnknownName."""
    found = GPU.fullmatch(text.lower())
    kinds = {name: gpu for name, gpu in catalog.gpus.items() if gpu.memory_gib}
    if not found or not 1 <= int(found["count"] or 1) <= MOST_GPUS or nodes > MOST_GPUS:
        raise BadRequest(
            f"--gpu {text} is not understood. Write KIND:COUNT or KIND-GIB:COUNT, for example a100-80:2; at most {MOST_GPUS}, and as many nodes."
        )
    if found["kind"] not in kinds:
        raise UnknownName("GPU", found["kind"], kinds)
    gpu = kinds[found["kind"]]
    gib = int(found["gib"] or max(gpu.memory_gib))
    if gib not in gpu.memory_gib:
        raise BadRequest(f"There is no {gpu.title} of {gib} GiB; there are {', '.join(map(str, gpu.memory_gib))}.")
    return Machines(found["kind"], gib, _usable(gpu, gib), int(found["count"] or 1), nodes)


def _usable(gpu: Gpu, gib: int) -> int:
    return int(gpu.usable_gib[gpu.memory_gib.index(gib)] * fit.GIB)


def checkpoint(catalog: Catalog, name: str) -> Checkpoint:
    """A model of the catalog by name or hub id, or one in a folder, of which config.json and the safetensors headers are read.

    Raises UnknownName, and BadRequest for a folder that cannot be planned for.
    """
    row = catalog.models.get(name) or catalog.models.get(catalog.model_of_hub(name))
    if row:
        return Checkpoint(name, row.title, row.precision, row.shape, tuple(tensors.of_config(row.config)), row)
    if not Path(name).is_dir():
        raise UnknownName("model (or folder)", name, catalog.models)
    try:
        read = json.loads(Path(name, "config.json").read_text())
        config = sizing.config_of(name, name) if isinstance(read, dict) else {}
        shape = fit.shape(config)
        found = (safetensors.in_folder(name) or tensors.of_config(config)) if shape else []
    except OSError as error:
        raise BadRequest(f"{error.filename} cannot be read: {error.strerror}. A model's folder has a config.json.") from None
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"{name}/config.json is no JSON: {error}.") from None
    except LaunchError as error:
        raise BadRequest(str(error)) from None
    if not shape or not found:
        raise BadRequest(f"{name}: neither its config.json nor safetensors files say how large its layers are.")
    return Checkpoint(name, Path(name).resolve().name, _stored(found, config), shape, tuple(found), None)


def _stored(found: Sequence[safetensors.Tensor], config: Mapping[str, Any]) -> str:
    """The precision that most of a checkpoint's bytes are in; the name of the method where that is none of ours."""
    by_type: dict[str, int] = {}
    for tensor in found:
        by_type[tensor.dtype] = by_type.get(tensor.dtype, 0) + tensors.size(tensor)
    kind = max(by_type, key=lambda kind: by_type[kind])
    quantised = config.get("quantization_config")
    method = str(quantised.get("quant_algo") or quantised.get("quant_method")).lower() if isinstance(quantised, dict) else kind
    return {"F8_E4M3": "fp8", "F16": "half", "BF16": "bfloat16", "F32": "bfloat16"}.get(kind) or {"nvfp4": "fp4"}.get(method, method)


def make(catalog: Catalog, model: Checkpoint, on: Machines, wanted: Wanted) -> Plan:
    """Plan a model for these GPUs. Raises BadRequest for a precision or a tensor parallel size that cannot be."""
    if wanted.context > model.shape.context:
        raise BadRequest(f"{model.title} has a context of {model.shape.context:,} tokens; {wanted.context:,} is more.")
    held = wanted.precision or model.precision
    image, why_not = (wanted.image, "") if wanted.image else _image(catalog, on, held)
    known = image or next(iter(_images_for(catalog, on.kind)), "")
    memory = catalog.release_of(known).memory if known else None
    engine = fit.engine((memory or GENERIC).model_dump(), wanted.flag)
    layout = _layout(model, on, held, wanted, catalog.release_of(known).engine if known else "")
    found = fit.fit(model.tensors, model.shape, layout, engine, on.memory, fit.Limits(wanted.context, wanted.seqs))
    if _is_16_bits(held):
        real = "bfloat16" if "bfloat16" in catalog.gpus[on.kind].precisions else "half"
    else:
        real = catalog.images[image].precision if image and held in NAMES else held
    return Plan(model, on, image, why_not, held, real, layout, found, wanted.context or min(USEFUL_CONTEXT, model.shape.context), wanted)


def of_stack(catalog: Catalog, name: str, memory: int = 0) -> Plan:
    """The plan of a stack's row, on GPUs of `memory` bytes where that is given.

    Raises UnknownName, CannotBuild, or BadRequest for a stack without GPUs.
    """
    stack = catalog.stack(name)
    if not stack.gpu:
        raise BadRequest(f"{name} runs on CPUs: its cache takes what VLLM_CPU_KVCACHE_SPACE says, in GiB. Plan a stack with GPUs.")
    on = machines(catalog, f"{stack.gpu}:{stack.gpus}", stack.nodes)
    on = on._replace(memory=memory or on.memory)
    image = catalog.images[stack.image]
    presets = image.profiles[stack.profile] if stack.profile else ()
    args = {name: value for preset in presets for name, value in preset.says.items()}
    args |= {setting.flag: setting.value for setting in (*image.args, *presets, *stack.args)}
    wanted = Wanted(
        precision=str(args.get("quantization", "")),
        image=stack.image,
        context=stack.max_model_len,
        seqs=stack.max_seqs or 0,
        tp=stack.tensor_parallel,
        args=args,
    )
    return make(catalog, checkpoint(catalog, stack.model), on, wanted)


def of_request(catalog: Catalog, model: str, gpus: str, nodes: int, wanted: Wanted) -> Plan:
    """The plan of a model, by name or folder, on GPUs as people write them. Raises UnknownName or BadRequest."""
    return make(catalog, checkpoint(catalog, model), machines(catalog, gpus, nodes), wanted)


def for_gpus(catalog: Catalog, gpus: str, nodes: int, wanted: Wanted) -> list[Plan]:
    """What these GPUs can run: the models of the catalog that an image for them serves. Raises UnknownName, or BadRequest where none can be planned."""
    on, found, refused = machines(catalog, gpus, nodes), [], []
    for name in catalog.models:
        try:
            found.append(make(catalog, checkpoint(catalog, name), on, wanted))
        except BadRequest as error:  # a short context, weights of another kind, too few layers: other models have them
            refused.append(error)
    if not found:
        raise refused[-1]
    return [plan for plan in found if plan.image] or found


def for_model(catalog: Catalog, model: str, wanted: Wanted) -> list[Plan]:
    """What a model needs: of each kind of GPU the fewest that serve it, where any do. Raises UnknownName or BadRequest."""
    found = checkpoint(catalog, model)
    kinds = [(kind, gib) for kind, gpu in catalog.gpus.items() for gib in gpu.memory_gib]
    return [plan for kind, gib in kinds if (plan := smallest(catalog, found, kind, gib, wanted))]


def smallest_like(catalog: Catalog, plan: Plan) -> Plan | None:
    """The fewest GPUs of the same kind that do what a plan wanted: not always more than it has, since not every number can share a layer."""
    wanted = plan.asked._replace(precision=plan.held, context=plan.wanted, tp=0)
    return smallest(catalog, plan.checkpoint, plan.machines.kind, plan.machines.gib, wanted)


def smallest(catalog: Catalog, model: Checkpoint, kind: str, gib: int, wanted: Wanted) -> Plan | None:
    """The fewest GPUs of this kind that serve the model, up to eight nodes of eight; None where none do."""
    memory = _usable(catalog.gpus[kind], gib)
    for gpus, nodes in _sizes():
        try:
            found = make(catalog, model, Machines(kind, gib, memory, gpus, nodes), wanted)
        except CannotCut:
            continue
        if found.works:
            return found
        if not found.image and nodes == 1:
            return None
    return None


def _sizes() -> Iterator[tuple[int, int]]:
    """GPUs a node and nodes, from small to large, as machines are sold."""
    yield from ((count, 1) for count in (1, 2, 4, GPUS_A_NODE))
    yield from ((GPUS_A_NODE, nodes) for nodes in range(2, MOST_NODES + 1))


def _is_16_bits(precision: str) -> bool:
    return precision in ("auto", "half", "bfloat16")


def name_of(precision: str) -> str:
    """A precision for people."""
    return NAMES.get(precision, precision.upper())


def _images_for(catalog: Catalog, kind: str) -> list[str]:
    return [name for name, image in catalog.images.items() if kind in image.gpus]


def _image(catalog: Catalog, on: Machines, held: str) -> tuple[str, str]:
    """The image that serves weights held like this on these GPUs; or none, and why."""
    gpu, images = catalog.gpus[on.kind], _images_for(catalog, on.kind)
    if _is_16_bits(held) or held not in NAMES:
        images = [name for name in images if catalog.images[name].precision != "fp4"]  # an FP8 image serves 16 bits as well
    else:
        images = [name for name in images if catalog.images[name].precision.startswith(held)]
    if not images:
        rules = (rule.reason for rule in catalog.impossible_images.values() if rule.gpu == on.kind and rule.precision == held)
        return "", next(
            rules, f"No image of ours serves {name_of(held)} on a {gpu.title}, which has {', '.join(name_of(p) for p in gpu.precisions)}."
        )
    if on.nodes > 1:
        images = [name for name in images if catalog.release_of(name).executors]
    return (images[0], "") if images else ("", f"No image of ours for a {gpu.title} goes over several nodes.")


def _layout(model: Checkpoint, on: Machines, held: str, wanted: Wanted, kind: str) -> fit.Layout:
    """How the model is cut and held by an engine of this kind. Raises BadRequest."""
    if held == "fp4" and model.precision != "fp4":
        raise BadRequest(f"{model.title} has no FP4 weights, and no engine makes them while it loads. Plan a checkpoint that has them.")
    if held != model.precision and held in NAMES and not _is_16_bits(model.precision) and model.precision != "fp8":
        raise BadRequest(
            f"{model.title} has {name_of(model.precision)} weights, and {name_of(held)} is not made of them. Plan a checkpoint that has it."
        )
    weights = "stored"
    if held == "fp8" and _is_16_bits(model.precision):
        weights = "fp8"
    elif _is_16_bits(held) and not _is_16_bits(model.precision):
        weights = "half"
    devices = on.devices
    tp = wanted.tp or fit.tensor_parallel(model.shape, on.gpus, on.nodes)
    pp = max(devices // tp, 1) if wanted.tp or on.nodes > 1 else 1
    if not fit.shares(model.shape, tp) or (on.nodes > 1 and devices % tp) or pp > model.shape.layers:
        raise CannotCut(f"{model.title} cannot be cut by tensor parallel {tp} and pipeline parallel {pp} over {on}.")
    return fit.layout(kind, wanted.flag, tp, pp, weights)

"""How a model is cut into pieces: tensor parallel within a node, pipeline parallel across nodes; and by whose means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from launcher import fit
from launcher.errors import Refused

SHARED = {
    "num_attention_heads": "attention heads",
    "num_key_value_heads": "KV heads",
    "intermediate_size": "as the width of its MLP",
    "moe_intermediate_size": "as the width of its experts",
}


class Layout(NamedTuple):
    """Tensor and pipeline parallel size, and what is unwise about them."""

    tp: int
    pp: int
    warnings: tuple[str, ...] = ()


class Executor(NamedTuple):
    """`name` is mp, ray or native, empty for the engine's own choice on one node; `reason` says why."""

    name: str
    reason: str


def choose_executor(wanted: str, nodes: int, offered: Sequence[str], image: str) -> Executor:
    """What makes several GPUs work together. `offered` are the release's ways over several nodes, best first. Raises Refused."""
    if nodes == 1:
        if wanted in ("ray", "native"):
            raise Refused(f"LAUNCH_EXECUTOR is {wanted}, which joins several nodes, and this stack has one. Unset it, or set it to mp.")
        return Executor("mp", "LAUNCH_EXECUTOR says so") if wanted == "mp" else Executor("", "one node: the engine's own processes")
    if not offered:
        raise Refused(f"The engine of image {image} is not started over several nodes by this release. Choose a model that fits one node.")
    if wanted == "auto":
        others = f" before {', '.join(offered[1:])}" if offered[1:] else ", the only way that this release has"
        return Executor(offered[0], f"{nodes} nodes: {offered[0]}{others}")
    if wanted not in offered:
        raise Refused(
            f"LAUNCH_EXECUTOR is {wanted}, and over several nodes image {image} has {' and '.join(offered)}. Set one of these, or auto."
        )
    return Executor(wanted, "LAUNCH_EXECUTOR says so")


def shares(config: Mapping[str, Any], size: int) -> bool:
    """Whether so many GPUs can share each layer, as far as config.json says."""
    if known := fit.shape(config):
        return fit.shares(known, size)
    heads = config.get("num_attention_heads")
    return not isinstance(heads, int) or heads < 1 or heads % size == 0


def decide(tp: int | None, pp: int | None, nodes: int, gpus: int, config: Mapping[str, Any]) -> Layout:
    """The sizes from what was asked for, else TP the GPUs of a node and PP the nodes.

    `gpus` are those of one node, 0 on a CPU, which counts as one device; `config` is the model's config.json, empty when it is
    not known yet. Raises Refused for sizes that cannot work.
    """
    each = max(gpus, 1)
    devices, unit = each * nodes, "GPUs" if gpus else "nodes"
    chosen = tp is None
    if tp is None:
        most = max(devices // (pp or nodes), 1)
        tp = next(size for size in range(most, 0, -1) if size == 1 or (shares(config, size) and (nodes == 1 or devices % size == 0)))
    if pp is None:
        pp = max(devices // tp, 1) if nodes > 1 else 1
    said = f"Tensor parallel {tp} (LAUNCH_TP) times pipeline parallel {pp} (LAUNCH_PP)"
    if nodes > 1 and tp * pp != devices:
        raise Refused(f"{said} is {tp * pp}, and the stack has {devices} {unit}, {each} on each of {nodes} nodes. Make them equal.")
    if gpus and tp * pp > devices:
        raise Refused(f"{said} needs {tp * pp} GPUs, and there are {devices}. Lower them, or unset both.")
    if not shares(config, tp):
        fits = ", ".join(str(size) for size in range(1, devices + 1) if shares(config, size) and (nodes == 1 or devices % size == 0))
        parts = ", ".join(f"{config[name]} {what}" for name, what in SHARED.items() if isinstance(config.get(name), int))
        raise Refused(f"The model has {parts}, which {tp} GPUs cannot share evenly. Set LAUNCH_TP to one of {fits}.")
    layers = config.get("num_hidden_layers")
    if isinstance(layers, int) and pp > layers:
        raise Refused(
            f"The model has {layers} layers, and pipeline parallel {pp} (LAUNCH_PP) wants at least one each. Set LAUNCH_PP lower."
        )
    warnings = []
    if chosen and nodes == 1 and tp * pp < gpus:
        warnings.append(
            f"{gpus - tp * pp} of {gpus} GPUs have nothing to do: each layer can be shared by {tp}; CUDA_VISIBLE_DEVICES gives the others to another server"
        )
    if nodes > 1 and tp > each:
        warnings.append(
            f"tensor parallel {tp} crosses nodes of {each}: every layer waits for the network, which is slow without NVLink or InfiniBand"
            " between them; LAUNCH_TP up to the GPUs of a node, and LAUNCH_PP for the nodes, avoids it"
        )
    return Layout(tp, pp, tuple(warnings))

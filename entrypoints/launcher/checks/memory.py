"""Whether the model fits these GPUs: weights, working memory and a cache for the longest request."""

from __future__ import annotations

from launcher.checks.common import SILENT, Case, Check, gib, ok, refused
from launcher.fit import Stage


def fits(case: Case) -> Check:
    """The weights, and a cache for one request of the longest context."""
    sized = case.plan.sizing
    if not case.plan.command or not any(case.facts.gpus.values()):
        return SILENT
    found = sized.fit
    if found is None:
        return ok(f"what the model takes is not known beforehand: {sized.unknown}")
    fullest, wanted = min(found.stages, key=lambda stage: stage.free), case.plan.max_model_len or sized.wanted
    if sized.context and wanted > sized.context and not case.flag("hf-overrides", "rope-scaling", "json-model-override-args"):
        return refused(
            f"a context of {wanted:,} tokens is wanted, and the model has {sized.context:,}",
            f"Set LAUNCH_MAX_MODEL_LEN={sized.context} or less; a model that can be stretched (YaRN) says so with --hf-overrides.",
        )
    needed = found.budget if sized.shares_all else fullest.weights + fullest.activations
    if not found.missing and sized.free < needed:
        return refused(
            f"the engine would take {gib(needed)} of each GPU, and {gib(max(sized.free, 0))} of one can be had: something else runs there",
            "`nvidia-smi` names it. Stop it, choose other GPUs with CUDA_VISIBLE_DEVICES, or give the engine a smaller share.",
        )
    if found.missing:
        return refused(
            f"each GPU would have to hold {_parts(fullest)}, and may use {gib(found.budget)}: {gib(found.missing)} are missing",
            "Use more GPUs (LAUNCH_TP, LAUNCH_NODES), or larger ones. On the host, `engineroom plan --model MODEL` names the smallest layout of each kind.",
            hard=fullest.weights > max(gpu.memory for gpu in case.hardware.gpus),
        )
    if found.context < wanted:
        return refused(
            f"a context of {wanted:,} tokens is wanted, and {gib(fullest.free)} of cache hold {found.tokens:,}",
            f"Set LAUNCH_MAX_MODEL_LEN={found.context} or less, or use more GPUs.",
        )
    of_its_own = " of requests of its own" if found.ranks > 1 else ""
    return ok(
        f"each GPU holds {_parts(fullest)}, and {gib(fullest.free)} of cache for {found.tokens:,} tokens{of_its_own}: {found.requests(wanted):,} requests of {wanted:,} at once"
    )


def _parts(stage: Stage) -> str:
    return f"{gib(stage.weights)} of weights and {gib(stage.activations)} of working memory"

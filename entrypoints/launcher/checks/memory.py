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
    fullest = min(found.stages, key=lambda stage: stage.free)
    if found.missing:
        return refused(
            f"each GPU would have to hold {_parts(fullest)}, and may use {gib(found.budget)}: {gib(found.missing)} are missing",
            "Use more GPUs (LAUNCH_TP, LAUNCH_NODES), or larger ones. On the host, `engineroom plan --model MODEL` names the smallest layout of each kind.",
            hard=fullest.weights > case.hardware.gpus[0].memory,
        )
    if case.plan.max_model_len and found.context < case.plan.max_model_len:
        return refused(
            f"a context of {case.plan.max_model_len:,} tokens is wanted, and {gib(fullest.free)} of cache hold {found.tokens:,}",
            f"Set LAUNCH_MAX_MODEL_LEN={found.context} or less, or use more GPUs.",
        )
    length = min(case.plan.max_model_len or sized.wanted, found.context)
    return ok(
        f"each GPU holds {_parts(fullest)}, and {gib(fullest.free)} of cache for {found.tokens:,} tokens: {found.requests(length):,} requests of {length:,} at once"
    )


def _parts(stage: Stage) -> str:
    return f"{gib(stage.weights)} of weights and {gib(stage.activations)} of working memory"

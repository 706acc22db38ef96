"""Plans for people and for programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engineroom.catalog import Catalog
from engineroom.planner import NAMES, Plan
from launcher.fit import GIB

CONTEXTS = (8_192, 32_768, 131_072)
HELD = {
    ("fp8-weights", 80): "FP8 weights that are widened for 16-bit arithmetic: half the memory and bandwidth, and no faster in large batches",
    ("half", 70): "float16: a V100 has no bfloat16, and the weights are cast",
}


def gib(size: float) -> str:
    """Bytes as GiB."""
    return f"{size / GIB:,.1f} GiB"


def shown(catalog: Catalog, plan: Plan, least: Plan | None) -> list[str]:
    """A plan, line by line; `least` is the smallest layout that works, for one that does not."""
    model, on, fit = plan.checkpoint, plan.machines, plan.found
    image = f"image {plan.image}: {catalog.images[plan.image].engine}" if plan.image else plan.why_not
    lines = [
        f"{model.title} on {on}",
        f"verdict      {verdict(plan, least)}",
        f"image        {image}",
        f"layout       tensor parallel {plan.layout.tp}, pipeline parallel {plan.layout.pp}",
        f"precision    {precision(catalog, plan)}",
        "",
        f"each GPU     {gib(on.memory)}, of which the engine uses {gib(fit.budget)}",
    ]
    for number, stage in enumerate(fit.stages):
        name = f"stage {number + 1}" if len(fit.stages) > 1 else "holds"
        lines.append(
            f"  {name:<10} weights {gib(stage.weights)}, working memory {gib(stage.activations)}, "
            + (f"cache {gib(stage.free)}" if stage.free > 0 else f"and lacks {gib(-stage.free)}")
        )
    if fit.tokens:
        lines += [
            f"KV cache     {fit.stages[0].token * len(fit.stages) / 1024:,.1f} KiB a token, {fit.tokens:,} tokens",
            f"at once      {concurrency(plan)}",
        ]
    return [*lines, f"how sure     {certainty(plan)}", *accuracy(plan)]

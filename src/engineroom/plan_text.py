"""Plans in words: for people, and as JSON for programs."""

from __future__ import annotations

from typing import Any

from engineroom.catalog import Catalog
from engineroom.planner import NAMES, Plan, name_of
from launcher.fit import GIB, Stage

CONTEXTS = (8_192, 32_768, 131_072)


def gib(size: float) -> str:
    """Bytes as GiB."""
    return f"{size / GIB:,.1f} GiB"


def text(catalog: Catalog, plan: Plan, least: Plan | None) -> str:
    """A plan for people; `least` is the smallest layout that works, for one that does not."""
    on, found, image = plan.machines, plan.found, plan.image
    rows = [
        ("verdict", verdict(plan, least)),
        ("image", f"{image}, {catalog.images[image].engine}" if image else "none"),
        ("layout", f"tensor parallel {plan.layout.tp}, pipeline parallel {plan.layout.pp}"),
        ("precision", precision(catalog, plan)),
        *([("accuracy", cost)] if (cost := accuracy(plan)) else []),
        ("each GPU", f"{gib(on.memory)}, of which the engine uses {gib(found.budget)}"),
        *((f"  stage {number}" if len(found.stages) > 1 else "  holds", holds(stage)) for number, stage in enumerate(found.stages, 1)),
    ]
    if found.tokens:
        token = sum(stage.token for stage in found.stages)
        where = f", in each of {found.ranks} groups of GPUs, which have requests of their own" if found.ranks > 1 else ""
        stages = " over all stages" if len(found.stages) > 1 else ""
        rows += [
            ("KV cache", f"{token / 1024:,.1f} KiB a token{stages}: {found.tokens:,} tokens{where}"),
            ("at once", ", ".join(f"{count:,} x {context:,}" for context, count in at_once(plan).items()) + " tokens"),
        ]
    rows.append(("how sure", certainty(catalog, plan)))
    return "\n".join([f"{plan.checkpoint.title} on {on}", *(f"{name:<11} {said}" for name, said in rows)])


def verdict(plan: Plan, least: Plan | None) -> str:
    """Fits; fits with a shorter context; does not fit, and what would."""
    found, wanted = plan.found, plan.wanted
    if plan.works:
        return f"fits: {wanted:,} tokens of context, {found.requests(wanted):,} such requests at once"
    instead = ""
    if least:
        more = least.machines.devices - plan.machines.devices
        instead = f"; {f'needs {more} more' if more > 0 else 'instead'}: {least.machines} (tensor parallel {least.layout.tp}, pipeline parallel {least.layout.pp})"
    if not plan.image:
        return f"does not fit: {plan.why_not}"
    if found.context:
        return f"fits with {shortage(plan)}{instead}"
    if not least:
        instead = "; no layout of up to 8 nodes of 8 does"
    return f"does not fit: {shortage(plan)}{instead}"


def shortage(plan: Plan) -> str:
    """What is too little, of a plan that does not work in an image of ours."""
    if plan.found.context:
        return f"a context of {plan.found.context:,} tokens, not {plan.wanted:,}"
    return f"each GPU lacks {gib(plan.found.missing)} before the first token is cached"


def holds(stage: Stage) -> str:
    """What one GPU holds."""
    rest = f"cache {gib(stage.free)}" if stage.free > 0 else f"lacks {gib(-stage.free)}"
    return f"weights {gib(stage.weights)}, working memory {gib(stage.activations)}, {rest}"


def at_once(plan: Plan) -> dict[int, int]:
    """How many requests fit at once, by context."""
    contexts = sorted({*CONTEXTS, plan.wanted, plan.found.context})
    return {context: plan.found.requests(context) for context in contexts if 0 < context <= plan.found.context}


def precision(catalog: Catalog, plan: Plan) -> str:
    """What the weights really are on this GPU."""
    gpu = catalog.gpus[plan.machines.kind]
    stored, held = name_of(plan.checkpoint.precision), name_of(plan.precision)
    said = f"{held}, as stored" if stored == held else f"{held}, from {stored} in the files"
    if plan.precision == "fp8-weights":
        said += f": {gpu.title} has no FP8 arithmetic, so weights are widened to 16 bits as they are used; half the memory, no faster in large batches"
    if plan.precision not in NAMES:
        said += "; whether the engine has kernels for it on this GPU is not known here"
    if plan.layout.weights == "half":
        said += ": as a converted checkpoint, since no engine does this while it loads"
    if plan.layout.weights == "fp8":
        said += ", while they load (--quantization fp8); embeddings stay in 16 bits"
    return f"{said}; KV cache in {8 * plan.layout.cache} bits"


def accuracy(plan: Plan) -> str:
    """What the precision costs, where somebody has measured it."""
    row = plan.checkpoint.row
    if plan.layout.weights == "fp8":
        return "what FP8 costs this model is not on record; compare answers of your own"
    if not row or not row.accuracy:
        return ""
    scores = ", ".join(f"{test.test} {test.score:g} (before {test.before:g})" for test in row.accuracy)
    return f"{scores}; {row.accuracy_source}"


def certainty(catalog: Catalog, plan: Plan) -> str:
    """How far each figure can be trusted."""
    source = "the shapes that its config.json gives" if plan.checkpoint.row else "its files"
    memory = catalog.release_of(plan.image).memory if plan.image else None
    return (
        f"weights and cache are counted from {source}; working memory is an estimate ({memory.source if memory else 'no engine of ours'})"
    )


def as_json(catalog: Catalog, plan: Plan, least: Plan | None) -> dict[str, Any]:
    """A plan for programs. Bytes and tokens."""
    return {
        "model": plan.checkpoint.name,
        "title": plan.checkpoint.title,
        "machines": plan.machines._asdict(),
        "works": plan.works,
        "verdict": verdict(plan, least),
        "image": plan.image,
        "layout": plan.layout._asdict(),
        "precision": precision(catalog, plan),
        "accuracy": accuracy(plan),
        "budget": plan.found.budget,
        "stages": [stage._asdict() for stage in plan.found.stages],
        "missing": plan.found.missing,
        "tokens": plan.found.tokens,
        "context": plan.found.context,
        "wanted": plan.wanted,
        "at_once": at_once(plan),
        "least": least.machines._asdict() if least else None,
        "certainty": certainty(catalog, plan),
    }


def table(rows: list[tuple[str, ...]]) -> str:
    """Rows in columns; the first is the head."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def summary(plan: Plan) -> tuple[str, ...]:
    """A plan as a row: model, machines, precision, longest context, requests of 8,192 tokens."""
    eight = plan.found.requests(CONTEXTS[0]) if plan.serves else 0
    return (
        plan.checkpoint.name,
        str(plan.machines),
        name_of(plan.precision),
        plan.image or "none",
        f"{plan.found.context:,}" if plan.serves else "does not fit",
        f"{eight:,}",
    )

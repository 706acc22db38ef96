"""Runs as a picture, for light pages and for dark ones: no background, and colours that stand out from both."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from engineroom.bench.results import Run
from engineroom.errors import CannotRun

GREY = "#808080"
COLOURS = ("#2f81f7", "#db6d28", "#2da44e", "#a371f7")
PANELS = {
    "Output tokens/s": "output_tokens_per_second",
    "First token, ms (median to p99)": "ttft",
    "Next token, ms (median to p99)": "tpot",
}


def draw(runs: Mapping[str, Run], file: Path) -> None:
    """Every measurement of the runs, each by its label. Raises CannotRun without matplotlib, or without a measurement."""
    rows = list(
        dict.fromkeys((name, step.concurrency) for run in runs.values() for name, result in run.results.items() for step in result.steps)
    )
    if not rows:
        raise CannotRun("There is nothing to draw: no scenario was measured.")
    try:
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch
    except ImportError:
        raise CannotRun("Plots need matplotlib. Type: pip install 'engineroom[bench]'") from None
    height = 0.34 * len(runs)
    figure = Figure(figsize=(12, 1.4 + len(rows) * (height + 0.25)), layout="constrained")
    for axes, (title, field) in zip(figure.subplots(1, len(PANELS), sharey=True), PANELS.items(), strict=True):
        for number, run in enumerate(runs.values()):
            colour = COLOURS[number % len(COLOURS)]
            for place, (name, level) in enumerate(rows):
                steps = run.results[name].steps if name in run.results else []
                for step in (step for step in steps if step.concurrency == level and step.completed):
                    value = getattr(step, field)
                    middle, high = (value["p50"], value["p99"]) if isinstance(value, dict) else (value, value)
                    at = place + (number - (len(runs) - 1) / 2) * 0.8 / len(runs)
                    axes.barh(at, middle, 0.7 / len(runs), color=colour)
                    axes.plot((middle, high), (at, at), color=GREY, linewidth=1.5)
                    axes.text(high, at, f" {middle:,.4g}", va="center", color=GREY, fontsize=9)
        axes.set_title(title, color=GREY, fontsize=11)
        axes.set_yticks(range(len(rows)), [f"{name}, {level} at once" for name, level in rows])
        axes.margins(x=0.2)
        axes.tick_params(colors=GREY)
        axes.spines[["top", "right"]].set_visible(False)
        for spine in axes.spines.values():
            spine.set_color(GREY)
    figure.axes[0].invert_yaxis()
    if len(runs) > 1:
        handles = [Patch(color=colour) for colour in COLOURS]
        figure.legend(handles[: len(runs)], runs, loc="outside lower center", ncols=len(runs), frameon=False, labelcolor=GREY)
    figure.savefig(file, transparent=True, dpi=120)

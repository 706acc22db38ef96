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
    """Every measurement of the runs, each by its label. Raises CannotRun without matplotlib, without a measurement, or for too many."""
    steps = [
        (number, (name, step.concurrency), step)
        for number, run in enumerate(runs.values())
        for name, result in run.results.items()
        for step in result.steps
    ]
    if not steps or len(runs) > len(COLOURS):
        raise CannotRun(f"There is nothing to draw, or too much: one to {len(COLOURS)} runs, with at least one scenario measured.")
    try:
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch
    except ImportError:
        raise CannotRun("Plots need matplotlib. Type: pip install 'engineroom[bench]'") from None
    places = {row: place for place, row in enumerate(dict.fromkeys(row for _, row, _ in steps))}
    figure = Figure(figsize=(12, 1.4 + len(places) * (0.25 + 0.34 * len(runs))), layout="constrained")
    for axes, (title, field) in zip(figure.subplots(1, len(PANELS), sharey=True), PANELS.items(), strict=True):
        for number, row, step in steps:
            value = getattr(step, field)
            middle, high = (value["p50"], value["p99"]) if isinstance(value, dict) else (value, value)
            at = places[row] + (number - (len(runs) - 1) / 2) * 0.8 / len(runs)
            axes.barh(at, middle, 0.7 / len(runs), color=COLOURS[number])
            axes.plot((middle, high), (at, at), color=GREY, linewidth=1.5)
            axes.text(high, at, f" {middle:,.0f}" if middle >= 100 else f" {middle:.1f}", va="center", color=GREY, fontsize=9)  # noqa: PLR2004
        axes.set_title(title, color=GREY, fontsize=11)
        axes.set_yticks(range(len(places)), [f"{name}, {level} at once" for name, level in places])
        axes.margins(x=0.2)
        axes.tick_params(colors=GREY)
        axes.spines[["top", "right"]].set_visible(False)
        for spine in axes.spines.values():
            spine.set_color(GREY)
    figure.axes[0].invert_yaxis()
    if len(runs) > 1:
        handles = [Patch(color=colour) for colour in COLOURS[: len(runs)]]
        figure.legend(handles, runs, loc="outside lower center", ncols=len(runs), frameon=False, labelcolor=GREY)
    figure.savefig(file, transparent=True, dpi=120)

"""The table and the plot of a sweep, from its facts.jsonl: `make sweep-report`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import gpu_sweep

GREY = "#808080"  # readable on white and on black
COLOURS = ("#4c8fd6", "#e08a2e", "#5aa65a", "#b06fc0", "#c95f5f", "#8f8f4f", "#3fa7a7", "#a07850")
Facts = dict[str, dict[str, Any]]


def read(*files: Path) -> Facts:
    """Of each configuration that was loaded: what it said at its start, and its loads by their titles."""
    found: Facts = {}
    for line in (json.loads(text) for file in files for text in file.read_text().splitlines()):
        row = found.setdefault(line["row"], {"loads": {}})
        if "concurrency" in line:
            row["loads"][title(line)] = line
        elif line.get("ready"):
            row |= line
    return {name: row for name, row in found.items() if row["loads"]}


def title(load: dict[str, Any]) -> str:
    """Streams at once, and what is special: `128`, `128 sampled`, `128 beside 60,000`."""
    return f"{load['concurrency']}{' sampled' * load['sampled']}{f' beside {beside:,}' if (beside := load.get('beside')) else ''}"


def table(found: Facts, yardsticks: list[str]) -> str:
    """Markdown: tokens a second, times of the first and of the others, ratios to the yardsticks, start and cache."""
    loads = list(dict.fromkeys(load for row in found.values() for load in row["loads"]))
    head = ["configuration", *(f"tok/s at {load}" for load in loads), *(f"÷ {name}" for name in yardsticks)]
    head += ["TTFT, ms", "TPOT, ms", "ready, s", "cache, tokens"]
    lines = [head, ["---"] * len(head)]
    for name, row in found.items():
        speeds = [f"{row['loads'][load]['output_throughput']:,.0f}" if load in row["loads"] else "" for load in loads]
        ratios = [" / ".join(ratio(row, found[other], load) for load in loads if load in found[other]["loads"]) for other in yardsticks]
        times = [
            " / ".join(f"{row['loads'][load][f'mean_{kind}_ms']:.{digits}f}" for load in loads if load in row["loads"])
            for kind, digits in (("ttft", 0), ("tpot", 2))
        ]
        start = [f"{row['ready']:.0f}", f"{row['cache_tokens']:,.0f}"]
        lines.append([f"`{name}`", *speeds, *ratios, *times, *start])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def ratio(row: dict[str, Any], other: dict[str, Any], load: str) -> str:
    """Output tokens a second of the one ÷ of the other, with two digits; a dash where one of them was not loaded so."""
    if load not in row["loads"]:
        return "–"
    return f"{row['loads'][load]['output_throughput'] / other['loads'][load]['output_throughput']:.2f}"


def plot(found: Facts, file: Path) -> None:
    """Output tokens a second, a panel for each number of streams; the background is transparent."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    colours = {"axes.edgecolor": GREY, "axes.labelcolor": GREY, "xtick.color": GREY, "ytick.color": GREY, "text.color": GREY}
    with mpl.rc_context({**colours, "font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        loads = [str(number) for number in gpu_sweep.REQUESTS]
        figure, panels = plt.subplots(1, len(loads), figsize=(10, 0.6 + 0.36 * len(found)), sharey=True, layout="constrained")
        for load, panel in zip(loads, panels, strict=True):
            shown = {name: row["loads"][load]["output_throughput"] for name, row in found.items() if load in row["loads"]}
            bars = panel.barh(list(shown), list(shown.values()), color=[COLOURS[list(found).index(name) % len(COLOURS)] for name in shown])
            panel.bar_label(bars, fmt="{:,.0f}", padding=3)
            panel.set_title(f"{load} stream{'s' if load != '1' else ''}", fontsize=10)
            panel.margins(x=0.25)
            panel.set_xticks([])
            panel.spines["bottom"].set_visible(False)
        panels[0].invert_yaxis()
        figure.supxlabel("output tokens a second, 1000 tokens in and 500 out", fontsize=9)
        figure.savefig(file, dpi=150, transparent=True)


def main() -> None:
    """Read the command line, print the table, and write the plot where one is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("facts", nargs="+", type=Path, help="facts.jsonl of one or more sweeps on one machine")
    parser.add_argument("--plot", type=Path, help="a PNG file")
    parser.add_argument("--against", nargs="+", help="names of configurations for the ratios; the yardsticks unless given")
    options = parser.parse_args()
    found = read(*options.facts)
    against = options.against or [row.name for row in gpu_sweep.rows(gpu_sweep.CONFIGURATIONS).values() if row.yardstick]
    print(table(found, [name for name in against if name in found]))
    if options.plot:
        plot(found, options.plot)


if __name__ == "__main__":
    main()

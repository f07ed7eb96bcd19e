"""Charts as SVG text that can stand in a page."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLOURS = ("#0b6e99", "#d9730d", "#6c8e3f", "#8c5aa5", "#a0522d", "#777777")
STYLE = {
    "svg.fonttype": "none",  # text stays text: small, searchable, in the page's font
    "svg.hashsalt": "pocketformer",
    "font.family": "sans-serif",
    "font.size": 13,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.axisbelow": True,
}


def bars(
    groups: Sequence[str],
    values: Mapping[str, Sequence[float]],
    unit: str,
    line: tuple[float, str] | None = None,
    errors: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None,
) -> str:
    """Horizontal bars, one of each name in every group; ``errors`` reach below and above. ``line`` marks a value."""
    with plt.rc_context(STYLE):
        thickness = 0.8 / len(values)
        figure, axes = plt.subplots(figsize=(6.0, 0.7 + len(groups) * (0.18 + 0.2 * len(values))))
        for i, (name, row) in enumerate(values.items()):
            at = [group + (i + 0.5) * thickness - 0.4 for group in range(len(groups))]
            spread = errors[name] if errors and name in errors else None
            axes.barh(at, row, thickness * 0.9, label=name, color=COLOURS[i % len(COLOURS)], xerr=spread, ecolor="#444")
        if line:
            axes.axvline(line[0], color="#c0392b", linewidth=1, label=line[1])
        axes.set_yticks(range(len(groups)), groups)
        axes.set_ylim(len(groups) - 0.5, -0.5)
        axes.set_xlabel(unit)
        axes.grid(axis="y", visible=False)
        return _svg(figure, axes)


def lines(points: Mapping[str, Sequence[tuple[float, float]]], x: str, y: str, heights: Sequence[float] = ()) -> str:
    """Lines through (x, y) points, both axes logarithmic; ``heights`` are named on the second, if not powers of ten."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(6.0, 4))
        for i, (name, row) in enumerate(points.items()):
            axes.plot(*zip(*row, strict=True), marker="o", markersize=4, label=name, color=COLOURS[i % len(COLOURS)])
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        ticks = sorted({int(at) for row in points.values() for at, _ in row})
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        if heights:
            axes.set_yticks(heights, [f"{height:g}" for height in heights])
        axes.minorticks_off()
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        return _svg(figure, axes)


def _svg(figure: Any, axes: Any) -> str:
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, frameon=False)
    text = io.StringIO()
    figure.savefig(text, format="svg", bbox_inches="tight", transparent=True, metadata={"Date": None})
    plt.close(figure)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    for attribute in ("width", "height"):  # the page sets the size
        svg = re.sub(rf'(<svg[^>]*?) {attribute}="[^"]*"', r"\1", svg, count=1)
    return svg

"""The two tables of attention in linear time of docs/performance.md, drawn: ``python -m bench.attention_charts``.

Writes attention-cost.svg and performer-error.svg into docs/images. What is drawn is what the page says: figures that
``python -m bench.attentions`` has printed there.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from bench import charts

DOCS = Path(__file__).parents[1] / "docs"
Points = dict[str, list[tuple[float, float]]]


def table(page: str, title: str) -> Points:
    """Of the table whose first cell is ``title`` each row by its name: (column, cell) pairs, all of them numbers."""
    found = re.search(rf"^\| {re.escape(title)} \|.*(?:\n\|.*)+", page, re.MULTILINE)
    if found is None:
        raise ValueError(f"the page has no table that begins with {title!r}")
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in found[0].splitlines())
    columns = [float(cell.replace(",", "")) for cell in head[1:]]
    return {name: list(zip(columns, map(float, cells), strict=True)) for name, *cells in rows}


def drawn(points: Points, x: str, y: str, heights: Sequence[float]) -> str:
    """A chart that can be read on a dark page too, with its points as its description."""
    svg = charts.lines(points, x, y, heights)
    head, rest = svg.split(">", 1)
    said = "; ".join(f"{name}: {', '.join(f'{at:g} {value:g}' for at, value in row)}" for name, row in points.items())
    return f'{head}><desc>{said}</desc><rect width="100%" height="100%" fill="white"/>{rest}'


def images(page: str) -> dict[str, str]:
    """SVG by file name."""
    cost, error = table(page[page.index("## Attention in linear time") :], "tokens"), table(page, "features")
    first, *others = error
    error = {first: error[first]} | {f"… {name}": error[name] for name in others}
    nearest = error[first]
    error["∝ 1/√m"] = [(m, nearest[0][1] * (nearest[0][0] / m) ** 0.5) for m, _ in nearest]
    return {
        "attention-cost.svg": drawn(cost, "tokens", "µs a token", (5, 10, 20, 50, 100, 200, 500)),
        "performer-error.svg": drawn(error, "features m", "error / (softmax − mean)", (0.25, 0.5, 1, 2, 4)),
    }


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else DOCS / "images"
    folder.mkdir(exist_ok=True)
    for name, svg in images((DOCS / "performance.md").read_text()).items():
        (folder / name).write_text(svg)


if __name__ == "__main__":
    main()

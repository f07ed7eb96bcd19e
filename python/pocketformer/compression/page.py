"""The report of a compression as one page of HTML that needs nothing else: tables, and charts as SVG in it."""

from __future__ import annotations

import html
import io
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .report import TrimmedVocabulary

COLOURS = ("#0b6e99", "#d9730d", "#777777")
STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: small, searchable, in the font of the page
    "svg.hashsalt": "pocketformer",
    "font.family": "sans-serif",
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
}
CSS = """body{font:16px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:1em 0}td,th{padding:.2em .8em;text-align:right;border-bottom:1px solid #ddd}
td:first-child,th:first-child{text-align:left}svg{max-width:100%;height:auto}"""


def check_charts() -> None:
    """Raises ImportError when matplotlib is missing, before any work is done."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ImportError("a report draws its charts with matplotlib: pip install 'pocketformer[report]'") from None


def write_page(path: str | os.PathLike[str], model: str, result: Mapping[str, Any]) -> None:
    """Writes ``result``, the report of ``model`` as ``compress --json`` prints it, to ``path``.

    Raises ImportError when matplotlib is missing.
    """
    check_charts()
    name = html.escape(os.path.basename(os.path.normpath(model)))
    size = _megabytes(result["file_bytes"])
    parts = [
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{name}</title><style>{CSS}</style></head>',
        f"<body><h1>{name}: {size}</h1>",
        "<h2>Stages</h2>",
        _table(
            ("stage", "bytes before", "bytes after", "of the first"),
            [
                (stage["name"], _megabytes(stage["before"]), _megabytes(stage["after"]), _share(stage, result))
                for stage in result["stages"]
            ],
        ),
        *([f"<p>{html.escape(str(TrimmedVocabulary(**result['vocabulary'])))}</p>"] if result["vocabulary"] else []),
        "<h2>Where the bytes went</h2>",
        _bars(
            [(group, (before / 1e6, after / 1e6)) for group, before, after in _groups(result["tensors"])],
            ("before", "after"),
            "MB",
        ),
        "<h2>Error of each weight</h2><p>‖W − Ŵ‖ / ‖W‖ of what is stored, in percent.</p>",
        _bars(
            [(_short(tensor["name"]), (100 * tensor["error"],)) for tensor in result["tensors"] if tensor["error"]],
            ("error",),
            "%",
        ),
    ]
    if result["pruned"]:
        parts += [
            "<h2>Pruned layers</h2><p>Error of the products that read the channels, relative to the products: with the "
            "rest as it was, and refitted.</p>",
            _table(
                ("channels read by", "width", "of", "plain", "refitted"),
                [
                    (p["name"], p["after"], p["before"], f"{p['plain']:.2%}", f"{p['refitted']:.2%}")
                    for p in result["pruned"]
                ],
            ),
            _bars(
                [(p["name"], (100 * p["plain"], 100 * p["refitted"])) for p in result["pruned"]],
                ("plain", "refitted"),
                "%",
            ),
        ]
    parts += [
        "<h2>Every parameter</h2>",
        _table(
            ("parameter", "shape", "precision", "bytes before", "bytes after", "error"),
            [
                (
                    tensor["name"],
                    " × ".join(map(str, tensor["shape"])),
                    tensor["precision"],
                    f"{tensor['before']:,}",
                    f"{tensor['after']:,}",
                    f"{tensor['error']:.3%}",
                )
                for tensor in result["tensors"]
            ],
        ),
        "</body></html>",
    ]
    Path(path).write_text("\n".join(parts) + "\n", encoding="utf-8")


def _groups(tensors: Iterable[Mapping[str, Any]]) -> list[tuple[str, int, int]]:
    """Bytes of the tensors that share all of their name but its last parts and numbers: the layers' alike together."""
    groups: dict[str, tuple[int, int]] = {}
    for tensor in tensors:
        key = re.sub(r"\d+", "*", _short(str(tensor["name"])))
        before, after = groups.get(key, (0, 0))
        groups[key] = before + tensor["before"], after + tensor["after"]
    return sorted(((key, *sizes) for key, sizes in groups.items()), key=lambda group: -group[1])


def _short(name: str) -> str:
    return name.removesuffix(".weight")


def _share(stage: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    first = result["stages"][0]["before"]
    return f"{stage['after'] / first:.1%}" if first else "–"


def _megabytes(count: float) -> str:
    return f"{count / 1e6:.2f} MB"


def _table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    def line(tag: str, cells: Sequence[object]) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"

    return "\n".join(["<table>", line("th", headers), *(line("td", row) for row in rows), "</table>"])


def _bars(rows: Sequence[tuple[str, Sequence[float]]], names: Sequence[str], unit: str) -> str:
    """Horizontal bars, one of each name in every row."""
    if not rows:
        return "<p>None.</p>"
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8, 0.8 + len(rows) * (0.12 + 0.14 * len(names))))
        axes = figure.add_subplot()
        thickness = 0.8 / len(names)
        for i, name in enumerate(names):
            at = [row + (i + 0.5) * thickness - 0.4 for row in range(len(rows))]
            axes.barh(at, [values[i] for _, values in rows], thickness * 0.9, label=name, color=COLOURS[i])
        axes.set_yticks(range(len(rows)), [label for label, _ in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlabel(unit)
        axes.grid(axis="x", alpha=0.25)
        if len(names) > 1:
            axes.legend(frameon=False)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None}, bbox_inches="tight")
    return buffer.getvalue()[buffer.getvalue().index("<svg") :]

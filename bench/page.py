"""One self-contained page from a result of ``make bench``: ``python -m bench.page RESULT.json PAGE.html``."""

from __future__ import annotations

import argparse
import html
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from bench import charts
from bench.results import Result, load, short_name
from bench.statistics import ratios

OURS = "pocketformer-int8"
CSS = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; padding: 1rem; max-width: 60rem; color: #222; }
body { background: #fff; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; border-top: 1px solid #ddd; padding-top: 1rem; }
svg { width: 100%; height: auto; max-width: 46rem; display: block; margin: 1rem 0; font-family: system-ui, sans-serif; }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #e4e4e4; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff; }
th { font-weight: 600; white-space: normal; vertical-align: bottom; }
.facts td, .facts th { text-align: left; white-space: normal; }
.best { font-weight: 600; } .slow { color: #b03a2e; } p.note { color: #555; font-size: .9rem; }
details { margin: 1rem 0; } summary { cursor: pointer; font-weight: 600; }
"""

Row = Sequence[object]


def render(result: Result) -> str:
    """The page as HTML text; it needs nothing else, neither scripts nor the network."""
    sections = [
        *_head(result),
        *_peers(result),
        *_products(result),
        *_attention(result),
        *_models(result),
        *_all(result),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>pocketformer bench</title><style>{CSS}</style></head>\n<body>\n"
        + "\n".join(sections)
        + "\n</body></html>\n"
    )


def _head(result: Result) -> Iterator[str]:
    machine = result["machine"]
    yield "<h1>pocketformer bench</h1>"
    yield _table(
        ("machine", ""),
        [
            ("CPU", machine["cpu"]),
            ("instruction set", f"{machine['isa']} (of {', '.join(machine['isas'])})"),
            ("CPUs for this process", machine["threads"]),
            *(
                (name, result[name])
                for name in ("kernel", "python", "commit", "date", "load average")
                if name in result
            ),
        ],
        kind="facts",
    )
    yield _table(
        ("threads", "int8, 10⁹ multiply-adds/s", "fp32, 10⁹ multiply-adds/s", "memory read, GB/s"),
        [(r["threads"], *(f"{r[k]:.1f}" for k in ("int8_gmacs", "fp32_gmacs", "read_gbps"))) for r in result["peaks"]],
    )
    yield _note("What the machine does at most: the product’s inner instruction alone, and reading memory in order.")
    if result.get("skipped"):
        yield "<p>Left out: " + "; ".join(f"{_text(k)} ({_text(v)})" for k, v in result["skipped"].items()) + ".</p>"


def _peers(result: Result) -> Iterator[str]:
    for model, compared in result.get("peers", {}).items():
        cells = {(c["threads"], c["batch"], c["tokens"], c["runner"]): c["rounds"] for c in compared["cells"]}
        runners = list(dict.fromkeys(c["runner"] for c in compared["cells"]))
        if OURS not in runners:
            continue
        yield f"<h2>{_text(model)}: beside other runtimes</h2>"
        yield _note(
            f"Time divided by that of {OURS}, median of paired rounds (quartiles); above 1, we are faster. The "
            "runtimes take turns, each in a process of its own that is stopped while another is measured."
        )
        for threads in sorted({key[0] for key in cells}):
            shapes = list(dict.fromkeys(key[1:3] for key in cells if key[0] == threads))
            title = f"{threads} thread{'s' if threads > 1 else ''}"
            ours = {shape: cells[(threads, *shape, OURS)] for shape in shapes}
            peers = [name for name in runners if name != OURS and "int8" in name]
            best = (
                {
                    shape: min(ratios(cells[(threads, *shape, name)], ours[shape])[1] for name in peers)
                    for shape in shapes
                }
                if peers
                else {}
            )
            yield f"<h3>{title}</h3>"
            if best:
                values = {"fastest other int8": [best[shape] for shape in shapes]}
                names = [f"{batch} × {tokens}" for batch, tokens in shapes]
                yield charts.bars(names, values, "times our time, batch × tokens", (1, "as fast as we are"))
            rows: list[Row] = [(OURS + ", ms", *(f"{1e3 * median(ours[shape]):.2f}" for shape in shapes))]
            for name in runners:
                if name != OURS:
                    rows.append((name, *(_ratio(cells[(threads, *shape, name)], ours[shape]) for shape in shapes)))
            yield _table(("batch × tokens", *(f"{batch} × {tokens}" for batch, tokens in shapes)), rows)
        yield _note(
            "Versions: " + ", ".join(f"{name} {version}" for name, version in compared["versions"].items()) + "."
        )


def _products(result: Result) -> Iterator[str]:
    rows = result.get("products", [])
    if not rows:
        return
    yield "<h2>int8 products</h2>"
    yield _note("Share of the int8 peak probed between the rounds: fp32 results with a scale for each row and channel.")
    for threads in sorted({row["threads"] for row in rows}):
        chosen = [row for row in rows if row["threads"] == threads]
        yield f"<h3>{threads} thread{'s' if threads > 1 else ''}</h3>"
        for m in sorted({row["m"] for row in chosen}):
            group = [row for row in chosen if row["m"] == m]
            shares = {
                label: [100 * _share(row, who) for row in group]
                for who, label in (("pocketformer", "pocketformer"), ("onednn", "oneDNN"))
                if all(who in row for row in group)
            }
            yield charts.bars([f"{r['n']} × {r['k']}" for r in group], shares, f"% of the peak, {m} rows, N × K")
        table: list[Row] = [
            (
                f"{r['m']} × {r['n']} × {r['k']}",
                f"{1e6 * median(r['pocketformer']):.1f}",
                f"{_share(r, 'pocketformer'):.0%}",
                f"{_share(r, 'onednn'):.0%}" if "onednn" in r else "–",
                _ratio(r["onednn"], r["pocketformer"]) if "onednn" in r else "–",
            )
            for r in chosen
        ]
        yield _table(("M × N × K", "ours, µs", "of the peak", "oneDNN, of the peak", "oneDNN / ours"), table)


def _attention(result: Result) -> Iterator[str]:
    rows = result.get("attention", [])
    if not rows:
        return
    yield "<h2>Attention, 12 heads of 64, one thread</h2>"
    yield _note(
        "int8 with the quantization of queries, keys and values, beside torch’s scaled_dot_product_attention in fp32."
    )
    points = {
        f"{label}, {kind}": [(r["tokens"], 1e3 * median(r[who])) for r in rows if r["kind"] == kind]
        for kind in dict.fromkeys(r["kind"] for r in rows)
        for who, label in (("pocketformer", "pocketformer"), ("torch", "torch fp32"))
    }
    yield charts.lines(points, "tokens", "ms")
    table: list[Row] = [
        (
            f"{r['kind']}, {r['tokens']}",
            f"{1e3 * median(r['pocketformer']):.3f}",
            f"{r['peak_share']:.0%}",
            f"{1e3 * median(r['torch']):.2f}",
            _ratio(r["torch"], r["pocketformer"]),
        )
        for r in rows
    ]
    yield _table(("attention, tokens", "ours, ms", "of the int8 peak", "torch fp32, ms", "torch / ours"), table)


def _models(result: Result) -> Iterator[str]:
    chosen = [b for b in result.get("benchmarks", []) if "tokens" in b["extra_info"] and "batch" in b["extra_info"]]
    if not chosen:
        return
    yield "<h2>Models</h2>"
    groups: dict[str, list[tuple[float, float]]] = {}
    for b in chosen:
        info = b["extra_info"]
        if info["batch"] == 1:
            name = f"{short_name(b).partition('[')[0]}, threads {info['threads']}"
            groups.setdefault(name, []).append((info["tokens"], 1e3 * b["stats"]["median"]))
    yield charts.lines(groups, "tokens of one sequence", "ms")
    rows: list[Row] = []
    for b in chosen:
        info, stats = b["extra_info"], b["stats"]
        rows.append(
            (
                short_name(b),
                f"{1e3 * stats['median']:.2f}",
                f"{1e3 * stats['min']:.2f}",
                f"{info['batch'] * info['tokens'] / stats['median']:,.0f}",
                f"{info['peak_share']:.0%}",
                f"{max(info['peak_share'], info.get('read_share', 0)):.0%}",
                f"{info['arena_bytes'] / 1e6:.2f}",
            )
        )
    head = ("model [batch × tokens – threads]", "median, ms", "best, ms", "tokens/s", "of the peak", "of the roofline")
    yield _table((*head, "working memory, MB"), rows)
    yield _note(
        "Roofline: the larger of multiply-adds at the peak and of reading the weights once, divided by the median. "
        "One thread by its own clock."
    )
    if result.get("fixed_cost"):
        costs = ", ".join(f"{r['weights']} {1e6 * r['seconds']:.1f} µs" for r in result["fixed_cost"])
        yield _note(f"A forward pass with next to no arithmetic (67,072 parameters, 10 tokens), from C++: {costs}.")


def _all(result: Result) -> Iterator[str]:
    rows: list[Row] = []
    for b in sorted(result.get("benchmarks", []), key=short_name):
        info, stats = b["extra_info"], b["stats"]
        spread = (stats["q3"] - stats["q1"]) / stats["median"]
        peak, read = info.get("peak_share"), info.get("read_share")
        rows.append(
            (
                short_name(b),
                f"{1e6 * stats['median']:,.1f}",
                f"{1e6 * stats['min']:,.1f}",
                f"{spread:.0%}",
                "–" if peak is None else f"{peak:.0%}",
                "–" if read is None else f"{read:.0%}",
                info.get("isa", ""),
            )
        )
    head = ("benchmark", "median, µs", "best, µs", "quartile range", "of the peak", "of read bandwidth", "ISA")
    yield f"<details><summary>All {len(rows)} benchmarks</summary>{_table(head, rows)}</details>"


def _share(row: dict[str, Any], who: str) -> float:
    return float(row["m"] * row["n"] * row["k"] / median(row[who]) / max(row["peak"]))


class _Html(str):
    """Text that is HTML already."""


def _ratio(theirs: Sequence[float], ours: Sequence[float]) -> _Html:
    low, middle, high = ratios(theirs, ours)
    kind = "best" if middle >= 1 else "best slow"
    return _Html(f'<span class="{kind}">{middle:.2f}</span> ({low:.2f}–{high:.2f})')


def _text(value: object) -> str:
    return value if isinstance(value, _Html) else html.escape(str(value))


def _table(head: Sequence[str], rows: Sequence[Row], kind: str = "") -> str:
    top = "".join(f"<th>{_text(cell)}</th>" for cell in head)
    body = "\n".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        f'<div class="wide"><table class="{kind}"><thead><tr>{top}</tr></thead><tbody>\n{body}\n</tbody></table></div>'
    )


def _note(text: str) -> str:
    return f'<p class="note">{_text(text)}</p>'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("result", type=Path)
    parser.add_argument("page", type=Path)
    arguments = parser.parse_args()
    arguments.page.write_text(render(load(arguments.result)), encoding="utf-8")


if __name__ == "__main__":
    main()

"""What ``make bench`` records: one JSON object, and the series of times in it.

``machine``, ``peaks``, ``isas`` (pocketformer.perf.measure), ``commit``, ``date``; ``benchmarks`` as pytest-benchmark
writes them; ``products``, ``attention``, ``peers`` (bench.peers), ``fixed_cost`` (bench/native); ``skipped``: reasons
by name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.statistics import quartiles

Result = dict[str, Any]


@dataclass(frozen=True)
class Series:
    """Seconds of one benchmark: the least, the quartiles."""

    least: float
    low: float
    middle: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Series:
        return cls(min(values), *quartiles(values))


def load(path: Path) -> Result:
    """Raises ValueError when ``path`` is not such a file."""
    result = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(result, dict) or not isinstance(result.get("benchmarks", []), list):
        raise ValueError(f"{path} holds no benchmarks; name a JSON file that `make bench` wrote")
    return result


def short_name(benchmark: dict[str, Any]) -> str:
    """``test_product_int8[16-384-384]`` → ``product_int8[16-384-384]``."""
    return str(benchmark["name"]).removeprefix("test_")


def series(result: Result) -> Iterator[tuple[str, Series]]:
    """Every timed thing by a name that is the same in another result."""
    for benchmark in result.get("benchmarks", []):
        stats = benchmark["stats"]
        yield short_name(benchmark), Series(stats["min"], stats["q1"], stats["median"], stats["q3"])
    for row in result.get("products", []):
        for who in ("pocketformer", "onednn"):
            if who in row:
                yield f"{who} product {row['m']}×{row['n']}×{row['k']}, threads {row['threads']}", Series.of(row[who])
    for row in result.get("attention", []):
        for who in ("pocketformer", "torch"):
            yield f"{who} attention {row['kind']} {row['tokens']}", Series.of(row[who])
    for model, compared in result.get("peers", {}).items():
        for cell in compared["cells"]:
            name = f"{cell['runner']} {model} {cell['batch']}×{cell['tokens']}, threads {cell['threads']}"
            yield name, Series(cell["fastest"], *quartiles(cell["rounds"]))

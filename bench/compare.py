"""What changed between two results of ``make bench``, beyond noise: ``python -m bench.compare A.json B.json``.

A benchmark counts as changed when its minimum and its median moved the same way by more than 3% each (``--least``), and
the ranges between its quartiles do not overlap. A busy neighbour moves the median and the quartiles but seldom the
minimum; a lucky call moves the minimum alone. Peaks of the two machines, or minutes, are shown first: where they
differ, so will everything else.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from bench.results import Result, Series, load, series

LEAST = 0.03


@dataclass(frozen=True)
class Change:
    name: str
    before: Series
    after: Series

    @property
    def ratio(self) -> float:
        """Median after / before: below 1 is faster."""
        return self.after.middle / self.before.middle

    def beyond_noise(self, least: float = LEAST) -> bool:
        a, b = self.before, self.after
        slower = min(b.least / a.least, b.middle / a.middle) > 1 + least and b.low > a.high
        faster = max(b.least / a.least, b.middle / a.middle) < 1 / (1 + least) and b.high < a.low
        return slower or faster


def changes(before: Result, after: Result) -> list[Change]:
    """All benchmarks that are in both."""
    known = dict(series(before))
    return [Change(name, known[name], now) for name, now in series(after) if name in known]


def report(before: Result, after: Result, least: float = LEAST) -> str:
    both = changes(before, after)
    moved = sorted((change for change in both if change.beyond_noise(least)), key=lambda change: change.ratio)
    lines = peak_lines(before, after)
    if moved:
        lines += ["| benchmark | before, µs | after, µs | after / before |", "|---|---|---|---|"]
    lines += [
        f"| {c.name} | {1e6 * c.before.middle:.1f} | {1e6 * c.after.middle:.1f} | **{c.ratio:.3f}** |" for c in moved
    ]
    lines.append(f"{len(moved)} of {len(both)} benchmarks changed beyond noise.")
    names = {"before": dict(series(before)), "after": dict(series(after))}
    for here, there in (("before", "after"), ("after", "before")):
        alone = [name for name in names[here] if name not in names[there]]
        if alone:
            lines.append(f"Only {here}: {', '.join(alone)}.")
    return "\n".join(lines)


def peak_lines(before: Result, after: Result) -> list[str]:
    known = {row["threads"]: row for row in before.get("peaks", [])}
    lines = []
    for row in after.get("peaks", []):
        if old := known.get(row["threads"]):
            figures = ", ".join(
                f"{name} {old[key]:.1f} → {row[key]:.1f} {unit}"
                for name, key, unit in (
                    ("int8", "int8_gmacs", "10⁹/s"),
                    ("fp32", "fp32_gmacs", "10⁹/s"),
                    ("memory", "read_gbps", "GB/s"),
                )
            )
            lines.append(f"Peak of {row['threads']} threads: {figures}.")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--least", type=float, default=LEAST, help="the least change that counts (default: 0.03)")
    arguments = parser.parse_args()
    try:
        print(report(load(arguments.before), load(arguments.after), arguments.least))
    except (OSError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()

"""int8 products beside oneDNN's: ``python -m bench.peers.products FOLDER``.

FOLDER holds the program ``products`` of bench/native (``make bench`` builds it). oneDNN multiplies u8 by s8 to fp32
with a scale for each channel; its weights are packed beforehand as it likes best. A round measures the peak, ours and
theirs; one thread by its own clock, which stands while a neighbour has the core.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from bench.statistics import quartiles, ratio_text

ROWS = (1, 16, 64, 128, 512)
SHAPES = ((384, 384), (1536, 384), (384, 1536), (768, 768), (3072, 768), (1024, 1024), (2048, 2048))  # N × K


def measure(folder: Path, rows: Sequence[int], threads: int, rounds: int, seconds: float) -> Iterator[dict[str, Any]]:
    """One result for each shape: seconds a call by round, and the peak in multiply-adds a second."""
    shapes = [f"{m}x{n}x{k}" for n, k in SHAPES for m in rows]
    command = [str(folder / "products"), str(threads), str(rounds), str(seconds), *shapes]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            yield json.loads(line)
    if process.returncode != 0:
        raise RuntimeError(f"{folder / 'products'} failed with exit code {process.returncode}")


def missing(folder: Path) -> str | None:
    """Why this cannot run here, or None when it can."""
    if not (folder / "products").is_file():
        return f"{folder / 'products'} does not exist: build with -DPOCKETFORMER_NATIVE_BENCH=ON"
    return None


def shares(result: dict[str, Any], name: str) -> tuple[float, float, float]:
    """Quartiles of the share of the peak, by round."""
    macs = result["m"] * result["n"] * result["k"]
    return quartiles([macs / seconds / max(result["peak"]) for seconds in result[name]])


def table(results: list[dict[str, Any]]) -> str:
    peer = any("onednn" in result for result in results)
    head = ["threads", "M × N × K", "ours, µs", "of the int8 peak"]
    head += ["oneDNN, µs", "of the int8 peak", "oneDNN / ours (quartiles)"] if peer else []
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for r in results:
        row = [str(r["threads"]), f"{r['m']} × {r['n']} × {r['k']}"]
        for name in ("pocketformer", "onednn") if peer else ("pocketformer",):
            row += [f"{1e6 * median(r[name]):.1f}", f"{shares(r, name)[1]:.0%}"]
        lines.append("| " + " | ".join(row + ([ratio_text(r["onednn"], r["pocketformer"])] if peer else [])) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, nargs="+", default=list(ROWS))
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.02, help="time for each of the two in a round")
    parser.add_argument("--json", type=Path, help="write the raw times here")
    arguments = parser.parse_args()
    if reason := missing(arguments.folder):
        parser.error(reason)
    results: list[dict[str, Any]] = []
    for threads in arguments.threads:
        results += measure(arguments.folder, arguments.rows, threads, arguments.rounds, arguments.seconds)
    print(table(results))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()

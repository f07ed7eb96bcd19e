"""Writes the predictions of docs/boards.md: MiniLM on every board that the cost model knows.

python scripts/predict_boards.py all-MiniLM-L6-v2.int8.pocket      # with pocketformer installed
"""

from __future__ import annotations

import sys
from pathlib import Path

from pocketformer.engine import Engine
from pocketformer.perf.boards import BOARDS
from pocketformer.perf.predict import predict

PAGE = Path(__file__).resolve().parents[1] / "docs" / "boards.md"
BEGIN, END = "<!-- predictions -->\n", "<!-- /predictions -->"
LENGTHS = (16, 32, 128, 256, 512)


def table(path: str | Path) -> str:
    """Milliseconds for one sequence on one core and on all, and the memory of the longest."""
    engine = Engine(path, 1)
    lines = [
        f"| board | kernels | threads | {' | '.join(f'{n} tokens' for n in LENGTHS)} | memory at {LENGTHS[-1]} |",
        "| --- | --- | ---: |" + " ---: |" * (len(LENGTHS) + 1),
    ]
    for board in BOARDS.values():
        for threads in (1, board.cores):
            runs = [predict(engine, board, [n], threads) for n in LENGTHS]
            times = " | ".join(f"{1e3 * run['seconds']:.1f} ms" for run in runs)
            lines.append(f"| {board.name} | {board.isa} | {threads} | {times} | {runs[-1]['bytes'] / 1e6:.1f} MB |")
    return "\n".join(lines) + "\n"


def written() -> str:
    """The table as the page has it."""
    return PAGE.read_text().split(BEGIN)[1].split(END)[0]


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    PAGE.write_text(PAGE.read_text().replace(BEGIN + written(), BEGIN + table(sys.argv[1])))

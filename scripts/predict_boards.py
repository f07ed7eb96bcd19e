"""Writes the predictions of docs/boards.md: MiniLM, and models of images, on every board that the cost model knows.

python scripts/predict_boards.py all-MiniLM-L6-v2.int8.pocket      # with pocketformer installed
python scripts/predict_boards.py --images deit-ti.pocket dinov2-s.pocket mobilevit-s.pocket
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from pocketformer.engine import Engine
from pocketformer.perf.boards import BOARDS
from pocketformer.perf.predict import predict

PAGE = Path(__file__).resolve().parents[1] / "docs" / "boards.md"
BEGIN, END = "<!-- predictions -->\n", "<!-- /predictions -->"
BEGIN_IMAGES, END_IMAGES = "<!-- images -->\n", "<!-- /images -->"
IMAGES = ("DeiT-Ti, 224 × 224", "DINOv2-S, 224 × 224", "MobileViT-S, 256 × 256")
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


def image_table(paths: Sequence[str | Path]) -> str:
    """Milliseconds for one image on one core and on all, by the files of ``IMAGES``."""
    engines = [Engine(path, 1) for path in paths]
    shapes = [engine.file.model["image"] for engine in engines]
    pixels = [shape["height"] * shape["width"] for shape in shapes]
    lines = [f"| board | threads | {' | '.join(IMAGES)} |", "| --- | ---: |" + " ---: |" * len(IMAGES)]
    for board in BOARDS.values():
        for threads in (1, board.cores):
            runs = [predict(engine, board, [n], threads) for engine, n in zip(engines, pixels, strict=True)]
            times = " | ".join(f"{1e3 * run['seconds']:.0f} ms" for run in runs)
            lines.append(f"| {board.name} | {threads} | {times} |")
    return "\n".join(lines) + "\n"


def written(begin: str = BEGIN, end: str = END) -> str:
    """The table as the page has it."""
    return PAGE.read_text().split(begin)[1].split(end)[0]


if __name__ == "__main__":
    if len(sys.argv) == 2:
        PAGE.write_text(PAGE.read_text().replace(BEGIN + written(), BEGIN + table(sys.argv[1])))
    elif len(sys.argv) == 2 + len(IMAGES) and sys.argv[1] == "--images":
        old = BEGIN_IMAGES + written(BEGIN_IMAGES, END_IMAGES)
        PAGE.write_text(PAGE.read_text().replace(old, BEGIN_IMAGES + image_table(sys.argv[2:])))
    else:
        raise SystemExit(__doc__)

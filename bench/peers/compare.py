"""Latency of the same encoder in every runtime on this machine: ``python -m bench.peers.compare``.

Every runner lives in its own process. A round asks each of them in turn for the same cell (in an order that
changes from round to round), so that a slow minute of the machine hits all alike; ratios pair the medians of one round.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from bench.peers.machine import describe
from bench.peers.peer import Peer, Peers, available, default_cache
from bench.statistics import quartiles, ratio_text

Shape = tuple[int, int]
CELLS: tuple[Shape, ...] = ((1, 16), (1, 32), (1, 128), (1, 256), (1, 512), (8, 128), (32, 128))  # batch × tokens
OURS = "pocketformer-int8"


@dataclass
class Cell:
    """One runner's times for ``batch`` sequences of ``tokens`` tokens, in seconds."""

    runner: str
    threads: int
    batch: int
    tokens: int
    rounds: list[float]  # the median of each round
    fastest: float  # of all calls

    def quartiles(self) -> tuple[float, float, float]:
        return quartiles(self.rounds)


def token_ids(batch: int, tokens: int, seed: int = 0) -> list[list[int]]:
    """Sequences of one length: [CLS], word pieces drawn at random, [SEP] of the uncased BERT vocabulary."""
    draw = random.Random(f"{seed} {batch} {tokens}")
    return [[101, *(draw.randrange(1996, 30522) for _ in range(tokens - 2)), 102] for _ in range(batch)]


def measure(
    peers: list[Peer], shapes: Sequence[Shape], threads: int, rounds: int, seconds: float, clock: str
) -> list[Cell]:
    """Every cell of every peer, rounds outermost: the rounds of one cell are spread over the whole run."""
    cells = {
        (peer.name, shape): Cell(peer.name, threads, *shape, rounds=[], fastest=float("inf"))
        for shape in shapes
        for peer in peers
    }
    order = random.Random(0)
    for number in range(rounds):
        for shape in shapes:
            ids = token_ids(*shape)
            for peer in order.sample(peers, len(peers)):
                times = peer.measure(ids, seconds=seconds, least=2, clock=clock)
                cell = cells[peer.name, shape]
                cell.rounds.append(median(times))
                cell.fastest = min(cell.fastest, *times)
        print(f"{threads} threads: round {number + 1} of {rounds}", file=sys.stderr)
    return list(cells.values())


def table(cells: list[Cell], threads: int) -> str:
    """Markdown: a row for each runner, a column for each shape; medians with quartiles, minima, ratios to ours."""
    chosen = [cell for cell in cells if cell.threads == threads]
    names = list(dict.fromkeys(cell.runner for cell in chosen))
    at = {(cell.runner, (cell.batch, cell.tokens)): cell for cell in chosen}
    shapes = list(dict.fromkeys(shape for _, shape in at))

    def rows(text: Any) -> list[str]:
        return [f"| {name} | " + " | ".join(text(at[name, shape]) for shape in shapes) + " |" for name in names]

    def times(cell: Cell) -> str:
        low, middle, high = (f"{1e3 * value:.2f}" for value in cell.quartiles())
        return f"**{middle}** ({low}–{high})"

    def ratio(cell: Cell) -> str:
        ours = at[OURS, (cell.batch, cell.tokens)]
        return ratio_text(cell.rounds, ours.rounds)

    head = [
        "| batch × tokens | " + " | ".join(f"{batch} × {tokens}" for batch, tokens in shapes) + " |",
        "|---" * (len(shapes) + 1) + "|",
    ]
    parts = [
        f"### {threads} thread{'s' if threads > 1 else ''}",
        "Milliseconds, median of the rounds (quartiles):",
        "\n".join(head + rows(times)),
        "Milliseconds, fastest call:",
        "\n".join(head + rows(lambda cell: f"{1e3 * cell.fastest:.2f}")),
    ]
    if OURS in names:
        parts += [f"Time divided by that of {OURS}, paired by round (quartiles):", "\n".join(head + rows(ratio))]
    return "\n\n".join(parts)


def shape(text: str) -> Shape:
    batch, _, tokens = text.partition("x")
    if not (batch.isdecimal() and tokens.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a shape; write BATCHxTOKENS, such as 8x128")
    return int(batch), int(tokens)


def run(
    cache: Path,
    names: list[str],
    shapes: Sequence[Shape],
    threads: Sequence[int],
    rounds: int,
    seconds: float,
    clock: str = "wall",
) -> dict[str, Any]:
    """Machine, versions and cells, ready for JSON. The clock ``process`` is for one thread on a busy machine.

    Raises ValueError when it is asked for with more: a thread that waits for another would count as work.
    """
    if clock == "process" and set(threads) != {1}:
        raise ValueError(f"the clock 'process' was asked for with threads {list(threads)}; it is for --threads 1 alone")
    cells: list[Cell] = []
    versions: dict[str, str] = {}
    for count in threads:
        with Peers(names, cache, count) as peers:
            versions |= {peer.name: peer.version for peer in peers}
            cells += measure(list(peers), shapes, count, rounds, seconds, clock)
    return {"machine": describe(), "versions": versions, "cells": [asdict(cell) for cell in cells]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=default_cache(), help="folder filled by bench.peers.prepare")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--cells", type=shape, nargs="+", default=list(CELLS), metavar="BATCHxTOKENS")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.1, help="time for each runner and cell in a round")
    parser.add_argument(
        "--clock", choices=("wall", "process"), default="wall", help="process: for 1 thread, busy machine"
    )
    parser.add_argument("--runners", nargs="+", default=[], help="names; default: all that can run here")
    parser.add_argument("--json", type=Path, help="write the raw times here")
    arguments = parser.parse_args()

    names = available(arguments.cache, arguments.runners)
    if not names:
        parser.error("no runner can run here; see the reasons above")
    options = vars(arguments)
    chosen = {key: options[key] for key in ("threads", "rounds", "seconds", "clock")}
    result = run(arguments.cache, names, arguments.cells, **chosen)
    cells = [Cell(**cell) for cell in result["cells"]]
    print("\n\n".join(table(cells, threads) for threads in arguments.threads) + "\n")
    facts = {**result["machine"], "versions": result["versions"]}
    print("\n".join(f"- {key}: {value}" for key, value in facts.items()))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()

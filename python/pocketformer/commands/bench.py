"""Measure a pocket file on this machine: latency by length, batch and threads, memory, load time, share of the peak."""

from __future__ import annotations

import argparse
from typing import Any

from .. import console
from . import options

HELP = "measure a pocket file on this machine"
EXAMPLE = "  pocketformer bench minilm.pocket --lengths 16 128 --batches 1 8 --threads 1 2"


def arguments(parser: argparse.ArgumentParser) -> None:
    options.model_file(parser)
    parser.add_argument("--lengths", type=options.positive, nargs="+", default=[16, 32, 128, 256, 512], metavar="N")
    parser.add_argument("--batches", type=options.positive, nargs="+", default=[1, 8], metavar="N")
    parser.add_argument("--threads", type=options.positive, nargs="+", metavar="N", help="default: 1 and all CPUs")
    parser.add_argument(
        "--seconds", type=float, default=0.5, metavar="S", help="time spent on each measurement (default: 0.5)"
    )


def execute(args: argparse.Namespace) -> dict[str, Any]:
    from ..measure import measure

    return measure(args.model, args.lengths, args.batches, args.threads, args.seconds)


def show(result: dict[str, Any]) -> None:
    rows = [
        (
            run["threads"],
            run["batch"],
            run["length"],
            console.milliseconds(run["median"]),
            console.milliseconds(run["best"]),
            f"{run['tokens_per_second']:,.0f}",
            "–" if run["peak_share"] is None else f"{run['peak_share']:.0%}",
            console.megabytes(run["arena_bytes"]),
        )
        for run in result["runs"]
    ]
    headers = ("threads", "batch", "tokens", "median", "best", "tokens/s", "of peak", "working memory")
    console.table(f"{result['name']}, {result['weights']}, {result['isa']}", headers, rows)
    print(f"load: {console.milliseconds(result['load_seconds'])}")
    print(
        f"peak memory of a process that loads it and runs one sequence: {console.megabytes(result['peak_rss_bytes'])}"
    )
    if result["weights"] == "int8":
        print(f"measured int8 peak of one core: {result['peak_gmacs']:.0f} billion multiply-adds a second")

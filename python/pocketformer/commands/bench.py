"""Measure a pocket file on this machine: latency by length, batch and threads, memory, load time, share of the peak."""

from __future__ import annotations

import argparse
from typing import Any

from .. import console
from . import options

HELP = "measure a pocket file, or what this machine can do at most"
EXAMPLE = """  pocketformer bench minilm.pocket --lengths 16 128 --batches 1 8 --threads 1 2
  pocketformer bench --peak"""


def arguments(parser: argparse.ArgumentParser) -> None:
    options.model_file(parser, optional=True)
    parser.add_argument("--peak", action="store_true", help="measure the machine: multiply-adds and memory, by threads")
    options.lengths(parser, [16, 32, 128, 256, 512])
    options.batches(parser, [1, 8])
    parser.add_argument("--threads", type=options.positive, nargs="+", metavar="N", help="default: 1 and all CPUs")
    parser.add_argument(
        "--seconds", type=float, default=0.5, metavar="S", help="time spent on each measurement (default: 0.5)"
    )


def execute(args: argparse.Namespace) -> dict[str, Any]:
    from ..perf.measure import measure, peaks

    if args.model is None and not args.peak:
        raise ValueError("there is nothing to measure; give a pocket file, --peak, or both")
    result = peaks(args.threads, args.seconds) if args.peak else {}
    if args.model is not None:
        result |= measure(args.model, args.lengths, args.batches, args.threads, args.seconds)
    return result


def show(result: dict[str, Any]) -> None:
    if "peaks" in result:
        _show_peaks(result)
    if "runs" in result:
        _show_runs(result)


def _show_peaks(result: dict[str, Any]) -> None:
    machine = result["machine"]
    rows = [
        (row["threads"], f"{row['int8_gmacs']:.1f}", f"{row['fp32_gmacs']:.1f}", f"{row['read_gbps']:.1f}")
        for row in result["peaks"]
    ]
    headers = ("threads", "int8, 10⁹ multiply-adds/s", "fp32, 10⁹ multiply-adds/s", "memory read, GB/s")
    console.table(f"{machine['cpu']}, {machine['isa']}: at most", headers, rows)
    isas = [(row["isa"], f"{row['int8_gmacs']:.1f}", f"{row['fp32_gmacs']:.1f}") for row in result["isas"]]
    console.table("One thread, by instruction set", ("instruction set", *headers[1:3]), isas)


def _show_runs(result: dict[str, Any]) -> None:
    rows = [
        (
            run["threads"],
            run["batch"],
            run["length"],
            console.milliseconds(run["median"]),
            console.milliseconds(run["best"]),
            f"{run['tokens_per_second']:,.0f}",
            f"{run['peak_gmacs']:.0f}",
            f"{run['peak_share']:.0%}",
            f"{run['roofline_share']:.0%}",
            console.megabytes(run["arena_bytes"]),
        )
        for run in result["runs"]
    ]
    headers = (
        *("threads", "batch", "tokens", "median", "best", "tokens/s"),
        *("peak, 10⁹/s", "of peak", "of roofline", "working memory"),
    )
    console.table(f"{result['name']}, {result['weights']}, {result['isa']}", headers, rows)
    print(
        "peak: multiply-adds in the minute of the run; roofline: that, or reading the weights once, if it takes longer"
    )
    print(f"load: {console.milliseconds(result['load_seconds'])}")
    print(
        f"peak memory of a process that loads it and runs one sequence: {console.megabytes(result['peak_rss_bytes'])}"
    )

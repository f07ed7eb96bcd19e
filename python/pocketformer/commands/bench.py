"""Measure a pocket file on this machine: latency by length, batch and threads, memory, load time, share of the peak;
of a model that generates, tokens a second of prompts and behind them."""

from __future__ import annotations

import argparse
from typing import Any

from .. import console
from . import options

HELP = "measure a pocket file, the kernels, or what this machine can do at most"
EXAMPLE = """  pocketformer bench minilm.pocket --lengths 16 128 --batches 1 8 --threads 1 2
  pocketformer bench smollm2.pocket --lengths 128 1024
  pocketformer bench --kernels --shapes 1x384x384 64x1024x1024 --threads 1
  pocketformer bench --peak"""
DEFAULT_LENGTHS = [16, 32, 128, 256, 512]
DEFAULT_BATCHES = [1, 8]
DEFAULT_CONTEXTS = [8, 128, 512, 1024]


def arguments(parser: argparse.ArgumentParser) -> None:
    options.model_file(parser, optional=True)
    parser.add_argument("--peak", action="store_true", help="measure the machine: multiply-adds and memory, by threads")
    parser.add_argument("--kernels", action="store_true", help="measure pocketformer.kernels: products and attention")
    options.lengths(parser)
    options.batches(parser)
    options.kv(parser)
    parser.add_argument(
        "--shapes", type=_shape, nargs="+", metavar="MxNxK", help="rows, outputs and inputs of the kernels' products"
    )
    parser.add_argument(
        "--threads", type=options.positive, nargs="+", metavar="N", help="default: 1 and the CPUs this process may use"
    )
    parser.add_argument(
        "--seconds", type=float, default=0.5, metavar="S", help="time spent on each measurement (default: 0.5)"
    )


def execute(args: argparse.Namespace) -> dict[str, Any]:
    from ..perf.measure import measure, peaks
    from ..pocketfile import read_pocket

    if args.model is None and not args.peak and not args.kernels:
        raise ValueError("there is nothing to measure; give a pocket file, --peak, --kernels, or several of them")
    result = peaks(args.threads, args.seconds) if args.peak else {}
    if args.kernels:
        from ..perf.kernels_bench import measure_kernels

        result |= measure_kernels(args.shapes, args.lengths, args.threads, args.seconds)
    if args.model is not None and read_pocket(args.model).model["task"] == "generate":
        from ..perf.decoding import measure_decoding

        if args.batches is not None:
            raise ValueError("--batches are of models that do not generate: one text is read and continued at a time")
        result |= measure_decoding(args.model, args.lengths or DEFAULT_CONTEXTS, args.threads, args.seconds, args.kv)
    elif args.kv is not None:
        raise ValueError("--kv is of models that generate; leave it out")
    elif args.model is not None:
        batches = args.batches or DEFAULT_BATCHES
        result |= measure(args.model, args.lengths or DEFAULT_LENGTHS, batches, args.threads, args.seconds)
    return result


def _shape(text: str) -> tuple[int, int, int]:
    sizes = [int(size) for size in text.split("x") if size.isdecimal()]
    if len(sizes) != 3 or text.count("x") != 2 or min(sizes) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form MxNxK, such as 64x1024x1024")
    m, n, k = sizes
    return m, n, k


def show(result: dict[str, Any]) -> None:
    if "peaks" in result:
        _show_peaks(result)
    if "kernels" in result:
        _show_kernels(result)
    if "runs" in result:
        _show_runs(result)
    if "decoding" in result:
        _show_decoding(result)


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


def _show_kernels(result: dict[str, Any]) -> None:
    rows = [
        (
            run["kernel"],
            run["dtype"],
            run["shape"],
            run["threads"],
            f"{run['median'] * 1e6:.1f} µs",
            f"{run['best'] * 1e6:.1f} µs",
            f"{run['gmacs']:.1f}",
            f"{run['peak_share']:.0%}",
            f"{run['read_gbps']:.1f}" if run["read_gbps"] else "–",
        )
        for run in result["kernels"]
    ]
    headers = (
        "kernel",
        "dtype",
        "shape",
        "threads",
        "median",
        "best",
        "10⁹ multiply-adds/s",
        "of peak",
        "weights, GB/s",
    )
    console.table(f"Kernels, {result['isa']}", headers, rows)
    print(
        "shape: rows × outputs × inputs, or queries × heads × head_dim; peak: the inner instruction alone, same minute"
    )


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
    _show_process(result, "runs one sequence")


def _show_decoding(result: dict[str, Any]) -> None:
    rows = [
        (
            row["threads"],
            row["context"],
            console.milliseconds(row["prefill_seconds"]),
            f"{row['prefill_tokens_per_second']:,.0f}",
            console.milliseconds(row["decode_seconds"]),
            f"{row['decode_tokens_per_second']:,.1f}",
            f"{row['read_share']:.0%}",
            console.megabytes(row["cache_bytes"]),
        )
        for row in result["decoding"]
    ]
    headers = (
        *("threads", "context", "prompt", "tokens/s", "one token more", "tokens/s"),
        *("of reading the weights", "keys and values"),
    )
    console.table(f"{result['name']}, {result['weights']}, {result['isa']}, keys {result['kv']}", headers, rows)
    print("of reading the weights: what reading them once takes at the memory's speed, of the time of a token")
    _show_process(result, "continues a prompt of 16 tokens")


def _show_process(result: dict[str, Any], doing: str) -> None:
    print(f"load: {console.milliseconds(result['load_seconds'])}")
    print(f"peak memory of a process that loads it and {doing}: {console.megabytes(result['peak_rss_bytes'])}")

"""Predict latency and memory on a board that is not at hand, or on this machine, by a cost model."""

from __future__ import annotations

import argparse
from typing import Any

from .. import console
from . import options

HELP = "predict latency and memory on a board"
EXAMPLE = "  pocketformer predict minilm.pocket --board pi5 --lengths 16 128 --threads 4"


def arguments(parser: argparse.ArgumentParser) -> None:
    options.model_file(parser)
    parser.add_argument(
        "--board", default="this", metavar="NAME", help="pi3, pi4, pi5, rk3588, n100, or this machine (default: this)"
    )
    options.lengths(parser)
    options.batches(parser, [1])
    options.kv(parser)
    parser.add_argument("--threads", type=options.positive, metavar="N", help="default: all cores that the board uses")


def execute(args: argparse.Namespace) -> dict[str, Any]:
    from ..engine import Engine
    from ..perf.boards import machine
    from ..perf.predict import predict

    board = machine(args.board)
    engine = Engine(args.model, 1, kv=args.kv)
    image = engine.file.model.get("image")
    if image and args.lengths:
        raise ValueError(f"--lengths was given, but {args.model} takes images of one size; leave it out")
    if image:
        lengths = [image["height"] * image["width"]]
    else:
        lengths = args.lengths or [n for n in (16, 32, 128, 256, 512) if n <= engine.file.graph.max_length]
    threads = args.threads or board.cores
    runs = [
        {"length": length, "batch": batch} | predict(engine, board, [length] * batch, threads)
        for batch in args.batches
        for length in lengths
    ]
    return {
        "model": engine.file.model["name"],
        "weights": engine.file.model["weights"],
        "board": args.board,
        "machine": board.name,
        "isa": board.isa,
        "threads": threads,
        "images": bool(image),
        "runs": runs,
    }


def show(result: dict[str, Any]) -> None:
    def share(run: dict[str, Any], *phases: str) -> str:
        return f"{sum(run['phases'].get(phase, 0.0) for phase in phases) / run['seconds']:.0%}"

    images = result["images"]
    rows = [
        (
            run["batch"],
            run["length"],
            console.milliseconds(run["seconds"]),
            f"{run['batch'] * (1 if images else run['length']) / run['seconds']:,.{int(images)}f}",
            share(run, "linear"),
            share(run, "attention", "split"),
            console.megabytes(run["memory"]["working"]),
            console.megabytes(run["bytes"]),
        )
        for run in result["runs"]
    ]
    title = (
        f"{result['model']}, {result['weights']}, on {result['machine']} ({result['isa']}, {result['threads']} threads)"
    )
    unit = ("pixels", "latency", "images/s") if images else ("tokens", "latency", "tokens/s")
    headers = ("batch", *unit, "linear", "attention", "working memory", "all memory")
    console.table(title, headers, rows)
    print("A prediction, not a measurement. All memory: file, working memory, the keys and values that a decoder")
    print("keeps of a text, and Python with its libraries.")

"""Compress a Hugging Face or sentence-transformers folder to one pocket file."""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from typing import Any

from .. import console

HELP = "compress a checkpoint folder to a pocket file"
EXAMPLE = "  pocketformer compress all-MiniLM-L6-v2 -o minilm.pocket --weights int8"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="folder with config.json and model.safetensors")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="the pocket file to write")
    parser.add_argument(
        "--weights", choices=("int8", "fp32"), default="int8", help="precision (default: int8; fp32 is the reference)"
    )


def execute(args: argparse.Namespace) -> dict[str, Any]:
    from ..compression import compress

    begin = time.perf_counter()
    report = compress(args.model, args.output, weights=args.weights)
    return {"file": args.output, "weights": args.weights, "seconds": time.perf_counter() - begin, **asdict(report)}


def show(result: dict[str, Any]) -> None:
    rows = [
        (stage["name"], console.megabytes(stage["before"]), console.megabytes(stage["after"]))
        for stage in result["stages"]
    ]
    console.table("Parameters", ("stage", "before", "after"), rows)
    worst = max(result["tensors"], key=lambda tensor: float(tensor["error"]))
    if worst["error"]:
        print(f"largest weight error: {worst['error']:.2%} in {worst['name']}")
    print(f"{result['file']}: {console.megabytes(result['file_bytes'])} in {result['seconds']:.1f} s")

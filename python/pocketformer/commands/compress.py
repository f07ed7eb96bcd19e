"""Compress a Hugging Face or sentence-transformers folder, or a GGUF file, to one pocket file."""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from typing import Any

from .. import console

HELP = "compress a checkpoint folder, or a GGUF file, to a pocket file"
EXAMPLE = "  pocketformer compress all-MiniLM-L6-v2 -o minilm.pocket --weights int8"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="folder with config.json and model.safetensors, or a .gguf file")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="the pocket file to write")
    parser.add_argument("--tower", choices=("vision", "text"), help="which half of a CLIP or SigLIP")
    parser.add_argument(
        "--weights",
        choices=("int8", "int4", "fp32"),
        default="int8",
        help="precision (default: int8; int4 is half of it and less exact, fp32 is the reference)",
    )
    parser.add_argument(
        "--table-bits",
        type=int,
        choices=range(3, 9),
        metavar="N",
        help="bits of the table of words, 3 to 8 (default: 8, or 4 with int4)",
    )
    parser.add_argument(
        "--group",
        type=int,
        choices=(0, 16, 32, 64, 128),
        metavar="N",
        help="inputs of a 4-bit weight that share a scale: 16, 32, 64 or 128; 0: all of a channel (default: 64)",
    )
    parser.add_argument(
        "--precision",
        action="append",
        type=precision,
        default=[],
        metavar="NAME=BITS[/GROUP]",
        help="bits, and perhaps the group, of weights by name or pattern, such as 'layers.5.*=8'; may be repeated",
    )
    parser.add_argument(
        "--calibration",
        metavar="FILE",
        help="texts to see what weights are multiplied by, one a line, a tab between those of a pair; or an .npz that "
        "--save-profile wrote (default: sentences of our own)",
    )
    parser.add_argument("--save-profile", metavar="FILE.npz", help="keep what was seen of the texts, to use it again")


def precision(text: str) -> tuple[str, tuple[int, int]]:
    """``NAME=BITS[/GROUP]`` → name, bits and group."""
    name, _, numbers = text.rpartition("=")
    bits, slash, group = numbers.partition("/")
    if not name or not bits.isdecimal() or (slash and not group.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=BITS or NAME=BITS/GROUP, such as 'layers.5.*=4/32'")
    return name, (int(bits), int(group or 0))


def execute(args: argparse.Namespace) -> dict[str, Any]:
    from ..compression import Precision, compress

    begin = time.perf_counter()
    report = compress(
        args.model,
        args.output,
        weights=args.weights,
        tower=args.tower,
        table_bits=args.table_bits,
        group=args.group,
        precision={name: Precision(*numbers) for name, numbers in args.precision} or None,
        calibration=args.calibration,
        save_profile=args.save_profile,
    )
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

"""Compare two pocket files of one model on texts: agreement, bytes and speed."""

from __future__ import annotations

import argparse
from typing import Any

from .. import console
from . import options

HELP = "compare two pocket files on texts"
EXAMPLE = "  pocketformer compare fp32.pocket int8.pocket --input texts.txt"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", metavar="A.pocket", help="the file to compare with, such as one of --weights fp32")
    parser.add_argument("b", metavar="B.pocket", help="the file in question")
    options.texts(parser)
    options.threads(parser)


def execute(args: argparse.Namespace) -> dict[str, Any]:
    from ..perf.compare import compare

    return compare(args.a, args.b, options.read_texts(args), threads=args.threads)


def show(result: dict[str, Any]) -> None:
    first, second = result["files"]
    rows = [
        (
            file["path"],
            file["weights"],
            console.megabytes(file["file_bytes"]),
            f"{file['params']:,}",
            console.milliseconds(file["seconds"] / result["texts"]),
            f"{file['tokens_per_second']:,.0f}",
        )
        for file in result["files"]
    ]
    title = f"Task {result['task']}, {result['texts']} texts"
    console.table(title, ("file", "weights", "size", "parameters", "time a text", "tokens/s"), rows)
    cosine = result["cosine"]
    print(f"cosine: mean {cosine['mean']:.5f}, first percentile {cosine['p1']:.5f}, least {cosine['min']:.5f}")
    if result["agreement"] is not None:
        print(f"the same label, token or span: {result['agreement']:.2%}")
    print(
        f"{second['path']} has {second['file_bytes'] / first['file_bytes']:.0%} of the bytes and takes "
        f"{second['seconds'] / first['seconds']:.0%} of the time"
    )

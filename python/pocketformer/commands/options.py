"""Arguments that several commands share."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def model_file(parser: argparse.ArgumentParser, optional: bool = False) -> None:
    parser.add_argument(
        "model",
        metavar="FILE.pocket",
        nargs="?" if optional else None,
        help="a file that `pocketformer compress` wrote",
    )


def threads(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--threads", type=positive, metavar="N", help="threads to use (default: the CPUs this process may use)"
    )


def texts(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="texts; without any, lines of --input or of stdin")
    parser.add_argument("--input", metavar="FILE", help="read texts from FILE, one a line (- is stdin)")


def read_texts(args: argparse.Namespace) -> list[str]:
    """The texts of the command line, of ``--input`` or of stdin. Raises ValueError when there are none."""
    if args.texts and args.input:
        raise ValueError("texts were given and --input as well; use one of the two")
    if args.texts:
        return list(args.texts)
    if args.input and args.input != "-":
        lines = Path(args.input).read_text(encoding="utf-8").splitlines()
    elif args.input or not sys.stdin.isatty():
        lines = sys.stdin.read().splitlines()
    else:
        raise ValueError("there is nothing to read; give texts as arguments, with --input FILE, or on stdin")
    if not lines:
        raise ValueError("the input is empty; give at least one text")
    return lines


def positive(text: str) -> int:
    value = int(text) if text.isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer of at least 1")
    return value

"""Arguments that several commands share."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..model import Model


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


def kv(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--kv", choices=("int8", "fp16", "fp32"), help="dtype of keys and values (default: as the file says)"
    )


def lengths(parser: argparse.ArgumentParser, default: list[int] | None = None) -> None:
    parser.add_argument(
        "--lengths", type=positive, nargs="+", default=default, metavar="N", help="tokens of each sequence"
    )


def batches(parser: argparse.ArgumentParser, default: list[int] | None = None) -> None:
    parser.add_argument(
        "--batches", type=positive, nargs="+", default=default, metavar="N", help="sequences of each run"
    )


def texts(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "texts",
        nargs="*",
        metavar="TEXT",
        help="texts, or image files and folders of them; without any, lines of --input or of stdin",
    )
    parser.add_argument(
        "--input", metavar="FILE", help="read texts or names of images from FILE, one a line (- is stdin)"
    )


def read_texts(args: argparse.Namespace) -> list[str]:
    """The texts of the command line, of ``--input`` or of stdin. Raises ValueError when there are none."""
    if args.texts and args.input:
        raise ValueError("texts were given and --input as well; use one of the two")
    if args.texts:
        return list(args.texts)
    if args.input and args.input != "-":
        lines = split_lines(args.input, Path(args.input).read_bytes())
    elif args.input or not sys.stdin.isatty():
        lines = split_lines("stdin", sys.stdin.buffer.read())
    else:
        raise ValueError("there is nothing to read; give texts as arguments, with --input FILE, or on stdin")
    if not lines:
        raise ValueError("the input is empty; give at least one text")
    return lines


def load_model(path: str, threads: int | None) -> Model:
    from ..model import load

    return load(path, threads)


def title(result: dict[str, Any]) -> str:
    """The text, or the name of the image's file, that a result is of."""
    return Path(result["image"]).name if "image" in result else str(result["text"])


def split_lines(source: str, content: bytes) -> list[str]:
    """The texts between newlines, without the carriage returns of Windows before them and a mark of the byte order.

    No other character ends a line: the rows of the result are those of the file.
    """
    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    if not lines[-1]:
        lines.pop()
    texts = []
    for number, line in enumerate(lines, 1):
        try:
            texts.append(line.removesuffix(b"\r").decode())
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{source}, line {number} is not UTF-8 (byte 0x{line[error.start]:02x}); convert it, such as with "
                "iconv -f latin1 -t utf-8"
            ) from None
    return texts


def positive(text: str) -> int:
    value = int(text) if text.isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer of at least 1")
    return value

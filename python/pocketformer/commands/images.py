"""What `run` and `encode` do with images: files, folders of them, and raw frames of a camera or a video."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .. import console
from . import options

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..model import Model

TASKS = ("classify_image", "embed_image")


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--frame",
        type=_size,
        metavar="WIDTHxHEIGHT",
        help="--input holds raw frames of this size, RGB, 3 bytes a pixel (- is stdin)",
    )


def _size(text: str) -> tuple[int, int]:
    sides = [int(side) for side in text.split("x") if side.isdecimal()]
    if len(sides) != 2 or text.count("x") != 1 or min(sides) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form WIDTHxHEIGHT, such as 640x480")
    return sides[0], sides[1]


def check(args: argparse.Namespace, task: str, *names: str) -> None:
    """Raises ValueError for options (``names``, of texts) that a model of images does not have, and the reverse."""
    if args.frame is not None and task not in TASKS:
        raise ValueError(f"--frame was given, but the model's task is {task!r}, which takes no images; leave it out")
    for name in names:
        if getattr(args, name) is not None and task in TASKS:
            option = name.replace("_", "-")
            raise ValueError(f"--{option} was given, but the model's task is {task!r}; leave it out")


def files(texts: list[str]) -> list[str]:
    from ..pixels import image_files

    return image_files(texts)


@contextmanager
def frames(args: argparse.Namespace) -> Iterator[Iterator[NDArray[Any]]]:
    """The frames of ``--input``, read when they are asked for."""
    from ..tasks.frames import raw_frames

    if args.texts or args.input is None:
        raise ValueError("--frame is the size of raw frames; give them with --input FILE, or --input - for stdin")
    if args.input == "-":
        yield raw_frames(sys.stdin.buffer, *args.frame)
        return
    with open(args.input, "rb") as file:
        yield raw_frames(file, *args.frame)


def follow(model: Model, stream: Iterable[NDArray[Any]], top_k: int, as_json: bool) -> None:
    """Prints what each frame is as it comes: a line, or with ``as_json`` an object on a line."""
    for number, frame in enumerate(stream):
        if model.task == "embed_image":
            row = model.encode(frame).tolist()
            result: dict[str, Any] = {"frame": number, "embedding": row}
            text = " ".join(f"{value:+.4f}" for value in row[:4]) + " …"
        else:
            labels = [label._asdict() for label in model.classify(frame, top_k=top_k)]
            result = {"frame": number, "labels": labels}
            text = ", ".join(f"{console.shorten(label['label'], 40)} {label['score']:.3f}" for label in labels)
        print(json.dumps(result, ensure_ascii=False) if as_json else f"frame {number}: {text}", flush=True)


def save(path: str, batches: Iterable[NDArray[Any]], shape: tuple[int, ...]) -> int:
    """Writes ``batches``, rows of float32 of ``shape``, to a numpy file as they come; the number of rows."""
    count = 0
    with open(path, "wb") as file:
        file.write(_header(0, shape))
        for batch in batches:
            file.write(batch.tobytes())
            count += len(batch)
        file.seek(0)
        file.write(_header(count, shape))
    return count


def _header(rows: int, shape: tuple[int, ...]) -> bytes:
    """Of version 1.0 of numpy's format, in 128 bytes whatever the number of rows."""
    described = str({"descr": "<f4", "fortran_order": False, "shape": (rows, *shape)}).ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + described.encode("ascii")


def zero_shot(model: Model, texts: str, paths: list[str], args: argparse.Namespace) -> list[dict[str, Any]]:
    """``--labels`` for images, by the text tower in the file ``texts``."""
    from ..tasks.zero_shot_images import TEMPLATES, ZeroShotImageClassifier

    judge = ZeroShotImageClassifier(model, options.load_model(texts, args.threads))  # type: ignore[arg-type]
    found = judge.classify(paths, args.labels, templates=args.template or TEMPLATES, top_k=args.top_k)
    return [{"labels": [label._asdict() for label in labels]} for labels in found]  # type: ignore[union-attr]

"""Embed texts or images with a pocket file."""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from .. import console
from . import images, options

if TYPE_CHECKING:
    from ..model import Model

HELP = "embed texts or images"
EXAMPLE = """  pocketformer encode minilm.pocket "A cat sits on the mat." "It rains."
  pocketformer encode minilm.pocket --input texts.txt -o embeddings.npy
  pocketformer encode dinov2.pocket photos/ -o features.npy
  ffmpeg -i film.mp4 -f rawvideo -pix_fmt rgb24 -s 640x480 - | \\
    pocketformer encode dinov2.pocket --input - --frame 640x480 -o features.npy"""


def arguments(parser: argparse.ArgumentParser) -> None:
    options.model_file(parser)
    options.texts(parser)
    options.threads(parser)
    parser.add_argument("--prompt", metavar="NAME", help="a named prompt of the model, put before each text")
    parser.add_argument("--max-length", metavar="N", type=int, help="tokens at which texts are cut")
    images.arguments(parser)
    parser.add_argument("--pooling", metavar="NAME", help="of images: cls, mean or pooler (default: what there is)")
    parser.add_argument("--patches", action="store_true", help="the features of each image's patches instead")
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE.npy",
        help="save float32 [texts or images, width] as a numpy file, with --patches [images, rows, columns, width]",
    )


def execute(args: argparse.Namespace) -> dict[str, Any]:
    texts = [] if args.frame else options.read_texts(args)
    model = options.load_model(args.model, args.threads)
    images.check(args, model.task, "prompt", "max_length")
    if model.task in ("embed_sparse", "embed_tokens"):
        raise ValueError(f"the model's task is {model.task!r}, with no row for each text; use pocketformer run")
    if model.task in images.TASKS:
        return _images(model, texts, args)
    if args.patches or args.pooling:
        option = "--patches" if args.patches else "--pooling"
        raise ValueError(f"{option} was given, but the model's task is {model.task!r}; leave it out")
    import numpy as np

    embeddings = model.encode(texts, prompt=args.prompt, max_length=args.max_length)
    result: dict[str, Any] = {"texts": len(texts), "width": embeddings.shape[1]}
    if args.output:
        with open(args.output, "wb") as file:  # np.save would append .npy to another name
            np.save(file, embeddings)
        return {**result, "file": args.output}
    rows = zip(texts, embeddings.tolist(), strict=True)
    return {**result, "results": [{"text": text, "embedding": row} for text, row in rows]}


def _images(model: Model, texts: list[str], args: argparse.Namespace) -> dict[str, Any]:
    """Files, or frames; with an output a few of their rows are in memory at a time."""
    names = None if args.frame else images.files(texts)
    given = images.frames(args) if names is None else nullcontext(names)
    with given as stream:
        batches = model.encode_batches(stream, pooling=args.pooling, patches=args.patches)
        shape = (*model.grid, model.width) if args.patches else (model.width,)
        result: dict[str, Any] = {"width": model.width}
        if args.output:
            count = images.save(args.output, batches, shape)
            return {"images": count, **result, "shape": [count, *shape], "file": args.output}
        rows = [row for batch in batches for row in batch.tolist()]
    named = [f"frame {i}" for i in range(len(rows))] if names is None else names
    key = "features" if args.patches else "embedding"
    return {
        "images": len(rows),
        **result,
        "results": [{"image": name, key: row} for name, row in zip(named, rows, strict=True)],
    }


def show(result: dict[str, Any]) -> None:
    if "file" in result:
        shape = result.get("shape") or [result["texts"], result["width"]]
        print(f"{result['file']}: float32 {shape}")
        return
    if result["results"] and "features" in result["results"][0]:
        for entry in result["results"]:
            print(f"{options.title(entry)}: {len(entry['features'])} × {len(entry['features'][0])} patches")
        print("All values: --json, or -o FILE.npy")
        return
    rows = [
        (
            console.shorten(options.title(entry)),
            " ".join(f"{value:+.4f}" for value in entry["embedding"][:4]) + " …",
        )
        for entry in result["results"]
    ]
    console.table(f"Embeddings of {result['width']} dimensions", ("", "first values"), rows)
    print("All values: --json, or -o FILE.npy")

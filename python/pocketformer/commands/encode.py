"""Embed texts or images with a pocket file."""

from __future__ import annotations

import argparse
from typing import Any

from .. import console
from . import options

HELP = "embed texts or images"
EXAMPLE = """  pocketformer encode minilm.pocket "A cat sits on the mat." "It rains."
  pocketformer encode minilm.pocket --input texts.txt -o embeddings.npy
  pocketformer encode dinov2.pocket photos/ -o features.npy"""


def arguments(parser: argparse.ArgumentParser) -> None:
    options.model_file(parser)
    options.texts(parser)
    options.threads(parser)
    parser.add_argument("--prompt", metavar="NAME", help="a named prompt of the model, put before each text")
    parser.add_argument("--max-length", metavar="N", type=int, help="tokens at which texts are cut")
    parser.add_argument(
        "-o", "--output", metavar="FILE.npy", help="save float32 [texts or images, width] as a numpy file"
    )


def execute(args: argparse.Namespace) -> dict[str, Any]:
    import numpy as np

    from ..model import load

    texts, model = options.read_texts(args), load(args.model, args.threads)
    if model.task in ("embed_sparse", "embed_tokens"):
        raise ValueError(f"the model's task is {model.task!r}, with no row for each text; use pocketformer run")
    given = "image" if options.takes_images(model.task) else "text"
    if given == "image":
        from ..tasks.pixels import image_files

        if args.prompt is not None:
            raise ValueError(f"--prompt was given, but the model's task is {model.task!r}; leave it out")
        if args.max_length is not None:
            raise ValueError(f"--max-length was given, but the model's task is {model.task!r}; leave it out")
        texts = image_files(texts)
        embeddings = model.encode(texts)
    else:
        embeddings = model.encode(texts, prompt=args.prompt, max_length=args.max_length)
    result: dict[str, Any] = {f"{given}s": len(texts), "width": embeddings.shape[1]}
    if args.output:
        with open(args.output, "wb") as file:  # np.save would append .npy to another name
            np.save(file, embeddings)
        return {**result, "file": args.output}
    rows = zip(texts, embeddings.tolist(), strict=True)
    return {**result, "results": [{given: text, "embedding": row} for text, row in rows]}


def show(result: dict[str, Any]) -> None:
    if "file" in result:
        count = result.get("images") or result["texts"]
        print(f"{result['file']}: float32 [{count}, {result['width']}]")
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

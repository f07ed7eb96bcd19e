"""Embed texts with a pocket file."""

from __future__ import annotations

import argparse
from typing import Any

from .. import console
from . import options

HELP = "embed texts"
EXAMPLE = """  pocketformer encode minilm.pocket "A cat sits on the mat." "It rains."
  pocketformer encode minilm.pocket --input texts.txt -o embeddings.npy"""


def arguments(parser: argparse.ArgumentParser) -> None:
    options.model_file(parser)
    options.texts(parser)
    options.threads(parser)
    parser.add_argument("--prompt", metavar="NAME", help="a named prompt of the model, put before each text")
    parser.add_argument("--max-length", metavar="N", type=int, help="tokens at which texts are cut")
    parser.add_argument("-o", "--output", metavar="FILE.npy", help="save float32 [texts, width] as a numpy file")


def execute(args: argparse.Namespace) -> dict[str, Any]:
    import numpy as np

    from ..model import load

    texts = options.read_texts(args)
    embeddings = load(args.model, args.threads).encode(texts, prompt=args.prompt, max_length=args.max_length)
    result: dict[str, Any] = {"texts": len(texts), "width": embeddings.shape[1]}
    if args.output:
        with open(args.output, "wb") as file:  # np.save would append .npy to another name
            np.save(file, embeddings)
        return {**result, "file": args.output}
    rows = zip(texts, embeddings.tolist(), strict=True)
    return {**result, "results": [{"text": text, "embedding": row} for text, row in rows]}


def show(result: dict[str, Any]) -> None:
    if "file" in result:
        print(f"{result['file']}: float32 [{result['texts']}, {result['width']}]")
        return
    rows = [
        (console.shorten(entry["text"]), " ".join(f"{value:+.4f}" for value in entry["embedding"][:4]) + " …")
        for entry in result["results"]
    ]
    console.table(f"Embeddings of {result['width']} dimensions", ("text", "first values"), rows)
    print("All values: --json, or -o FILE.npy")

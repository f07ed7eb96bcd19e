"""Searches a folder of photographs by words, or by another photograph, with the two towers of a CLIP or SigLIP.

    pocketformer compress clip-vit-base-patch32 -o clip-vision.pocket --tower vision
    pocketformer compress clip-vit-base-patch32 -o clip-text.pocket --tower text
    python examples/photo_search.py clip-vision.pocket clip-text.pocket photos/ "an owl at night" other-owl.jpg

A photograph is embedded once: rows lie in an index beside the folder, and what is new or has changed since is added.
What cannot be read is named and left out.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

import pocketformer
from pocketformer.pixels import SUFFIXES

TEMPLATE = "a photo of {}."
"""What CLIP was taught with begins mostly like this."""


class Index(NamedTuple):
    """``keys``: name, size and time of each photograph; ``rows``: float32 [photographs, width], each of length 1."""

    keys: list[str]
    rows: NDArray[np.float32]

    @classmethod
    def read(cls, path: Path, width: int) -> Index:
        """What was saved, or nothing yet; rows of another width are those of another model."""
        if path.is_file():
            with np.load(path) as saved:
                if saved["rows"].shape[1] == width:
                    return cls(saved["keys"].tolist(), saved["rows"])
        return cls([], np.zeros((0, width), np.float32))

    def save(self, path: Path) -> None:
        with path.open("wb") as file:
            np.savez(file, keys=np.array(self.keys, str), rows=self.rows)


def key_of(file: Path) -> str:
    facts = file.stat()
    return f"{file}\n{facts.st_size} {facts.st_mtime_ns}"


def updated(model: pocketformer.ImageEmbedder, index: Index, folder: Path) -> Index:
    """``index`` of the photographs that are in ``folder`` now, those below it too; only new ones are embedded."""
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    known = dict(zip(index.keys, index.rows, strict=True))
    found: dict[str, NDArray[np.float32]] = {}
    for file in files:
        key = key_of(file)
        try:
            found[key] = known[key] if key in known else model.encode(file, normalize=True)
        except (ValueError, OSError) as error:
            print(f"left out: {error}", file=sys.stderr)
    rows = np.stack(list(found.values())) if found else np.zeros((0, model.width), np.float32)
    return Index(list(found), rows)


def search(index: Index, query: NDArray[np.float32], count: int) -> list[tuple[str, float]]:
    """The ``count`` photographs nearest to ``query`` with their cosines, best first."""
    scores = index.rows @ query
    best = np.argsort(-scores, kind="stable")[:count]
    return [(index.keys[i].partition("\n")[0], float(scores[i])) for i in best]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Search photographs by words or by a photograph.")
    parser.add_argument("vision", help="the pocket file of the vision tower")
    parser.add_argument("text", help="that of the text tower")
    parser.add_argument("folder", type=Path, help="a folder of photographs")
    parser.add_argument("queries", nargs="+", help="words, or files of images")
    parser.add_argument("--index", type=Path, help="where embeddings are kept (default: FOLDER/.photo-search.npz)")
    parser.add_argument("--top-k", type=int, default=5, help="photographs shown for each query (default: 5)")
    args = parser.parse_args(arguments)
    images = pocketformer.ImageEmbedder.load(args.vision)
    texts = pocketformer.Embedder.load(args.text)
    path = args.index or args.folder / ".photo-search.npz"
    index = updated(images, Index.read(path, images.width), args.folder)
    index.save(path)
    for query in args.queries:
        if Path(query).is_file():
            row = images.encode(query, normalize=True)
        else:
            row = texts.encode(TEMPLATE.format(query), normalize=True)
        print(f"{query}:")
        for name, score in search(index, row, args.top_k):
            print(f"  {score:.3f}  {name}")


if __name__ == "__main__":
    main()

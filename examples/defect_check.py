"""Finds what does not belong: parts of a picture that no good picture has, by the features of a vision transformer.

    pocketformer compress dinov2-small -o dinov2.pocket
    python examples/defect_check.py dinov2.pocket good/ part1.jpg part2.jpg

The patches of the good pictures are the memory; a patch is as odd as it is far from the nearest of them
(PatchCore, Roth et al., arXiv 2106.08265, without its thinning). No training, and no picture of a defect is needed.
"""

from __future__ import annotations

import argparse

import numpy as np
from numpy.typing import NDArray

import pocketformer
from pocketformer.pixels import image_files

Features = NDArray[np.float32]


def remember(model: pocketformer.ImageEmbedder, good: list[str]) -> Features:
    """The patches of the good pictures, float32 [patches, width], each of length 1."""
    return model.encode(good, patches=True, normalize=True).reshape(-1, model.width)


def oddness(model: pocketformer.ImageEmbedder, memory: Features, picture: str) -> Features:
    """Of each patch 1 − its cosine to the nearest in memory, float32 [rows, columns]."""
    patches = model.encode(picture, patches=True, normalize=True)
    return 1 - (patches @ memory.T).max(axis=-1)


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare pictures with good ones, patch by patch.")
    parser.add_argument("model", help="a pocket file of a vision transformer without a pooler, such as DINOv2")
    parser.add_argument("good", help="a folder of good pictures")
    parser.add_argument("pictures", nargs="+", help="pictures to check")
    args = parser.parse_args()
    model = pocketformer.ImageEmbedder.load(args.model)
    memory = remember(model, image_files([args.good]))
    for picture in image_files(args.pictures):
        map_ = oddness(model, memory, picture)
        row, column = np.unravel_index(map_.argmax(), map_.shape)
        print(
            f"{picture}: {map_.max():.3f} at row {row + 1} of {map_.shape[0]}, column {column + 1} of {map_.shape[1]}"
        )


if __name__ == "__main__":
    main()

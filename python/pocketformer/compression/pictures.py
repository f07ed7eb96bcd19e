"""What a model of images is run on while its linears are watched: photos, or pictures that are made up."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from ..graph import Array, Graph
from ..pixels import ImageReader, as_images, image_files
from .calibration import Calibration, calibrate, default_calibration, random_tokens

if TYPE_CHECKING:
    from ..sources.huggingface import Checkpoint

PIXELS = "pixels"
FEWEST, MOST = 4, 128
"""Images that a model is run on: rows of one image are alike, and of small images there would be very many."""
OCTAVES = (2, 4, 8, 16, 32, 64)
"""Spots across, of the random fields that a picture is made of: photos have as much of each (Field 1987)."""


def takes_images(graph: Graph) -> bool:
    """Whether ``graph`` takes the pixels of images alone."""
    return [entry["name"] for entry in graph.inputs] == [PIXELS]


def sample(checkpoint: Checkpoint, given: Any, tokens: int, random: int, held_out: bool | None = None) -> Calibration:
    """What a model is run on: ``given`` texts, token ids or images, about ``tokens`` of them; where that is None our
    own texts, or as many as ``random`` random tokens where these are strange to it, or pictures that are made up.
    ``held_out`` parts what is our own in two that share nothing.

    Raises ValueError for what is of no use, and where there is nothing to be made up for a model.
    """
    seed = int(bool(held_out))
    if takes_images(checkpoint.graph):
        return pictures(checkpoint, given, tokens) if given is not None else made_up_pictures(checkpoint, tokens, seed)
    if given is not None:
        return calibrate(checkpoint, given, tokens)
    return default_calibration(checkpoint, tokens, held_out) or random_tokens(checkpoint.graph, random, seed)


def pixels_of_image(graph: Graph) -> int:
    return graph.max_rows(graph.inputs[0]["domain"])


def rows_of_image(graph: Graph) -> int:
    """Rows that attention or what stands for it reads of an image: those of the largest value that is no map of all
    its pixels."""
    domains = [entry["name"] for entry in graph.domains if "of" in entry]
    return max(map(graph.max_rows, domains), default=1)


def pictures(checkpoint: Checkpoint, samples: Any, tokens: int) -> Calibration:
    """The pixels of ``samples``, images of about ``tokens`` rows together: a random choice where there are more.

    ``samples`` are images as a model of images takes them, or the path of one or of a folder. Raises ValueError where
    there are too few, and what reading an image raises.
    """
    reader, images = ImageReader(checkpoint.model["image"]), list(as_images(samples)[0])
    if all(isinstance(image, str | os.PathLike) for image in images):
        images = list(image_files(images))
    for image in images:
        if isinstance(image, str | os.PathLike) and not os.path.exists(image):
            raise ValueError(
                f"calibration has {os.fspath(image)!r:.60}, which is no file, and this model takes images; give a "
                "folder of them, or their paths"
            )
    count = _count(checkpoint.graph, tokens)
    if len(images) < FEWEST:
        raise ValueError(
            f"calibration has {len(images)} images; it needs at least {FEWEST}: give more, or leave it out"
        )
    chosen = sorted(np.random.default_rng(0).permutation(len(images))[:count])
    return _calibration([reader.pixels(images[i], f"calibration[{i}]") for i in chosen])


def made_up_pictures(checkpoint: Checkpoint, tokens: int, seed: int = 0) -> Calibration:
    """Random pictures of about ``tokens`` rows together, which have as much of coarse and fine as photos have: smooth
    spots of many sizes in colours that go together."""
    reader, rng = ImageReader(checkpoint.model["image"]), np.random.default_rng(seed)
    height, width, channels = reader.shape
    made = []
    for _ in range(_count(checkpoint.graph, tokens)):
        field = np.zeros((height, width, channels))
        for spots in OCTAVES:
            if spots > max(height, width):
                break
            grey = rng.standard_normal((spots, spots, 1)) + 0.4 * rng.standard_normal((spots, spots, channels))
            edges = rng.random() < 0.5  # half of the sizes have edges
            field += rng.uniform(0.3, 1.0) * _grown(np.sign(grey) if edges else grey, height, width, not edges)
        field = rng.uniform(80, 170, channels) + rng.uniform(25, 60) * field / field.std()
        made.append(reader.pixels(np.clip(np.rint(field), 0, 255).astype(np.uint8), "picture"))
    return _calibration(made)


def _count(graph: Graph, tokens: int) -> int:
    return min(max(tokens // rows_of_image(graph), FEWEST), MOST)


def _calibration(images: list[Array]) -> Calibration:
    lengths = np.array([len(image) for image in images], np.int64)
    return Calibration({PIXELS: np.concatenate(images)}, lengths)


def _grown(spots: Array, height: int, width: int, smooth: bool) -> Array:
    """``spots`` [n, n, channels] over a picture [height, width, channels], between their neighbours where smooth."""
    for axis, size in enumerate((height, width)):
        places = (np.arange(size) + 0.5) * spots.shape[axis] / size - 0.5
        if not smooth:
            spots = np.take(spots, np.clip(np.rint(places), 0, spots.shape[axis] - 1).astype(int), axis)
            continue
        below = np.clip(np.floor(places), 0, spots.shape[axis] - 1).astype(int)
        above = np.minimum(below + 1, spots.shape[axis] - 1)
        share = np.clip(places - below, 0, 1).reshape([-1 if i == axis else 1 for i in range(3)])
        spots = np.take(spots, below, axis) * (1 - share) + np.take(spots, above, axis) * share
    return spots

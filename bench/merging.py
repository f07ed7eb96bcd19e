"""What merging tokens costs and gives: ``python -m bench.merging DINOV2_FOLDER --images FASHION_MNIST``.

Each row is one file: its weights, how many tokens became one at each layer, how near its features are to those in fp32
with all tokens (the cosines' mean), how many of the test images a linear probe of its features names, and the
milliseconds of an image on ``--threads``, the least of rounds in which the files take turns. The images are those of
MNIST or Fashion-MNIST, as their four files have them; the probe is a ridge regression to the classes, fitted to
features of the training images from the same file. With ``--size`` images are made so large, whatever the checkpoint's
preprocessing says.
"""

from __future__ import annotations

import argparse
import gzip
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import pocketformer
from pocketformer.perf.machine import describe_machine

ROUNDS = 7
RIDGE = 1e-2
"""Of the features' own variance, added to it."""


@dataclass(frozen=True)
class Row:
    weights: str
    merge: int
    cosine: float
    accuracy: float
    milliseconds: float


def read_idx(path: Path) -> np.ndarray:
    """uint8 [items, …] of a file of MNIST's format."""
    data = gzip.decompress(path.read_bytes())
    shape = np.frombuffer(data, ">i4", data[3], 4)
    return np.frombuffer(data, np.uint8, -1, 4 + 4 * data[3]).reshape(shape)


def read_images(folder: Path, part: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first ``count`` images of ``part``, uint8 [count, 28, 28, 3], and their classes."""
    images = read_idx(folder / f"{part}-images-idx3-ubyte.gz")[:count]
    return np.repeat(images[..., None], 3, axis=3), read_idx(folder / f"{part}-labels-idx1-ubyte.gz")[:count]


def probe_accuracy(train: np.ndarray, train_classes: np.ndarray, test: np.ndarray, test_classes: np.ndarray) -> float:
    """The share of ``test`` that the regression names."""
    mean = train.mean(axis=0)
    x, y = (train - mean).astype(np.float64), np.eye(train_classes.max() + 1)[train_classes]
    gram = x.T @ x
    gram += RIDGE * np.trace(gram) / len(gram) * np.eye(len(gram))
    weight = np.linalg.solve(gram, x.T @ (y - y.mean(axis=0)))
    scores = (test - mean) @ weight + y.mean(axis=0)
    return float((scores.argmax(axis=1) == test_classes).mean())


def resized(folder: Path, size: int, space: Path) -> Path:
    """The checkpoint ``folder`` with a preprocessing to ``size`` × ``size``, in ``space``."""
    copy = space / "checkpoint"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).symlink_to(file.resolve())
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    settings |= {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}}
    (copy / "preprocessor_config.json").unlink()
    (copy / "preprocessor_config.json").write_text(json.dumps(settings))
    return copy


def measure(
    folder: Path,
    images: Path,
    counts: Sequence[int],
    everything: bool,
    train: int,
    test: int,
    threads: int,
    size: int | None,
) -> Iterator[Row]:
    pictures, classes = zip(*(read_images(images, *part) for part in (("train", train), ("t10k", test))), strict=True)
    keys = [("fp32", 0), *(("int8", n) for n in counts), *(("fp32", n) for n in counts if n and everything)]
    with tempfile.TemporaryDirectory() as space:
        if size is not None:
            folder = resized(folder, size, Path(space))
        models: dict[tuple[str, int], Any] = {}
        for weights, count in keys:
            pocket = Path(space) / f"{weights}-{count}.pocket"
            pocketformer.compress(folder, pocket, weights=weights, merge=count or None)
            models[weights, count] = pocketformer.load(pocket, threads=threads)
        shape = (*next(iter(models.values())).image_size, 3)
        picture = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)  # of which nothing is resized
        least = dict.fromkeys(models, float("inf"))
        # A thread's own clock stands while a neighbour has the core.
        clock = time.thread_time if threads == 1 else time.perf_counter
        for _ in range(ROUNDS):
            for key, model in models.items():
                begin = clock()
                model.encode(picture)
                least[key] = min(least[key], clock() - begin)
        exact = np.zeros(0)
        for key, model in models.items():
            features = [model.encode(part) for part in pictures]
            if not exact.size:
                exact = features[1]
            lengths = np.linalg.norm(features[1], axis=1) * np.linalg.norm(exact, axis=1)
            cosine = float(((features[1] * exact).sum(axis=1) / lengths).mean())
            accuracy = probe_accuracy(features[0], classes[0], features[1], classes[1])
            yield Row(*key, cosine, accuracy, 1e3 * least[key])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a checkpoint that embeds images")
    parser.add_argument("--images", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--merge", type=int, nargs="+", default=[0, 4, 8, 16])
    parser.add_argument("--everything", action="store_true", help="merge in fp32 as well")
    parser.add_argument("--train", type=int, default=2000)
    parser.add_argument("--test", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--size", type=int)
    args = parser.parse_args()
    machine = describe_machine()
    print(f"{machine['cpu']}, {machine['isa']}, {args.threads} threads")
    print(f"{'weights':8} {'merge':>5} {'cosine':>7} {'probe':>7} {'ms':>7}")
    counts = (args.train, args.test, args.threads, args.size)
    for row in measure(args.folder, args.images, args.merge, args.everything, *counts):
        line = f"{row.weights:8} {row.merge:5} {row.cosine:7.4f} {row.accuracy:7.2%} {row.milliseconds:7.1f}"
        print(line, flush=True)


if __name__ == "__main__":
    main()

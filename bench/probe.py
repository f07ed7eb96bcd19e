"""Labels of a linear probe over many images: ``python -m bench.probe DINOV2_FOLDER --features FOLDER --size 112``.

Each of ``--files`` is a file's weights, and how its tokens become fewer: ``int8``, ``int8,merge=4``, ``int8,halt=1:2``.
``FOLDER`` keeps the files and what they made of the images, 500 at a time: what is there is not made again, so a run
that was stopped goes on, and runs of several files share one table. A row is how near the class token's features of
the test images are to those of the first file (the cosines' mean), how many labels the probe of ``bench.merging``
names, and the milliseconds of an image on one thread, the least of rounds in which the files take turns over ten
images.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import pocketformer
from bench.merging import ROUNDS, probe_accuracy, read_images, resized
from pocketformer.perf.machine import describe_machine

CHUNK = 500
PARTS = ("train", "t10k")
FILES = ["fp32", "int8", "int8,merge=2", "int8,merge=4", "int8,merge=8", "int8,halt=1:2", "int8,halt=1:1.5"]


def settings(name: str) -> dict[str, Any]:
    """What ``compress`` is asked for by a name such as ``int8,halt=1:2``."""
    weights, *rest = name.split(",")
    asked: dict[str, Any] = {"weights": weights}
    for setting in rest:
        key, _, value = setting.partition("=")
        if key not in ("merge", "halt"):
            raise SystemExit(f"--files: {name!r} sets {key!r}; merge=COUNT and halt=SCALE:CENTER are known")
        asked[key] = int(value) if key == "merge" else tuple(float(part) for part in value.split(":"))
    return asked


def load(checkpoint: Path, name: str, size: int | None, folder: Path) -> Any:
    """The model, from ``folder`` where it has been made before."""
    pocket = folder / f"{name}.pocket"
    if not pocket.exists():
        with tempfile.TemporaryDirectory() as space:
            source = checkpoint if size is None else resized(checkpoint, size, Path(space))
            pocketformer.compress(source, pocket, **settings(name))
    return pocketformer.load(pocket, threads=1)


def features(model: Any, name: str, part: str, pictures: np.ndarray, folder: Path) -> np.ndarray:
    """[images, channels], read where they are and made where they are not."""
    chunks = []
    for i in range(0, len(pictures), CHUNK):
        path = folder / f"{name}-{part}-{i // CHUNK:03}.npy"
        if not path.exists():
            made = folder / f"{name}.part.npy"
            np.save(made, model.encode(pictures[i : i + CHUNK]))
            made.rename(path)
        chunks.append(np.load(path))
    return np.concatenate(chunks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a checkpoint that embeds images")
    parser.add_argument("--features", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--images", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--files", nargs="+", default=FILES)
    parser.add_argument("--train", type=int, default=10000)
    parser.add_argument("--test", type=int, default=10000)
    parser.add_argument("--size", type=int, help="pixels of an edge, whatever the checkpoint says")
    args = parser.parse_args()
    if args.train % CHUNK or args.test % CHUNK:
        parser.error(f"--train and --test are multiples of {CHUNK}")
    args.features.mkdir(parents=True, exist_ok=True)
    models = {name: load(args.folder, name, args.size, args.features) for name in args.files}
    (train, train_classes), (test, test_classes) = (
        read_images(args.images, part, count) for part, count in zip(PARTS, (args.train, args.test), strict=True)
    )
    rows = {}
    for name, model in models.items():
        made = [features(model, name, *part, args.features) for part in zip(PARTS, (train, test), strict=True)]
        rows[name] = (made[1], probe_accuracy(made[0], train_classes, made[1], test_classes))
    least = dict.fromkeys(models, float("inf"))
    for _ in range(ROUNDS):
        for name, model in models.items():
            begin = time.thread_time()  # which stands while a neighbour has the core
            for picture in test[:10]:
                model.encode(picture)
            least[name] = min(least[name], (time.thread_time() - begin) / 10)
    machine = describe_machine()
    print(f"{machine['cpu']}, {machine['isa']}, 1 thread, {args.train} + {args.test} images")
    print(f"{'file':18} {'cosine':>7} {'probe':>7} {'ms':>7}")
    exact = rows[args.files[0]][0]
    for name, (made, accuracy) in rows.items():
        lengths = np.linalg.norm(made, axis=1) * np.linalg.norm(exact, axis=1)
        cosine = float(((made * exact).sum(axis=1) / lengths).mean())
        print(f"{name:18} {cosine:7.4f} {accuracy:7.2%} {1e3 * least[name]:7.1f}")


if __name__ == "__main__":
    main()

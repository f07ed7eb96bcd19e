"""What tokens that halt save: ``python -m bench.halting VIT_FOLDER --gates 1,9 1,3 1,2``.

Each row is one file: the gate by which tokens leave after a layer, the share of the tokens that all layers together
work on, and the milliseconds of an image on ``--threads``, the least of rounds in which the files take turns. The
images are the first of Fashion-MNIST. Only a model that was trained with its gate says by it what an image needs; of
others this shows what the time of so many tokens is.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

import pocketformer
from bench.merging import ROUNDS, read_images
from pocketformer import _core
from pocketformer.perf.machine import describe_machine
from pocketformer.pixels import ImageReader
from pocketformer.pocketfile import read_pocket


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a checkpoint that embeds or classifies images")
    parser.add_argument("--images", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--count", type=int, default=4)
    parser.add_argument("--gates", nargs="+", required=True, metavar="SCALE,CENTER")
    parser.add_argument("--weights", default="int8")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    machine = describe_machine()
    print(f"{machine['cpu']}, {machine['isa']}, {args.threads} threads")
    pictures, _ = read_images(args.images, "t10k", args.count)
    with tempfile.TemporaryDirectory() as space:
        runs = []
        for gate in ("", *args.gates):
            pocket = Path(space) / f"{gate or 'none'}.pocket"
            scale, _, center = gate.partition(",")
            halt = (float(scale), float(center)) if gate else None
            pocketformer.compress(args.folder, pocket, weights=args.weights, halt=halt)
            file = read_pocket(pocket)
            reader = ImageReader(file.model["image"])
            pixels = np.concatenate([reader.pixels(picture, "image") for picture in pictures])
            runs.append((gate, file, _core.Session(file.program), {"pixels": pixels}))
        least = dict.fromkeys((gate for gate, *_ in runs), float("inf"))
        clock = time.thread_time if args.threads == 1 else time.perf_counter
        for _ in range(ROUNDS):
            for gate, _, session, given in runs:
                begin = clock()
                session.run(given, args.threads)
                least[gate] = min(least[gate], (clock() - begin) / args.count)
        print(f"{'gate':8} {'tokens':>7} {'ms':>7}")
        for gate, file, session, _ in runs:
            domains = [state["domain"] for state in file.graph.states]  # one a layer
            share = sum(session.rows()[name] for name in domains) / (session.rows()["tokens"] * len(domains))
            print(f"{gate or 'none':8} {share:7.1%} {1e3 * least[gate]:7.1f}")


if __name__ == "__main__":
    main()

"""Two versions of pocketformer in turn: ``python -m bench.versions OLD NEW MODEL_FOLDER``.

OLD and NEW are folders that hold the package: a checkout's ``python`` with its extension modules built, or what
``pip install --target`` filled. Each compresses MODEL_FOLDER for itself, as formats of files differ, and embeds the
same token ids. Both are started afresh ``--starts`` times: where a process' memory happens to lie is worth several
percent of a short call. A ratio above 1 says that NEW takes longer.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import numpy as np

from bench.peers.peer import ROOT, Child, benchmark_environment
from bench.peers.worker import CLOCKS
from bench.statistics import quartiles

COMPRESS = "import sys, pocketformer; pocketformer.compress(sys.argv[1], sys.argv[2], weights=sys.argv[3])"
RUN = """
import json, sys
import pocketformer
from bench.peers.worker import measure
class Runner:
    run = staticmethod(pocketformer.load(sys.argv[1], threads=int(sys.argv[2])))
print(json.dumps(pocketformer.__file__), flush=True)
for line in sys.stdin:
    print(json.dumps(measure(Runner, **json.loads(line))), flush=True)
"""
VOCABULARY = 20_000  # ids below it are words of every model that is compared
CALL = 0.03  # seconds that a version is asked for at a time


def environment(package: Path) -> dict[str, str]:
    return benchmark_environment() | {"PYTHONPATH": f"{package.resolve()}{os.pathsep}{ROOT}"}


def compressed(package: Path, model: Path, weights: str, out: Path) -> Path:
    command = [sys.executable, "-c", COMPRESS, str(model.resolve()), str(out), weights]
    subprocess.run(command, check=True, env=environment(package), cwd=ROOT)
    return out


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("model", type=Path, help="a folder of a text encoder")
    parser.add_argument("--weights", default="int8")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--shapes", nargs="+", default=["1x16", "1x32", "1x128", "1x512", "8x128"], help="BATCHxTOKENS")
    parser.add_argument("--starts", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each version, shape and start")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    arguments = parser.parse_args(argv)

    print("| threads | batch × tokens | new / old, median | quartiles | old, ms | new, ms |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        packages = (arguments.old, arguments.new)
        files = [
            compressed(package, arguments.model, arguments.weights, Path(folder) / f"{at}.pocket")
            for at, package in enumerate(packages)
        ]
        for threads in arguments.threads:
            times: dict[str, list[tuple[float, float]]] = {shape: [] for shape in arguments.shapes}
            for _ in range(arguments.starts):
                with ExitStack() as stack:
                    versions = []
                    for package, file in zip(packages, files, strict=True):
                        command = [sys.executable, "-W", "ignore", "-c", RUN, str(file), str(threads)]
                        versions.append(Child(str(package), command, environment(package)))
                        stack.callback(versions[-1].close)
                    for shape in arguments.shapes:
                        times[shape] += in_turn(versions, shape, arguments.seconds, arguments.clock)
            for shape, pairs in times.items():
                low, middle, high = quartiles([new / old for old, new in pairs])
                old, new = (median(column) * 1e3 for column in zip(*pairs, strict=True))
                print(
                    f"| {threads} | {shape} | {middle:.3f} | {low:.3f}–{high:.3f} | {old:.2f} | {new:.2f} |", flush=True
                )


def in_turn(versions: Sequence[Child], shape: str, seconds: float, clock: str) -> list[tuple[float, float]]:
    """Fastest calls of short rounds in which each version goes first as often."""
    batch, tokens = map(int, shape.split("x"))
    ids = np.random.default_rng(0).integers(5, VOCABULARY, (batch, tokens)).tolist()
    request = {"ids": ids, "seconds": CALL, "least": 1, "clock": clock}
    pairs: list[tuple[float, float]] = []
    end = time.monotonic() + 2 * seconds
    while len(pairs) < 2 or time.monotonic() < end:
        order = versions if len(pairs) % 2 else versions[::-1]
        fastest = {version.name: min(version.ask(request)) for version in order}
        old, new = (fastest[version.name] for version in versions)
        pairs.append((old, new))
    return pairs


if __name__ == "__main__":
    main()

"""Reads mutated pocket and safetensors files, without coverage guidance but many.

    python fuzz/million.py [FILES] [SEED]

A file that breaks something is kept as ``build/fuzz/findings/million-INDEX``.

Half of the files are pocket files, half safetensors files; each is refused with the documented error, or its tensors
are read and, of a pocket file, the program runs. Prints the counts as JSON.
"""

from __future__ import annotations

import contextlib
import json
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import seeds

from helpers import hostile_files
from pocketformer import _core
from pocketformer.errors import CheckpointError, PocketFileError
from pocketformer.pocketfile import read_pocket
from pocketformer.sources.weights import open_weights


def read_mutated_pocket(path: Path) -> str:
    try:
        file = read_pocket(path)
    except PocketFileError:
        return "refused"
    try:
        inputs: dict[str, Any] = {"ids": np.zeros(1, np.int32), "tokens": np.array([0, 1], np.int64)}
        if file.program.output_kind == "selected":
            inputs["selected"] = np.zeros(1, np.int64)
        if file.program.arena_bytes([1], 1, 1) < 1 << 24:
            _core.Session(file.program).run(inputs)
    except ValueError:
        return "refused by the runtime"
    return "accepted"


def read_mutated_safetensors(path: Path) -> str:
    try:
        weights = open_weights(path.parent)
        for name in weights.entries:
            weights.tensor(name, *weights.shape(name))
    except CheckpointError:
        return "refused"
    return "accepted"


FINDINGS = Path(__file__).resolve().parents[1] / "build/fuzz/findings"
KINDS = (
    ("pocket", seeds.pocket_files, "mutated.pocket", read_mutated_pocket),
    ("safetensors", seeds.safetensors_files, "model.safetensors", read_mutated_safetensors),
)


def main(files: int = 1_000_000, seed: int = 0) -> None:
    counts: Counter[str] = Counter()
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        originals = [(kind, make(), Path(folder) / name, read) for kind, make, name, read in KINDS]
        for index in range(files):
            kind, contents, path, read = originals[index % 2]
            rng = random.Random(seed * files + index)
            content = rng.choice(contents)
            for _ in range(rng.choice((1, 1, 1, 2, 3))):
                with contextlib.suppress(*hostile_files.PAST_MUTATING):
                    content = rng.choice(hostile_files.MUTATIONS)(content, rng) or content
            path.write_bytes(content)
            try:
                counts[f"{kind} {read(path)}"] += 1
            except BaseException:
                FINDINGS.mkdir(parents=True, exist_ok=True)
                (FINDINGS / f"million-{index}").write_bytes(content)
                raise
    print(json.dumps({"files": files, "seed": seed, "seconds": round(time.monotonic() - begin), **counts}, indent=1))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

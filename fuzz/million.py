"""Reads mutated pocket, safetensors and GGUF files, without coverage guidance but many.

    python fuzz/million.py [FILES] [SEED] [KIND ...]

A file that breaks something is kept as ``build/fuzz/findings/million-KIND-INDEX``.

Each KIND, of ``pocket``, ``safetensors`` (both, if none is named) and ``gguf``, has as many of the files. Each file is
refused with the documented error, or its tensors are read and, of a pocket file, the program runs. What takes more
than 4 GB of addresses, or half a minute of a core, is a finding too. Prints the counts as JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import seeds

from helpers import hostile_files, hostile_gguf
from pocketformer import _core
from pocketformer.errors import CheckpointError, PocketFileError, UnsupportedModelError
from pocketformer.packing import pack_graph
from pocketformer.pocketfile import read_pocket
from pocketformer.sources.gguf import load_gguf
from pocketformer.sources.weights import open_weights

MOST_BYTES = 4 << 30
MOST_SECONDS = 30


def read_mutated_pocket(path: Path) -> str:
    try:
        file = read_pocket(path)
    except PocketFileError:
        return "refused"
    try:
        domains = {domain["name"]: domain for domain in file.graph.domains}
        inputs: dict[str, Any] = {}
        for spec in file.graph.inputs:
            domain = domains[spec["domain"]]
            rows = domain["height"] * domain["width"] if domain["kind"] == "grid" else 1
            if spec["dtype"] == "f32":
                inputs[spec["name"]] = np.full((rows, spec["width"]), 0.5, np.float32)
            elif not spec.get("optional"):
                inputs[spec["name"]] = np.zeros(rows, np.int32)
        inputs |= {
            d["name"]: np.array([0, 1], np.int64) for d in domains.values() if d["kind"] == "ragged" and not d.get("of")
        }
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


def read_mutated_gguf(path: Path) -> str:
    try:
        pack_graph(load_gguf(path).graph)
    except (CheckpointError, UnsupportedModelError) as error:
        return f"refused ({type(error).__name__})"
    return "accepted"


def mutated_file(content: bytes, rng: random.Random) -> bytes:
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        with contextlib.suppress(*hostile_files.PAST_MUTATING):
            content = rng.choice(hostile_files.MUTATIONS)(content, rng) or content
    return content


FINDINGS = Path(__file__).resolve().parents[1] / "build/fuzz/findings"
Kind = tuple[Callable[[], list[Any]], str, Callable[[Path], str], Callable[[Any, random.Random], bytes]]
KINDS: dict[str, Kind] = {
    "pocket": (seeds.pocket_files, "mutated.pocket", read_mutated_pocket, mutated_file),
    "safetensors": (seeds.safetensors_files, "model.safetensors", read_mutated_safetensors, mutated_file),
    "gguf": (seeds.gguf_files, "mutated.gguf", read_mutated_gguf, hostile_gguf.mutated),
}


def bound() -> None:
    """Of memory, but under a sanitizer, which takes all addresses; and of the time for one file."""
    if "ASAN_OPTIONS" not in os.environ:
        resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))

    def expired(*_: object) -> None:
        raise TimeoutError(f"more than {MOST_SECONDS} s of a core for one file")

    signal.signal(signal.SIGPROF, expired)


def main(files: int = 1_000_000, seed: int = 0, kinds: tuple[str, ...] = ("pocket", "safetensors")) -> None:
    counts: Counter[str] = Counter()
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        originals = [
            (kind, make(), Path(folder) / name, *rest) for kind in kinds for make, name, *rest in [KINDS[kind]]
        ]
        bound()
        for index in range(files):
            kind, contents, path, read, mutate = originals[index % len(kinds)]
            rng = random.Random(seed * files + index)
            content = mutate(rng.choice(contents), rng)
            path.unlink(missing_ok=True)  # an earlier file may still be mapped
            path.write_bytes(content)
            try:
                signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)
                counts[f"{kind} {read(path)}"] += 1
            except BaseException:
                FINDINGS.mkdir(parents=True, exist_ok=True)
                (FINDINGS / f"million-{kind}-{index}").write_bytes(content)
                raise
    signal.setitimer(signal.ITIMER_PROF, 0)
    print(json.dumps({"files": files, "seed": seed, "seconds": round(time.monotonic() - begin), **counts}, indent=1))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]), *([tuple(sys.argv[3:])] if sys.argv[3:] else []))

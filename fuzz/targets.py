"""What the Python fuzzers feed: files and arguments made of arbitrary bytes.

    python fuzz/targets.py TARGET [LIBFUZZER OPTION | CORPUS FOLDER] ...

A target returns when its input was refused with the error that the documentation names; anything else escapes and is
a finding. ``scripts/fuzz.sh`` runs them with the sanitizers.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import atheris
import numpy as np

with atheris.instrument_imports(include=["pocketformer"]):
    import bindings

    from pocketformer import _core
    from pocketformer.errors import CheckpointError, PocketFileError
    from pocketformer.pocketfile import PocketFile, read_pocket
    from pocketformer.sources.weights import open_weights
    from pocketformer.tasks.text import TextReader

import seeds

from helpers import hostile_files

MEMORY = Path(os.environ.get("TMPDIR", "/dev/shm")) / f"pocketformer-fuzz-{os.getpid()}"
TEXTS = ["a cat sat", "A" * 300, "\u0130\u00df\U0001f600\x00\u200d", ""]


def pocket(content: bytes) -> None:
    """A pocket file: refused, or it runs and tokenizes."""
    path = MEMORY / "fuzzed.pocket"
    path.write_bytes(content)
    try:
        file = read_pocket(path)
        reader = TextReader(file, 1)
    except PocketFileError:
        return
    with contextlib.suppress(ValueError):  # an input that the fuzzer renamed
        run(file)
    with contextlib.suppress(ValueError):
        reader.sequences(["a cat sat"])


def run(file: PocketFile) -> None:
    program = file.program
    lengths = [1, min(3, file.graph.max_length)]
    offsets = np.cumsum([0, *lengths], dtype=np.int64)
    ids = (np.arange(offsets[-1]) % max(file.graph.vocab_size, 1)).astype(np.int32)
    inputs = {"ids": ids, "tokens": offsets}
    if program.output_kind == "selected":
        inputs["selected"] = np.zeros(1, np.int64)
    if program.arena_bytes(lengths, 1, 1) < 1 << 24:
        _core.Session(program).run(inputs)


def safetensors(content: bytes) -> None:
    """A checkpoint's weights: refused, or every tensor is read."""
    (MEMORY / "model.safetensors").write_bytes(content)
    try:
        weights = open_weights(MEMORY)
    except CheckpointError:
        return
    for name in weights.entries:
        with contextlib.suppress(CheckpointError):
            weights.tensor(name, *weights.shape(name))


@cache
def host() -> PocketFile:
    path = MEMORY / "host.pocket"
    path.write_bytes(seeds.pocket_files()[0])
    return read_pocket(path)


def tokenizer(content: bytes) -> None:
    """The text of tokenizer.json: refused, or every text is tokenized."""
    reader = TextReader(replace(host(), _tokenizer=np.frombuffer(content, np.uint8)), 1)
    for text in TEXTS:
        with contextlib.suppress(PocketFileError, ValueError):
            reader.sequences([text])


TARGETS = {"pocket": pocket, "safetensors": safetensors, "tokenizer": tokenizer, "bindings": bindings.call}


def mutate_file(content: bytes, most: int, seed: int) -> bytes:
    """Keeps the header readable half of the time, or nothing behind it would ever be reached."""
    rng = random.Random(seed)
    try:
        changed = rng.choice(hostile_files.MUTATIONS)(content, rng) if rng.random() < 0.5 else content
    except hostile_files.PAST_MUTATING:
        changed = content
    return bytes(atheris.Mutate(content, most)) if changed == content or len(changed) > most else changed


def mutate_json(content: bytes, most: int, seed: int) -> bytes:
    rng = random.Random(seed)
    try:
        record = json.loads(content)
        hostile_files.lie(record, rng)
        changed = json.dumps(record).encode()
    except hostile_files.PAST_MUTATING:
        changed = content
    return bytes(atheris.Mutate(content, most)) if rng.random() < 0.3 or len(changed) > most else changed


MUTATORS = {"pocket": mutate_file, "safetensors": mutate_file, "tokenizer": mutate_json}


def main() -> None:
    name = sys.argv.pop(1)
    MEMORY.mkdir()
    try:
        atheris.Setup(sys.argv, TARGETS[name], custom_mutator=MUTATORS.get(name))
        atheris.Fuzz()
    finally:
        shutil.rmtree(MEMORY)


if __name__ == "__main__":
    main()

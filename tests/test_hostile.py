"""Seeded mutations of a pocket file: each is refused with PocketFileError or reads as a valid file."""

from __future__ import annotations

import json
import random
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pocket_helpers import MODEL, TEXT, TOKENIZER_JSON, tiny_graph
from pocketformer.compress.pack import pack_graph
from pocketformer.compress.quantize import quantize_graph
from pocketformer.errors import PocketFileError
from pocketformer.pocketfile import read_pocket, write_pocket

CASES = 500  # of each mutation below

LIES: list[Any] = [
    *(
        None,
        True,
        False,
        -1,
        0,
        1,
        2,
        3,
        15,
        16,
        17,
        63,
        64,
        65,
        255,
        256,
        257,
        2**31 - 1,
        2**31,
        2**32,
        2**63,
        2**64,
        10**40,
    ),
    *(0.5, -0.5, 1e38, 1e39, 1e308, "", "x", "ids", "int8", "fp32", "F32", "I8", "tokens", [], [0], [[]], {}, {"a": 1}),
]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("hostile") / "tiny.pocket"
    graph = pack_graph(quantize_graph(tiny_graph(task="fill_mask", relative=True, layers=1)))
    write_pocket(path, graph, MODEL, TEXT, TOKENIZER_JSON)
    return path.read_bytes()


def header_end(content: bytes) -> int:
    return 8 + int(struct.unpack("<Q", content[:8])[0])


def truncate(content: bytes, rng: random.Random) -> bytes:
    end = rng.choice((len(content), header_end(content), 64))
    return content[: rng.randrange(end)]


def flip_header(content: bytes, rng: random.Random) -> bytes:
    return flip(content, rng, 0, header_end(content))


def flip_data(content: bytes, rng: random.Random) -> bytes:
    return flip(content, rng, header_end(content), len(content))


def flip(content: bytes, rng: random.Random, begin: int, end: int) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8))):
        changed[rng.randrange(begin, end)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def lie_in_entry(content: bytes, rng: random.Random) -> bytes:
    """One number, name or list in one tensor's entry is another."""
    header = json.loads(content[8 : header_end(content)])
    name = rng.choice([name for name in header if name != "__metadata__"])
    lie(header[name], rng)
    return rebuilt(header, content)


def lie_in_metadata(content: bytes, rng: random.Random) -> bytes:
    """One value of the graph, or of the model's or the text's description, is another."""
    header = json.loads(content[8 : header_end(content)])
    metadata = header["__metadata__"]
    key = rng.choice(("graph", "graph", "graph", "model", "text"))
    described = json.loads(metadata[key])
    lie(described, rng)
    metadata[key] = json.dumps(described)
    return rebuilt(header, content)


def lie(record: Any, rng: random.Random) -> None:
    """Replaces, removes, doubles or swaps one thing somewhere below ``record``."""
    keys = list(record) if isinstance(record, dict) else list(range(len(record)))
    if not keys:
        return
    key = rng.choice(keys)
    if isinstance(record[key], dict | list) and record[key] and rng.random() < 0.8:
        lie(record[key], rng)
        return
    action = rng.randrange(6)
    if action == 0:
        del record[key]
    elif action == 1:
        record[key], record[other] = record[other := rng.choice(keys)], record[key]
    elif action == 2 and isinstance(record, list):
        record.append(record[key])
    elif action == 3 and isinstance(record[key], int):
        record[key] += rng.choice((-1, 1, 16, 64, 2**31))
    else:
        record[key] = rng.choice(LIES)


def rebuilt(header: dict[str, Any], content: bytes) -> bytes:
    encoded = json.dumps(header).encode()
    encoded = encoded.ljust(-(-(8 + len(encoded)) // 64) * 64 - 8)
    return struct.pack("<Q", len(encoded)) + encoded + content[header_end(content) :]


@pytest.mark.parametrize("mutate", [truncate, flip_header, flip_data, lie_in_entry, lie_in_metadata])
def test_mutations(mutate: Callable[[bytes, random.Random], bytes], original: bytes, tmp_path: Path) -> None:
    rng = random.Random(mutate.__name__)
    path = tmp_path / "mutated.pocket"
    refused = 0
    tracemalloc.start()
    try:
        for _ in range(CASES):
            path.write_bytes(mutate(original, rng))
            try:
                file = read_pocket(path)
            except PocketFileError:
                refused += 1
            else:
                file.tokenizer()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16 * len(original)
    expected = {"truncate": CASES, "flip_header": CASES // 2, "flip_data": 1, "lie_in_entry": CASES // 2}
    assert refused >= expected.get(mutate.__name__, CASES // 2)


def test_a_lying_length_allocates_nothing(tmp_path: Path) -> None:
    path = tmp_path / "lying.pocket"
    path.write_bytes(struct.pack("<Q", 99_999_992) + b"{}" * 100)
    tracemalloc.start()
    try:
        with pytest.raises(PocketFileError, match="only 200 follow"):
            read_pocket(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000

"""Seeded mutations of a pocket file: each is refused with PocketFileError or reads as a valid file."""

from __future__ import annotations

import json
import random
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.graphs import MODEL, TEXT, TOKENIZER_JSON, tiny_graph
from helpers.hostile_files import flip_data, flip_header, header_end, lie_in_entry, lie_in_metadata, rebuilt, truncate
from helpers.programs import quantize_graph
from pocketformer.errors import CheckpointError, PocketFileError
from pocketformer.packing import pack_graph
from pocketformer.pocketfile import read_pocket, write_pocket
from pocketformer.sources.weights import open_weights

CASES = 500  # of each mutation below


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("hostile") / "tiny.pocket"
    graph = pack_graph(quantize_graph(tiny_graph(task="fill_mask", relative=True, layers=1)))
    write_pocket(path, graph, MODEL, TEXT, TOKENIZER_JSON)
    return path.read_bytes()


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


def test_an_empty_tensor_of_impossible_shape(original: bytes, tmp_path: Path) -> None:
    """Its bytes fit, as there are none; numpy has no array of that shape."""
    header = json.loads(original[8 : header_end(original)])
    path = tmp_path / "empty.pocket"
    for shape in ([0, 2**62], [0, 2**62, 2**62]):
        header["empty"] = {"dtype": "I8", "shape": shape, "data_offsets": [0, 0]}
        path.write_bytes(rebuilt(header, original))
        with pytest.raises(PocketFileError, match="'shape' is a list of"):
            read_pocket(path)
        single = json.dumps({"empty": header["empty"]}).encode()
        (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(single)) + single)
        with pytest.raises(CheckpointError, match="'empty' has the shape"):
            open_weights(tmp_path)

"""BigBird's block-sparse attention equals transformers in evaluation; small mistakes do not pass.

test_families.py has its heads, where attention is full.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.engines import ENGINES, native, native_packed
from helpers.kernels import aligned
from helpers.torch_models import Inputs, build, deviation, torch_outputs
from pocketformer import _core
from pocketformer.compression import compress_graph
from pocketformer.errors import CheckpointError, UnsupportedModelError
from pocketformer.graph import Array, Graph
from pocketformer.sources.huggingface import load_checkpoint

# The last ones are seen whole. From a text that is, transformers keeps full attention for all that follow.
LENGTHS = (1100, 1024, 768, 705, 704, 703)
SMALL = (1, 10, 55, 56, 57, 64, 65, 72, 73, 100, 131)  # of blocks of 8
SIZES = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48, "max_position_embeddings": 4096}
Case = tuple[Graph, Inputs, Array]


def sparse(task: str, folder: Path, **options: Any) -> torch.nn.Module:
    return build("big_bird", task, folder, **{**SIZES, "attention_type": "block_sparse", **options})


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("big_bird")
    model, inputs = sparse("tag", folder), Inputs.random(LENGTHS, 2)
    return load_checkpoint(folder).graph, inputs, torch_outputs(model, inputs, "tag")


def test_parity_around_the_edges_of_blocks(case: Case) -> None:
    graph, inputs, wanted = case
    assert graph.max_length == 4096
    for engine in ENGINES.values():
        assert deviation(engine(graph, inputs.ids, inputs.lengths, inputs.types), wanted) <= 1


@pytest.mark.parametrize("drawn", [1, 2])
def test_parity_of_blocks_of_other_sizes(tmp_path: Path, drawn: int) -> None:
    options = {"block_size": 8, "num_random_blocks": drawn, "max_position_embeddings": 136}
    model = sparse("tag", tmp_path, **options)
    inputs = Inputs.random(SMALL[::-1], 2)
    actual = native(load_checkpoint(tmp_path).graph, inputs.ids, inputs.lengths, inputs.types)
    assert deviation(actual, torch_outputs(model, inputs, "tag")) <= 1


@pytest.mark.slow
def test_parity_of_a_whole_document(tmp_path: Path) -> None:
    model, inputs = sparse("answer", tmp_path), Inputs.random((4096,), 2)
    actual = native(load_checkpoint(tmp_path).graph, inputs.ids, inputs.lengths, inputs.types)
    assert deviation(actual, torch_outputs(model, inputs, "answer")) <= 1


MUTATIONS: dict[str, dict[str, int]] = {
    "a block of the window more": {"block_window": 2},
    "no neighbours": {"block_window": 0},
    "the first block counts once": {"block_repeats": 0},
    "the first block counts once too often": {"block_repeats": 4},
    "no global blocks": {"block_globals": 0, "block_repeats": 0},
    "blocks of a row more": {"block": 65},
    "sparse a block earlier": {"block_dense": 640},
    "sparse a row later": {"block_dense": 705},
    "full": {"block": 0, "block_window": 0, "block_globals": 0, "block_repeats": 0, "block_dense": 0},
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_mutations_break_parity(case: Case, mutation: str) -> None:
    graph, inputs, wanted = case
    graph = copy.deepcopy(graph)
    for op in graph.ops:
        if op["op"] == "attention":
            assert (op["block"], op["block_repeats"], op["block_dense"]) == (64, 3, 704)
            op.update(MUTATIONS[mutation])
    assert deviation(native(graph, inputs.ids, inputs.lengths, inputs.types), wanted) > 1


@pytest.mark.slow
def test_int8_is_near_and_the_same_bytes_everywhere(case: Case) -> None:
    """On every ISA, with any number of threads, alone and in a batch; and near the interpreter of what is rounded."""
    graph, lengths = case[0], (705, 1100, 704)
    inputs = Inputs.random(lengths, 2)
    packed, _ = compress_graph(graph)
    packed.params = {name: aligned(array) for name, array in packed.params.items()}
    result = native_packed(packed, inputs.ids, inputs.lengths, inputs.types)
    exact = native(graph, inputs.ids, inputs.lengths, inputs.types)
    assert (result * exact).sum() / np.linalg.norm(result) / np.linalg.norm(exact) > 0.999
    near = ENGINES["reference"](packed, inputs.ids, inputs.lengths, inputs.types, None, None)
    assert np.abs(result - near).max() < 0.05 * np.abs(near).max()
    feeds = {"ids": inputs.ids.astype(np.int32), "types": inputs.types.astype(np.int32)}
    feeds["tokens"] = np.concatenate([[0], np.cumsum(lengths)])
    for isa in _core.isas():
        for threads, mode, block in ((1, "rows", 0), (3, "columns", 0), (2, "rows", 37)):
            session = _core.Session(_core.Program(packed.description(), packed.params, isa), mode, block)
            assert session.run(feeds, threads).tobytes() == result.tobytes(), (isa, threads, mode)
    at = slice(705, 705 + 1100)
    alone = native_packed(packed, inputs.ids[at], lengths[1:2], inputs.types[at])
    assert alone.tobytes() == result[at].tobytes()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rescale_embeddings": True}, "'rescale_embeddings' is True"),
        ({"attention_type": "local"}, "'attention_type'"),
        ({"attention_type": "block_sparse", "num_random_blocks": 0}, "'num_random_blocks'"),
    ],
)
def test_what_is_not_honoured_is_refused(tmp_path: Path, change: dict[str, object], words: str) -> None:
    build("big_bird", "embed", tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises((CheckpointError, UnsupportedModelError), match=words):
        load_checkpoint(tmp_path)

"""Whether the runtime comes near to the interpreter, on texts of odd lengths."""

from __future__ import annotations

import itertools

import numpy as np

from helpers.programs import program
from pocketformer import _core, reference
from pocketformer.graph import Array, Graph

LENGTHS = (1, 40, 17, 3, 33)


def floats(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float32)


def text_inputs() -> dict[str, Array]:
    ids = np.random.default_rng(1).integers(0, 50, sum(LENGTHS)).astype(np.int32)
    return {"ids": ids, "tokens": np.concatenate([[0], np.cumsum(LENGTHS)]).astype(np.int64)}


def agree(graph: Graph, inputs: dict[str, Array], isa: str, tolerance: float = 2e-5) -> Array:
    """The runtime near the interpreter, and the same bytes however the work is divided."""
    expected = reference.run(graph, inputs)
    compiled = program(graph, isa)
    result = _core.Session(compiled).run(inputs)
    scale = max(1.0, float(np.abs(expected).max()))
    assert np.abs(result - expected).max() <= tolerance * scale
    for threads, mode, block_rows in itertools.product([1, 2, 3], ["rows", "columns"], [0, 5]):
        other = _core.Session(compiled, mode, block_rows).run(inputs, threads)
        assert other.tobytes() == result.tobytes(), (threads, mode, block_rows)
    return result

"""The promise on the real model: same file, same input, same bits, whatever runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pocketformer import _core
from pocketformer.pocketfile import read_pocket

LENGTHS = [1, 2, 7, 16, 33, 5, 64, 129]


@pytest.fixture(scope="module", params=["minilm_int8", "minilm_fp32"])
def graph(request: pytest.FixtureRequest) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    path: Path = request.getfixturevalue(request.param)
    graph = read_pocket(path).graph
    return graph.description(), graph.params


def embed(
    program: _core.Program, sequences: list[NDArray[np.int32]], threads: int = 1, mode: str = "auto"
) -> list[bytes]:
    offsets = np.concatenate([[0], np.cumsum([len(s) for s in sequences])]).astype(np.int64)
    session = _core.Session(program, mode=mode)
    rows = session.run({"ids": np.concatenate(sequences), "tokens": offsets}, threads)
    return [row.tobytes() for row in rows]


def test_minilm_gives_the_same_bytes(graph: tuple[dict[str, Any], dict[str, NDArray[Any]]]) -> None:
    rng = np.random.default_rng(7)
    sequences = [rng.integers(0, 30522, n).astype(np.int32) for n in LENGTHS]
    best = _core.Program(*graph)
    expected = embed(best, sequences)
    assert len(set(expected)) == len(LENGTHS)
    for threads in (2, 3, 8):
        for mode in ("rows", "columns"):
            assert embed(best, sequences, threads, mode) == expected
    assert [embed(best, [sequence])[0] for sequence in sequences] == expected
    assert embed(best, sequences[::-1])[::-1] == expected
    for isa in _core.isas():
        assert embed(_core.Program(*graph, isa=isa), sequences, 2) == expected, isa

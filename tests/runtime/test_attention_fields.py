"""What attention is told beside its queries and keys: caps, first keys, global rows, blocks."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from helpers.agreement import agree, floats, text_inputs
from helpers.programs import packed, program, quantize_graph
from pocketformer import _core
from pocketformer.graph import BlockSparse, Graph, GraphBuilder, Table

every_isa = pytest.mark.parametrize("isa", _core.isas())


@every_isa
def test_turned_queries_and_keys_attend_by_distance(isa: str) -> None:
    build = GraphBuilder.text(50, 0, 40)
    x = build.embed([Table("words", floats(50, 48), "ids")])
    frequencies = (1.0 / 10 ** (np.arange(8) / 8)).astype(np.float32)
    q, k, v = (build.columns(x, begin, 16) for begin in (0, 16, 32))
    q, k = (build.rope(part, frequencies, name="f", head_dim=16) for part in (q, k))
    mixed = build.attend(q, build.store(k, v, heads=1, head_dim=16), scale=0.5, causal=True)
    agree(build.build(mixed), text_inputs(), isa)


@every_isa
@pytest.mark.parametrize("kept", [False, True])
def test_capped_scores_and_logits(isa: str, kept: bool) -> None:
    build = GraphBuilder.text(50, 0, 40)
    x = build.embed([Table("words", 2 * floats(50, 63), "ids")])
    q, k, v = (build.columns(x, begin, 21) for begin in (0, 21, 42))
    state = build.store(k, v, heads=3, head_dim=7, kept=kept)
    mixed = build.attend(q, state, scale=1.0, causal=kept, left=12, softcap=4.0)
    graph = build.build(build.softcap(build.linear(mixed, floats(20, 21), name="out"), 3.0))
    result = agree(graph, text_inputs(), isa, 4e-5)
    assert 2.9 < np.abs(result).max() <= 3
    plain = replace(graph, ops=[{key: op[key] for key in op if key != "softcap"} for op in graph.ops])
    assert np.abs(_core.Session(program(plain, isa)).run(text_inputs()) - result).max() > 0.5
    agree(quantize_graph(graph), text_inputs(), isa, 0.05)


def test_a_cap_beside_a_bias_is_refused() -> None:
    build = GraphBuilder.text(50, 0, 40)
    x = build.embed([Table("words", floats(50, 48), "ids")])
    q, k, v = (build.columns(x, begin, 16) for begin in (0, 16, 32))
    state = build.store(k, v, heads=2, head_dim=8)
    bias = ("bias", np.pad(floats(2, 79), ((0, 0), (0, 1))))
    graph = build.build(build.attend(q, state, scale=0.5, bias=bias, softcap=3.0))
    with pytest.raises(ValueError, match="'softcap' is 3 beside a bias"):
        program(graph)


@every_isa
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("window", [{}, {"left": 5, "right": 5}, {"causal": True}])
def test_queries_that_see_the_first_keys_alone(isa: str, biased: bool, window: dict[str, Any]) -> None:
    """As padding that is scored but not attended to; alone as in a batch."""
    build = GraphBuilder.text(50, 0, 150)
    x = build.embed([Table("words", floats(50, 48), "ids")])
    bias = ("bias", np.pad(floats(2, 299), ((0, 0), (0, 5)))) if biased else None
    q, k, v = (build.columns(x, begin, 16) for begin in (0, 16, 32))
    state = build.store(k, v, heads=2, head_dim=8)
    mixed = build.attend(q, state, scale=0.5, bias=bias, **window)
    build.attend_to_first("keys", 150)
    graph = build.build(mixed)
    inputs = text_inputs()
    seen = np.array([0, 7, 17, 1, 150], np.int32)
    part = agree(graph, {**inputs, "keys": seen}, isa)
    assert part[-1].tobytes() == agree(graph, inputs, isa)[-1].tobytes()
    for i, (begin, end) in enumerate(itertools.pairwise(inputs["tokens"])):
        alone = {
            "ids": inputs["ids"][begin:end].copy(),
            "tokens": np.array([0, end - begin]),
            "keys": seen[i : i + 1].copy(),
        }
        assert _core.Session(program(graph, isa)).run(alone).tobytes() == part[begin:end].tobytes()


def global_graph(max_length: int = 40, **options: Any) -> Graph:
    build = GraphBuilder.text(50, 0, max_length)
    x = build.embed([Table("words", floats(50, 36), "ids")])
    own, qkv = (build.linear(x, floats(72, 36, seed=i) / 6, name=f"qkv{i}") for i in range(2))
    build.sequence_index("globals", max_length + 1)
    options = {"left": 3, "right": 2, "globals": 1, "more_globals": "globals", "global_qkv": own, **options}
    return build.build(build.attention(qkv, heads=2, head_dim=12, **options))


@every_isa
@pytest.mark.parametrize("int8", [False, True], ids=["fp32", "int8"])
@pytest.mark.parametrize("more", [(0, 0, 0, 0, 0), (0, 5, 16, 1, 20), (40, 40, 40, 40, 40)])
def test_global_rows(isa: str, int8: bool, more: tuple[int, ...]) -> None:
    """None more, some, and all of a sequence, more than it has."""
    graph = quantize_graph(global_graph()) if int8 else global_graph()
    inputs = {**text_inputs(), "globals": np.array(more, np.int32)}
    agree(graph, inputs, isa, 2e-2 if int8 else 2e-5)
    if not any(more):
        agree(graph, text_inputs(), isa, 2e-2 if int8 else 2e-5)


@every_isa
def test_global_rows_with_a_bias_and_without_projections_of_their_own(isa: str) -> None:
    bias = ("bias", floats(2, 80))
    agree(global_graph(global_qkv=None, bias=bias, more_globals=None), text_inputs(), isa)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"causal": True}, "field 'globals' is given beside 'causal', 'keys' or a kept state"),
        ({"keys": "globals"}, "field 'globals' is given beside"),
        ({"more_globals": "ids"}, "field 'more_globals' names 'ids', which has no index for each sequence"),
        ({"global_state": "state9"}, "field 'global_state' names 'state9', which is no state"),
        ({"global_q": "linear1"}, "field 'global_q' names 'linear1' of another width|which is not from a"),
        ({"globals": 0, "more_globals": None}, "field 'global_q' or 'global_state' is given; no row is global"),
        ({"globals": -1}, "field 'globals' is -1"),
    ],
)
def test_global_rows_that_cannot_be_are_refused(change: dict[str, Any], words: str) -> None:
    graph = packed(global_graph())
    graph.ops[-1].update({key: value for key, value in change.items() if value is not None})
    for key, value in change.items():
        if value is None:
            graph.ops[-1].pop(key)
    with pytest.raises(ValueError, match=words):
        _core.Program(graph.description(), graph.params)


def block_graph(**fields: int) -> Graph:
    build = GraphBuilder.text(50, 0, 40)
    qkv = build.linear(build.embed([Table("words", floats(50, 36), "ids")]), floats(72, 36) / 6, name="qkv")
    return build.build(build.attention(qkv, heads=2, head_dim=12, blocks=BlockSparse(**fields)))


@every_isa
@pytest.mark.parametrize("int8", [False, True], ids=["fp32", "int8"])
@pytest.mark.parametrize(
    "fields",
    [
        {"size": 1, "repeats": 3},
        {"size": 4, "repeats": 2, "dense": 16},
        {"size": 3, "window": 0, "globals": 2},
        {"size": 7, "window": 2, "globals": 0, "repeats": 5},
        {"size": 16, "globals": 9, "window": 1 << 30},
        {"size": 1 << 30, "globals": 1 << 30, "repeats": 1024},
    ],
    ids=str,
)
def test_blocks(isa: str, int8: bool, fields: dict[str, int]) -> None:
    graph = block_graph(**fields)
    agree(quantize_graph(graph) if int8 else graph, text_inputs(), isa, 2e-2 if int8 else 2e-5)


def test_work_of_blocks_is_that_of_the_keys_they_name() -> None:
    """Of 40 rows in blocks of 4: 2 · 4 queries see all; 2 · 4 beside them 4 blocks, the other 6 · 4 five."""
    compiled = program(block_graph(size=4, repeats=3, dense=39))
    (step,) = (step for step in compiled.work([40], 0) if step["kind"] == "attention")
    assert step["scores"] == 2 * (8 * 40 + 8 * 16 + 24 * 20)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"left": 3}, "field 'block' is 4 beside 'causal', 'left'"),
        ({"causal": True}, "field 'block' is 4 beside"),
        ({"globals": 1}, "field 'block' is 4 beside"),
        ({"block": 0}, "field 'block' is 0 beside a 'block_…' that is not"),
        ({"block": -1}, "field 'block' is -1"),
        ({"block_repeats": 1025}, "field 'block_repeats' is 1025"),
    ],
)
def test_blocks_that_cannot_be_are_refused(change: dict[str, Any], words: str) -> None:
    graph = packed(block_graph(size=4))
    graph.ops[-1].update(change)
    with pytest.raises(ValueError, match=words):
        _core.Program(graph.description(), graph.params)


@pytest.mark.parametrize("window", [3, 300, -1])
def test_memory_grows_with_rows_times_channels(window: int) -> None:
    """However long a sequence is, and whatever it looks at: no score is kept of any pair of tokens."""
    compiled = program(quantize_graph(global_graph(32768, left=window, right=window)))
    lengths = np.array([1024, 2048, 8192, 32768])
    for threads in (1, 2):
        taken = np.array([compiled.arena_bytes([int(n)], threads) for n in lengths])
        each = np.diff(taken) / np.diff(lengths)
        assert each.max() <= 1.01 * each.min()
        assert each.max() < 4 * 2 * (36 + 72 + 72 + 24)

"""The runtime: results do not depend on how work is divided, memory is what was planned, bad arguments are named."""

from __future__ import annotations

import itertools
import re
from typing import Any

import numpy as np
import pytest

from helpers.graphs import tiny_graph
from helpers.kernels import aligned
from helpers.programs import LENGTHS, batch, encoder, ending_at, packed, program, tensors
from pocketformer import _core, reference
from pocketformer.graph import Array, GraphBuilder, Table

TOLERANCE = {"fp32": 1e-5, "int8": 5e-2}  # int8: a value at a rounding edge may go either way in numpy and in C++


def run(graph_program: _core.Program, inputs: dict[str, Any], threads: int = 1, **session: Any) -> Array:
    return _core.Session(graph_program, **session).run(inputs, threads)


@pytest.mark.parametrize("isa", _core.isas())
@pytest.mark.parametrize("weights", ["fp32", "int8"])
@pytest.mark.parametrize(
    "shape", [{}, {"relative": True}, {"heads": 4, "kv_heads": 2, "head_dim": 16, "hidden": 64, "ffn": 130}]
)
def test_equals_the_reference(isa: str, weights: str, shape: dict[str, Any]) -> None:
    graph = encoder(weights, **shape)
    inputs = batch(LENGTHS)
    expected = reference.run(graph, inputs)
    np.testing.assert_allclose(run(program(graph, isa), inputs), expected, atol=TOLERANCE[weights])


@pytest.mark.parametrize("weights", ["fp32", "int8"])
def test_every_value_equals_the_reference(weights: str) -> None:
    graph = encoder(weights)
    inputs = batch(LENGTHS)
    values: dict[str, Array] = {}
    reference.run(graph, inputs, hooks=lambda op, _, out: values.update({op["out"]: out}))
    for name, expected in values.items():
        for mode in ("rows", "columns"):
            actual = run(program(ending_at(graph, name)), inputs, 2, mode=mode)
            scale = np.abs(expected).max()
            assert np.abs(actual - expected).max() <= TOLERANCE[weights] * scale, (name, mode)


@pytest.mark.parametrize("weights", ["fp32", "int8"])
@pytest.mark.parametrize("task", ["embed", "fill_mask"])
def test_bits_do_not_depend_on_the_division_of_work(weights: str, task: str) -> None:
    graph = encoder(weights, task=task)
    compiled = program(graph)
    inputs = batch(LENGTHS)
    if task == "fill_mask":
        inputs["selected"] = np.array([0, 5, 5, 160, 41, 3], np.int64)
    expected = run(compiled, inputs).tobytes()
    for threads, mode, block_rows in itertools.product([1, 2, 3, 8], ["rows", "columns"], [0, 1, 3, 16, 56, 1000]):
        actual = run(compiled, inputs, threads, mode=mode, block_rows=block_rows)
        assert actual.tobytes() == expected, (threads, mode, block_rows)
    for isa in _core.isas():
        assert run(program(graph, isa), inputs, 2).tobytes() == expected, isa


@pytest.mark.parametrize("weights", ["fp32", "int8"])
def test_bits_do_not_depend_on_the_batch(weights: str) -> None:
    compiled = program(encoder(weights))
    inputs = batch(LENGTHS)
    together = run(compiled, inputs, 2)
    pieces = [slice(a, b) for a, b in itertools.pairwise(inputs["tokens"])]
    session = _core.Session(compiled)
    for row, piece in zip(together, pieces, strict=True):
        offsets = np.array([0, piece.stop - piece.start], np.int64)
        part = {"ids": inputs["ids"][piece], "tokens": offsets, "types": inputs["types"][piece]}
        alone = session.run(part, threads=2)
        assert alone[0].tobytes() == row.tobytes()
    order = np.random.default_rng(1).permutation(len(LENGTHS))
    shuffled = session.run(
        {
            "ids": np.concatenate([inputs["ids"][pieces[i]] for i in order]),
            "tokens": np.concatenate([[0], np.cumsum([LENGTHS[i] for i in order])]),
            "types": np.concatenate([inputs["types"][pieces[i]] for i in order]),
        }
    )
    assert shuffled.tobytes() == together[order].tobytes()


def test_layers_of_different_attention_shapes() -> None:
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> Array:
        return rng.standard_normal(shape).astype(np.float32) / 4

    build = GraphBuilder.text(50, 0, 64)
    x = build.embed([Table("words", normal(50, 48), "ids")])
    for layer, (heads, kv_heads, dim) in enumerate([(2, 1, 40), (6, 3, 8), (1, 1, 7), (3, 3, 16)]):
        qkv = build.linear(x, normal((heads + 2 * kv_heads) * dim, 48), name=f"qkv{layer}")
        mixed = build.attention(qkv, heads=heads, kv_heads=kv_heads, head_dim=dim, causal=layer % 2 == 0)
        x = build.linear(mixed, normal(48, heads * dim), name=f"out{layer}", residual=x)
    graph = build.build(x)
    lengths = [64, 3, 30, 1, 50]
    inputs = batch(lengths, 50) | {"types": None}
    compiled = program(graph)
    expected = run(compiled, inputs)
    np.testing.assert_allclose(expected, reference.run(graph, inputs), rtol=1e-5, atol=1e-5)
    for block_rows, mode in [(5, "rows"), (0, "columns")]:
        actual = run(compiled, inputs, 3, block_rows=block_rows, mode=mode)
        assert actual.tobytes() == expected.tobytes()


def test_values_that_live_long_and_are_read_twice() -> None:
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> Array:
        return rng.standard_normal(shape).astype(np.float32) / 4

    build = GraphBuilder.text(50, 0, 64)
    x = build.embed([Table("words", normal(50, 20), "ids")])
    doubled = build.linear(x, normal(20, 20), name="a", residual=x)  # input and residual are one value
    twice = build.linear(doubled, normal(20, 20), name="b", residual=doubled)
    qkv = build.linear(twice, normal(60, 20), name="qkv")
    mixed = build.attention(qkv, heads=2, head_dim=10)
    y = build.linear(mixed, normal(20, 20), name="c", residual=x)
    z = build.linear(qkv, normal(20, 60), name="d", residual=y)  # qkv outlives its attention
    pooled = build.pool(z, "max")
    build.pool(doubled, "cls")
    graph = build.build(build.linear(pooled, normal(3, 20), name="e"))
    lengths = [9, 64, 2]
    inputs = batch(lengths, 50) | {"types": None}
    expected = reference.run(graph, inputs)
    for block_rows, threads in [(0, 1), (4, 3)]:
        np.testing.assert_allclose(
            run(program(graph), inputs, threads, block_rows=block_rows), expected, rtol=1e-5, atol=1e-5
        )


# --- blocks of rows -------------------------------------------------------------------------------


def test_threads_end_together() -> None:
    """The busiest thread has little more than its share: by at most a block where rows do not divide."""
    for threads, cached in itertools.product([1, 2, 3, 4, 8], [True, False]):
        for rows in range(1, 600):
            block = _core.block_rows(rows, threads, cached)
            assert block in range(4, 33, 4)
            rounds = -(-rows // block) // threads + (-(-rows // block) % threads > 0)
            assert rounds * block <= rows / threads + 32


@pytest.mark.parametrize(
    ("rows", "threads", "weights_cached", "block"),
    [
        (512, 1, True, 16),
        (512, 4, True, 16),
        (512, 1, False, 32),  # half as many passes over the weights
        (16, 1, True, 32),  # one pass
        (20, 1, True, 32),
        (40, 2, True, 20),  # 20 and 20, not 32 and 8
        (72, 2, True, 12),
    ],
)
def test_blocks_of_rows(rows: int, threads: int, weights_cached: bool, block: int) -> None:
    assert _core.block_rows(rows, threads, weights_cached) == block


def test_the_weights_of_a_stage() -> None:
    """Stages end at a store: the widest has the projection out, the feed-forward pair and the next layer's q, k, v."""
    hidden, ffn = 64, 256
    graph = encoder("int8", hidden=hidden, ffn=ffn, heads=4, kv_heads=4, head_dim=16, layers=2)
    assert program(graph).stage_weight_bytes == hidden * hidden + 2 * hidden * ffn + 3 * hidden * hidden


# --- memory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", ["fp32", "int8"])
def test_the_arena_is_what_was_planned(weights: str) -> None:
    compiled = program(encoder(weights))
    for lengths, threads, mode, block_rows in itertools.product(
        [(1,), (40,), LENGTHS, LENGTHS * 5], [1, 2, 8], ["auto", "rows", "columns"], [0, 7]
    ):
        session = _core.Session(compiled, mode, block_rows)
        session.run(batch(lengths), threads=threads)
        planned = compiled.arena_bytes(list(lengths), threads, mode=mode, block_rows=block_rows)
        assert session.arena_bytes == planned > 0


def test_the_arena_does_not_depend_on_depth() -> None:
    shallow, deep = (program(encoder("int8", layers=layers)) for layers in (2, 6))
    assert shallow.arena_bytes(list(LENGTHS), 2) == deep.arena_bytes(list(LENGTHS), 2)


def test_the_arena_grows_to_the_largest_batch_and_can_be_trimmed() -> None:
    compiled = program(encoder("int8"))
    session = _core.Session(compiled)
    large = batch(LENGTHS)
    expected = session.run(large).tobytes()
    grown = session.arena_bytes
    session.run(batch((3,)))
    assert session.arena_bytes == grown
    session.trim()
    assert session.arena_bytes == 0
    assert session.run(large).tobytes() == expected
    assert session.arena_bytes == grown


def test_steady_state_allocates_nothing() -> None:
    """Page faults count what no counter of ours could miss: fresh memory from the system."""
    resource = pytest.importorskip("resource")
    session = _core.Session(program(encoder("int8", hidden=64, ffn=256, max_length=400)), block_rows=16)
    inputs = batch((400,) * 20)
    out = session.run(inputs, threads=2)
    for _ in range(3):
        session.run(inputs, threads=2, out=out)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        session.run(inputs, threads=2, out=out)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 20


def test_out_is_written_and_returned() -> None:
    compiled = program(encoder("int8"))
    inputs = batch(LENGTHS)
    expected = run(compiled, inputs)
    memory = np.zeros(expected.size + 1, np.float32)
    out = memory[1:].reshape(expected.shape)  # at no particular alignment
    assert _core.Session(compiled).run(inputs, out=out) is out
    assert out.tobytes() == expected.tobytes()
    assert memory[0] == 0


def test_tensors_stay_alive_without_copies() -> None:
    graph = encoder("int8")
    arrays = tensors(graph)
    compiled = _core.Program(packed(graph).description(), arrays)
    expected = run(compiled, batch(LENGTHS))
    session = _core.Session(compiled)
    del arrays, compiled
    assert session.run(batch(LENGTHS)).tobytes() == expected.tobytes()


# --- queries --------------------------------------------------------------------------------------


def test_properties() -> None:
    embedder, decoder = program(encoder("int8")), program(encoder("int8", task="fill_mask"), "scalar")
    assert (embedder.output_domain, embedder.output_kind, embedder.output_width) == ("sequences", "one", 36)
    assert (decoder.output_domain, decoder.output_kind, decoder.output_width) == ("selected", "selected", 101)
    assert decoder.isa == "scalar"
    assert embedder.isa in _core.isas()
    assert "scalar" in _core.isas()


def test_profile_names_every_kind_of_step() -> None:
    session = _core.Session(program(encoder("int8")))
    session.run(batch(LENGTHS))
    assert session.phases() == {}
    session.profile = True
    session.run(batch(LENGTHS), threads=2)
    phases = session.phases()
    steps = {
        "embed",
        "norm",
        "quantize",
        "linear",
        "quantize_heads",
        "store",
        "attention",
        "pool",
        "normalize",
        "output",
    }
    assert set(phases) == steps
    assert all(0 < seconds < 10 for seconds in phases.values())


@pytest.mark.parametrize("mode", ["rows", "columns"])
def test_empty_batches(mode: str) -> None:
    none = np.zeros(0, np.int32)
    start = np.zeros(1, np.int64)
    assert run(program(encoder("int8")), {"ids": none, "tokens": start}, 2, mode=mode).shape == (0, 36)
    decoder = program(encoder("int8", task="fill_mask"))
    no_rows = np.zeros(0, np.int64)
    assert run(decoder, {"ids": none, "tokens": start, "selected": no_rows}, 2, mode=mode).shape == (0, 101)
    assert run(decoder, batch((3,)) | {"selected": no_rows}, 2, mode=mode).shape == (0, 101)


def test_types_default_to_zero() -> None:
    compiled = program(encoder("int8"))
    inputs = batch(LENGTHS)
    zeros = run(compiled, inputs | {"types": np.zeros_like(inputs["types"])})
    assert run(compiled, inputs | {"types": None}).tobytes() == zeros.tobytes()
    assert run(compiled, inputs).tobytes() != zeros.tobytes()


# --- wrong arguments ------------------------------------------------------------------------------

IDS, OFFSETS = np.zeros(5, np.int32), np.array([0, 2, 5], np.int64)
READ_ONLY = np.zeros((2, 36), np.float32)
READ_ONLY.flags.writeable = False
WRONG_INPUT: list[tuple[dict[Any, Any], str]] = [
    ({"ids": [1, 2]}, "ids is a list; pass a numpy array of int32"),
    ({"ids": IDS.astype(np.int64)}, "ids is int64 of shape (5,); pass a numpy array of int32"),
    ({"ids": IDS.astype(">i4")}, "ids is >i4"),
    ({"ids": IDS.reshape(1, 5)}, "ids is int32 of shape (1, 5); it must have 1 dimension"),
    ({"ids": np.zeros(10, np.int32)[::2]}, "ids is not C-contiguous"),
    ({"ids": np.zeros(24, np.uint8)[1:21].view(np.int32)}, "ids does not start at a multiple of its item size"),
    ({"ids": np.array([0, 0, 101, 0, 0], np.int32)}, "ids[2] is 101; it must be 0 to 100"),
    ({"ids": np.array([0, 0, 0, 0, -1], np.int32)}, "ids[4] is -1"),
    ({"ids": None}, "ids is missing; the model needs it"),
    ({"tokens": OFFSETS.astype(np.int32)}, "tokens is int32"),
    ({"tokens": None}, "tokens is missing or empty; give the offsets of the sequences"),
    ({"tokens": np.zeros(0, np.int64)}, "tokens is missing or empty"),
    ({"tokens": np.array([1, 5])}, "tokens[0] is 1; offsets begin with 0"),
    ({"tokens": np.array([0, 4])}, "ids has 5 entries; the offsets of tokens end with 4"),
    ({"tokens": np.array([0, 6])}, "ids has 5 entries; the offsets of tokens end with 6"),
    ({"tokens": np.array([0, 4, 2, 5])}, "tokens[2] is 2; offsets must not decrease"),
    ({"tokens": np.array([0, 2, 2, 5])}, "sequence 1 has no tokens"),
    ({"tokens": np.array([0, -(2**63), 5])}, "tokens[1] is -9223372036854775808"),
    (
        {"ids": np.zeros(41, np.int32), "tokens": np.array([0, 41])},
        "sequence 0 has 41 tokens; the model takes at most 40",
    ),
    ({"types": IDS[:4]}, "types has 4 entries; the offsets of tokens end with 5"),
    ({"types": IDS + 2}, "types[0] is 2; it must be 0 to 1"),
    ({"types": IDS.astype(np.int8)}, "types is int8"),
    ({"selected": np.zeros(1, np.int64)}, "selected was given; this model does not take it, leave it out"),
    ({3: IDS}, "inputs has a key that is a int"),
]
WRONG_OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"threads": 0}, "threads is 0; it must be 1 to 256"),
    ({"threads": 257}, "threads is 257"),
    ({"out": np.zeros((2, 35), np.float32)}, "out is float32 of shape (2, 35); it must have shape (2, 36)"),
    ({"out": np.zeros((2, 36))}, "out is float64"),
    ({"out": READ_ONLY}, "out is read-only"),
    ({"out": np.zeros((36, 2), np.float32).T}, "out is not C-contiguous"),
]
INPUTS = {"ids": IDS, "tokens": OFFSETS}


@pytest.mark.parametrize(("wrong", "message"), WRONG_INPUT, ids=[message[:30] for _, message in WRONG_INPUT])
def test_wrong_input_is_named(wrong: dict[Any, Any], message: str) -> None:
    session = _core.Session(program(tiny_graph()))
    with pytest.raises(ValueError, match=re.escape(message)):
        session.run({**INPUTS, **wrong})
    assert session.run(INPUTS).shape == (2, 36)


@pytest.mark.parametrize(("wrong", "message"), WRONG_OPTIONS, ids=[message[:30] for _, message in WRONG_OPTIONS])
def test_wrong_options_are_named(wrong: dict[str, Any], message: str) -> None:
    session = _core.Session(program(tiny_graph()))
    with pytest.raises(ValueError, match=re.escape(message)):
        session.run(INPUTS, **wrong)
    assert session.run(INPUTS).shape == (2, 36)


def test_wrong_rows_are_named() -> None:
    session = _core.Session(program(tiny_graph(task="fill_mask")))
    for rows, message in [
        (None, "selected is missing"),
        ([5], "selected[0] is 5; it must be 0 to 4"),
        ([0, -1], "selected[1] is -1"),
    ]:
        with pytest.raises(ValueError, match=re.escape(message)):
            session.run(INPUTS | {"selected": rows and np.array(rows, np.int64)})


def test_wrong_settings_are_named() -> None:
    compiled = program(tiny_graph())
    for call, message in [
        (lambda: _core.Session(compiled, "both"), "mode is 'both'; it must be auto, rows or columns"),
        (lambda: _core.Session(compiled, block_rows=-1), "block_rows is -1"),
        (lambda: _core.Session(3), "program is a int"),
        (lambda: program(tiny_graph(), "mmx"), "isa: 'mmx' is unknown"),
        (lambda: compiled.arena_bytes([0], 1), "sequence 0 has no tokens"),
        (lambda: compiled.arena_bytes([3, 41], 1), "sequence 1 has 41 tokens"),
        (lambda: compiled.arena_bytes([3], 1, selected=-1), "selected is -1"),
        (lambda: compiled.arena_bytes([3], -1), "threads is -1"),
    ]:
        with pytest.raises(ValueError, match=re.escape(message)):
            call()


def test_tensors_must_be_aligned() -> None:
    graph = packed(tiny_graph())
    shifted = aligned(np.zeros(graph.params["norm.weight"].size + 1, np.float32))[1:]
    with pytest.raises(ValueError, match=r"tensor 'norm.weight' is not aligned to 64 bytes"):
        _core.Program(graph.description(), graph.params | {"norm.weight": shifted})


def test_unpacked_tensors_are_refused() -> None:
    plain = tiny_graph()
    graph, name = packed(plain), "layer0.qkv.weight"
    with pytest.raises(ValueError, match=rf"tensor '{name}' is float32 \[\d+, \d+\]; it must be float32"):
        _core.Program(graph.description(), graph.params | {name: aligned(plain.params[name])})

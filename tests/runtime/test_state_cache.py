"""Keys and values that outlive a run: however a conversation is cut into runs, its bytes are those of one run."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from helpers import programs
from helpers.graphs import tiny_decoder, tiny_graph
from helpers.timing import best_of
from pocketformer import _core, reference
from pocketformer.graph import Array, Graph, GraphBuilder, Table, with_kept_dtype
from pocketformer.perf.measure import timed

VOCAB, MAX = 53, 64
NO_ROWS = np.zeros(0, np.int64)


def graph_of(weights: str, **options: Any) -> Graph:
    """fp16: int8 weights beside keys and values in fp16."""
    graph = tiny_decoder(**options)
    if weights != "fp32":
        graph = programs.quantize_graph(graph)
    return with_kept_dtype(graph, "fp16") if weights == "fp16" else graph


@pytest.fixture(scope="module", params=["fp32", "int8", "fp16"])
def program(request: pytest.FixtureRequest) -> _core.Program:
    return programs.program(graph_of(request.param, windows=(-1, 5)))


def tokens(count: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, VOCAB, count).astype(np.int32)


def feeds(parts: Sequence[Array], rows: Array | None = None) -> dict[str, Any]:
    ids = np.concatenate(parts)
    offsets = np.cumsum([0, *(len(part) for part in parts)]).astype(np.int64)
    return {"ids": ids, "tokens": offsets, "selected": np.arange(len(ids)) if rows is None else rows}


def whole(program: _core.Program, ids: Array) -> Array:
    """One run without a cache."""
    return _core.Session(program).run(feeds([ids]))


def in_chunks(session: _core.Session, cache: _core.StateCache, ids: Array, sizes: Sequence[int], threads: int) -> Array:
    results, begin = [], 0
    for size in sizes:
        results.append(session.run(feeds([ids[begin : begin + size]]), threads, None, [cache]))
        begin += size
    assert begin == len(ids) == cache.length
    return np.concatenate(results)


@pytest.mark.parametrize("weights", ["fp32", "int8", "fp16"])
def test_the_oracle_agrees(weights: str) -> None:
    graph = graph_of(weights, windows=(-1, 5))
    inputs = feeds([tokens(MAX), tokens(19, 1)])
    actual, expected = _core.Session(programs.program(graph)).run(inputs), reference.run(graph, inputs)
    tolerance = (1e-4 if weights == "fp32" else 3e-2) * np.abs(expected).max()
    assert np.abs(actual - expected).max() <= tolerance


@pytest.mark.parametrize("sizes", [(MAX,), (1,) * MAX, (1, 2, 3, 16, 17, 25), (33, 31), (63, 1)])
@pytest.mark.parametrize(("mode", "threads"), [("rows", 1), ("rows", 3), ("columns", 3)])
def test_chunks_are_one_prefill(program: _core.Program, sizes: tuple[int, ...], mode: str, threads: int) -> None:
    ids = tokens(MAX)
    session, cache = _core.Session(program, mode, 4), _core.StateCache(program, MAX, MAX)
    assert in_chunks(session, cache, ids, sizes, threads).tobytes() == whole(program, ids).tobytes()


@pytest.mark.parametrize("isa", _core.isas())
@pytest.mark.parametrize("weights", ["int8", "fp16"])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(4, 2, 16), (7, 1, 80), (6, 2, 256)])
def test_every_isa(isa: str, weights: str, heads: int, kv_heads: int, head_dim: int) -> None:
    graph = graph_of(weights, windows=(-1, 5), heads=heads, kv_heads=kv_heads, head_dim=head_dim)
    fast, ids = programs.program(graph, isa), tokens(20)
    cache = _core.StateCache(fast, MAX, MAX)
    actual = in_chunks(_core.Session(fast), cache, ids, (9, 1, 1, 9), 1)
    assert actual.tobytes() == whole(programs.program(graph, "scalar"), ids).tobytes()


@pytest.mark.parametrize(("mode", "threads"), [("rows", 2), ("columns", 2)])
def test_batched_is_alone(program: _core.Program, mode: str, threads: int) -> None:
    """Sequences at different lengths, some of them many rows at once, others one."""
    texts = [tokens(40, 1), tokens(7, 2), tokens(23, 3)]
    caches = [_core.StateCache(program, MAX, MAX) for _ in texts]
    session, done, results = _core.Session(program, mode), [0] * 3, [[], [], []]  # type: ignore[var-annotated]
    for sizes in ((30, 2, 1), (1, 1, 20), (5, 3, 1), (4, 1, 1)):
        parts = [text[at : at + size] for text, at, size in zip(texts, done, sizes, strict=True)]
        logits = session.run(feeds(parts), threads, caches=caches)
        for result, rows in zip(results, np.split(logits, np.cumsum(sizes)[:-1]), strict=True):
            result.append(rows)
        done = [at + size for at, size in zip(done, sizes, strict=True)]
    for text, result in zip(texts, results, strict=True):
        assert np.concatenate(result).tobytes() == whole(program, text).tobytes()


def test_forks_and_truncated_caches_go_on_by_themselves(program: _core.Program) -> None:
    session, cache = _core.Session(program), _core.StateCache(program, MAX, MAX)
    start, one, other = tokens(21), tokens(13, 1), tokens(30, 2)
    in_chunks(session, cache, start, (21,), 1)
    fork = cache.fork()
    for end, kept in ((one, cache), (other, fork), (tokens(5, 3), cache), (one, cache)):
        kept.truncate(21)
        logits = session.run(feeds([end]), caches=[kept])
        assert logits.tobytes() == whole(program, np.concatenate([start, end]))[21:].tobytes()
    assert (cache.length, fork.length) == (34, 51)
    cache.truncate(0)
    assert in_chunks(session, cache, other, (30,), 1).tobytes() == whole(program, other).tobytes()


def test_a_truncated_cache_forgets_what_was_not_finite() -> None:
    graph = tiny_decoder()
    graph.params["words.weight"][7] = 3e38
    program = programs.program(graph)
    session, cache, ids = _core.Session(program), _core.StateCache(program, MAX, MAX), tokens(24)
    ids[ids == 7] = 8
    session.run(feeds([ids[:10]]), caches=[cache])
    session.run(feeds([np.full(14, 7, np.int32)]), caches=[cache])
    cache.truncate(10)
    logits = session.run(feeds([ids[10:11]]), caches=[cache])
    assert logits.tobytes() == whole(program, ids[:11])[10:].tobytes()


def test_runs_without_wanted_rows_fill_the_cache(program: _core.Program) -> None:
    session, cache, ids = _core.Session(program), _core.StateCache(program, MAX, MAX), tokens(30)
    assert session.run(feeds([ids[:29]], NO_ROWS), 2, caches=[cache]).shape == (0, VOCAB)
    assert cache.length == 29
    logits = session.run(feeds([ids[29:]]), 2, caches=[cache])
    assert logits.tobytes() == whole(program, ids)[29:].tobytes()


@pytest.mark.parametrize("weights", ["fp32", "int8", "fp16"])
def test_windows_drop_what_nobody_sees_any_more(weights: str) -> None:
    """Beyond 1,024 + window + chunk slots a windowed layer moves its keys; not a bit changes, and memory is bounded."""
    length, window, chunk = 2400, 37, 61
    graph = graph_of(weights, windows=(window,), heads=1, kv_heads=1, hidden=16, layers=1, max_length=8192)
    program = programs.program(graph)
    session, cache, ids = _core.Session(program), _core.StateCache(program, 8192, chunk), tokens(length)
    sizes = [chunk] * (length // chunk) + [1] * (length % chunk)
    expected = whole(program, ids)
    assert in_chunks(session, cache, ids, sizes, 1).tobytes() == expected.tobytes()
    full = program.cache_bytes(8192, 8192)
    assert cache.nbytes == program.cache_bytes(8192, chunk) <= full * (window + chunk + 1024 + 64) / 8192
    fork = cache.fork()
    cache.truncate(length - 9)
    for kept, begin in ((cache, length - 9), (fork, length)):
        more = np.concatenate([ids[begin:], tokens(3, 5)])
        logits = session.run(feeds([more]), caches=[kept])
        assert logits.tobytes() == whole(program, np.concatenate([ids[:begin], more]))[begin:].tobytes()
    with pytest.raises(ValueError, match="length is 1000; a token there sees keys that a window has dropped: it must"):
        cache.truncate(1000)
    with pytest.raises(ValueError, match="sequence 0 has 62 tokens; its cache takes 61 in a run: give them in chunks"):
        session.run(feeds([tokens(62)]), caches=[cache])
    cache.truncate(0)
    assert in_chunks(session, cache, ids[:50], (50,), 1).tobytes() == expected[:50].tobytes()


def test_a_local_layer_takes_no_longer_behind_16k_tokens_than_behind_1k() -> None:
    """And a global one does, so that the layers are what the time shows."""

    def token_time(window: int, *lengths: int) -> list[float]:
        sizes = {"heads": 8, "kv_heads": 2, "head_dim": 64, "hidden": 16, "vocab": 32}
        graph = graph_of("int8", windows=(window,), layers=1, max_length=1 << 15, **sizes)
        program = programs.program(graph)
        session, cache = _core.Session(program), _core.StateCache(program, 17_000, 512)
        out, times = np.empty((1, 32), np.float32), []
        for length in lengths:
            while cache.length < length:
                session.run(feeds([tokens(512) % 32], NO_ROWS), caches=[cache])
            one = feeds([np.ones(1, np.int32)])
            many = [timed(lambda: session.run(one, 1, out, [cache])) for _ in range(100)]  # noqa: B023
            times.append(min(many))
        return times

    def ratio(window: int, *lengths: int) -> float:
        near, far = token_time(window, *lengths)
        return far / near

    assert best_of(lambda: ratio(512, 1024, 16_384), 1.3) <= 1.3
    assert ratio(-1, 512, 4096) > 2.5


def test_bytes_are_known_beforehand(program: _core.Program) -> None:
    cache = _core.StateCache(program, 40, 40)
    assert (cache.capacity, cache.chunk, cache.length) == (40, 40, 0)
    assert cache.nbytes == program.cache_bytes(40, 40)
    per_token = cache.nbytes / 48  # whole vectors of 16 slots
    fp32 = 2 * 2 * 2 * 16 * 4  # layers, keys and values, heads, channels
    assert per_token in (fp32, fp32 / 2, fp32 / 4 + 2 * 2 * 2 * 4)


def test_fp16_keys_and_values_are_those_of_fp32_but_for_their_rounding() -> None:
    graph, inputs = graph_of("fp32", windows=(-1, 5)), feeds([tokens(MAX), tokens(19, 1)])
    half = with_kept_dtype(graph, "fp16")
    found, expected = (_core.Session(programs.program(g)).run(inputs) for g in (half, graph))
    assert 0 < np.abs(found - expected).max() <= 2e-3 * np.abs(expected).max()


@pytest.mark.parametrize("factor", [3e5, 1e30, 1e-6])
def test_what_fp16_does_not_hold_is_stored_as_its_largest(factor: float) -> None:
    """And the smallest numbers are subnormal, not zeros."""
    table = np.random.default_rng(0).standard_normal((VOCAB, 3 * 2 * 20)).astype(np.float32)
    table[:, -2 * 20 :] *= factor
    build = GraphBuilder.text(VOCAB, 0, MAX)
    qkv = build.embed([Table("words", table, "ids")])
    graph = build.build(build.attention(qkv, heads=2, head_dim=20, causal=True, kept=True))
    half = with_kept_dtype(graph, "fp16")
    ids = np.concatenate([np.arange(40), [7]]).astype(np.int32)
    inputs = {"ids": ids, "tokens": np.array([0, 41])}
    found, expected = _core.Session(programs.program(half)).run(inputs), reference.run(half, inputs)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    np.testing.assert_array_equal(found[0], np.clip(table[0, -2 * 20 :], -65504, 65504).astype(np.float16))


@pytest.mark.parametrize(("held", "asked"), [("fp32", "int8"), ("int8", "half"), ("fp32", "")])
def test_a_dtype_of_keys_that_a_file_cannot_have_is_refused(held: str, asked: str) -> None:
    message = "its attention in fp32: use fp16" if asked == "int8" else f"kv is '{asked}'; it must be one of int8, fp16"
    with pytest.raises(ValueError, match=message):
        with_kept_dtype(graph_of(held), asked)
    with pytest.raises(ValueError, match="kv is 'fp16', but this model keeps no keys"):
        with_kept_dtype(tiny_graph(), "fp16")


def test_wrong_caches_are_refused(program: _core.Program) -> None:
    session, cache, ids = _core.Session(program), _core.StateCache(program, 32, 32), tokens(20)
    session.run(feeds([ids]), caches=[cache])
    foreign = _core.StateCache(programs.program(tiny_decoder()), 32, 32)
    cases: list[tuple[Any, list[Array], type[Exception], str]] = [
        ([foreign], [ids], ValueError, r"caches\[0\] belongs to another Program"),
        (
            [cache],
            [ids],
            ValueError,
            "sequence 0 has 20 tokens; its cache holds 20 of 32: truncate it, or make a larger",
        ),
        ([cache, cache], [ids[:1], ids[:1]], ValueError, r"caches\[1\] is caches\[0\] again; every sequence needs"),
        ([cache], [ids[:1], ids[:1]], ValueError, "caches has 1 entries; there are 2 sequences, and each needs one"),
        ([], [ids[:1]], ValueError, "caches is empty"),
        ([None], [ids[:1]], ValueError, r"caches\[0\] is a NoneType; pass a StateCache"),
        (cache, [ids[:1]], ValueError, "caches is a StateCache; pass a list"),
    ]
    for caches, parts, error, message in cases:
        with pytest.raises(error, match=message):
            session.run(feeds(parts), caches=caches)
    assert cache.length == 20
    encoder = programs.program(tiny_graph())
    with pytest.raises(ValueError, match="caches were given; this model keeps no states, leave them out"):
        _core.Session(encoder).run(programs.batch([3]), caches=[cache])
    with pytest.raises(ValueError, match="program keeps no states: it is no decoder"):
        _core.StateCache(encoder, 8, 8)
    for capacity, chunk, message in ((0, 1, "capacity is 0"), (65, 1, "must be 1 to 64"), (8, 9, "chunk is 9")):
        with pytest.raises(ValueError, match=message):
            _core.StateCache(program, capacity, chunk)
    for length in (-1, 21):
        with pytest.raises(ValueError, match=f"length is {length}; it must be 0 to what the cache holds, 20"):
            cache.truncate(length)


def test_a_cache_has_one_user_at_a_time() -> None:
    """Two threads run with one cache: each run happens wholly, or is refused."""
    program = programs.program(tiny_decoder(max_length=8192, layers=4))
    cache, refused, start = _core.StateCache(program, 8192, 8192), [], threading.Barrier(2)

    def work() -> None:
        session, ids = _core.Session(program), tokens(200)
        start.wait()
        for _ in range(15):
            try:
                session.run(feeds([ids], NO_ROWS), caches=[cache])
            except RuntimeError as error:
                refused.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cache.length == 200 * (30 - len(refused))
    assert set(refused) <= {"caches[0] is in use by another thread; give it one of its own, by fork()"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"causal": False}, "'causal' is false, but the state 'state0' is kept"),
        ({"kept": False}, "'states' has 'state1', which is not kept, beside others of its domain that are"),
    ],
)
def test_graphs_whose_chunks_would_differ_are_refused(change: dict[str, Any], message: str) -> None:
    graph = tiny_decoder()
    if "causal" in change:
        next(op for op in graph.ops if op["op"] == "attention").pop("causal")
    else:
        graph.states[1].pop("kept")
    with pytest.raises(ValueError, match=message):
        programs.program(graph)

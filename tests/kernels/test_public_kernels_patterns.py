"""pocketformer.kernels: attention by patterns equals masked dense attention, and costs what it names."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from helpers.timing import best_of
from pocketformer import _core, kernels
from pocketformer.graph import Array
from pocketformer.kernels import Blocks, Window
from pocketformer.reference import attention
from pocketformer.reference.rows import quantize

every_isa = pytest.mark.parametrize("isa", _core.isas())
RAGGED = [[0, 1], [0], [2, 0, 3], [], [1, 1, 4, 5], [5]]
CASES: list[tuple[int, int, dict[str, Any]]] = [
    (1, 1, {"pattern": Window(0, 0)}),
    (1, 1, {"pattern": Window(3, 3, globals=2)}),
    (130, 130, {"pattern": Window(9, 4)}),
    (130, 20, {"pattern": Window(None, 4, inclusive=False)}),
    (300, 300, {"pattern": Window(20, 0)}),
    (300, 300, {"pattern": Window(40, 40, globals=3)}),
    (300, 300, {"pattern": Window(64, 1, globals=150)}),
    (300, 200, {"pattern": Window(7, 7, globals=110)}),
    (1300, 1300, {"pattern": Window(30, 30, globals=17)}),
    (200, 200, {"pattern": Window(dilation=16)}),
    (200, 77, {"pattern": Window(3, 2, dilation=5)}),
    (200, 200, {"pattern": Window(4, dilation=7), "causal": True}),
    (5, 5, {"pattern": Window(dilation=9)}),
    (340, 340, {"pattern": Blocks(64, RAGGED)}),
    (340, 200, {"pattern": Blocks(64, RAGGED)}),
    (340, 340, {"pattern": Blocks(64, RAGGED), "causal": True}),
    (83, 83, {"pattern": Blocks(17, [[3], [0, 4], [1, 2], [3, 0], [4]])}),
]


def heads(tokens: int, count: int, seed: int, head_dim: int = 32) -> Array:
    x = np.random.default_rng((seed, tokens, count)).standard_normal((tokens, count, head_dim)) * 1.5
    return x.astype(np.float32)


def walks_of(keys: int, queries: int, pattern: Window | Blocks, causal: bool = False) -> list[Array]:
    """bool [queries, keys] each: how often a key is seen is in how many of them."""
    position, key = np.arange(keys - queries, keys)[:, None], np.arange(keys)[None]
    later = key > position if causal else np.zeros((queries, keys), bool)
    if isinstance(pattern, Blocks):
        most = max(map(len, pattern.keys))
        named = [[(*row, *[-1] * most)[i] for row in pattern.keys] for i in range(most)]
        block = position // pattern.size
        return [(np.array(column)[block] == key // pattern.size) & ~later for column in named]
    less = not pattern.inclusive
    distance = position - key
    seen = (distance % pattern.dilation == 0) & ~later
    seen &= distance <= (keys if pattern.before is None else (pattern.before - less) * pattern.dilation)
    seen &= -distance <= (keys if pattern.after is None else (pattern.after - less) * pattern.dilation)
    return [seen | (key < pattern.globals) | (position < pattern.globals)]


def dense(q: Array, k: Array, v: Array, walks: list[Array]) -> Array:
    """Softmax over all keys, each as often as it is seen, in float64."""
    share = q.shape[1] // k.shape[1]
    q, k, v = (x.swapaxes(0, 1).astype(np.float64) for x in (q, k.repeat(share, 1), v.repeat(share, 1)))
    scores = q @ k.swapaxes(1, 2) / np.sqrt(q.shape[2])
    often = np.sum(walks, axis=0)
    p = often * np.exp(scores - scores.max(-1, keepdims=True))
    total = p.sum(-1, keepdims=True)
    result: Array = (p @ v / np.where(total > 0, total, 1)).swapaxes(0, 1)
    return result


def same_bits(a: Array, b: Array) -> None:
    np.testing.assert_array_equal(np.ascontiguousarray(a).view(np.uint8), np.ascontiguousarray(b).view(np.uint8))


@every_isa
@pytest.mark.parametrize("case", CASES, ids=str)
def test_masked_dense(case: tuple[int, int, dict[str, Any]], isa: str) -> None:
    """float32 to its rounding; int8 as far from it as its roundings are; and the same bits with any threads and ISA."""
    keys, queries, options = case
    q, k, v = heads(queries, 4, 0), heads(keys, 2, 1), heads(keys, 2, 2)
    exact = dense(q, k, v, walks_of(keys, queries, **options))
    with kernels.using(isa):
        close = kernels.attention(q, k, v, dtype="float32", **options)
        rounded = kernels.attention(q, k, v, **options)
        same_bits(rounded, kernels.attention(q, k, v, threads=3, **options))
    assert np.abs(close - exact).max() < 1e-5
    assert np.abs(rounded - exact).max() < 0.15
    assert np.sqrt(np.square(rounded - exact).mean()) < 0.02
    same_bits(rounded, kernels.attention(q, k, v, **options))
    same_bits(close, kernels.attention(q, k, v, dtype="float32", **options))


def test_the_comparison_notices_a_key() -> None:
    q, k, v = heads(300, 4, 0), heads(300, 2, 1), heads(300, 2, 2)
    for right, wrong in (
        (Window(40, 40, globals=3), Window(40, 40, globals=4)),
        (Window(9, 4), Window(9, 4, inclusive=False)),
        (Window(4, 4, dilation=5), Window(4, 4, dilation=6)),
        (Blocks(150, [[0], [1]]), Blocks(150, [[0], [1, 0]])),
    ):
        exact = dense(q, k, v, walks_of(300, 300, right))
        assert np.abs(kernels.attention(q, k, v, dtype="float32", pattern=wrong) - exact).max() > 0.1


@pytest.mark.parametrize("globals", [1, 130, 300])
def test_integers_of_global_rows(globals: int) -> None:
    """int8 is the interpreter's arithmetic, but for weights that exp2 rounds to the other of two neighbours."""
    q, k, v = heads(300, 2, 0), heads(300, 2, 1), heads(300, 2, 2)
    result = kernels.attention(q, k, v, pattern=Window(20, 20, globals=globals))
    key, position = np.arange(300)[None], np.arange(300)[:, None]
    walks = [np.broadcast_to(key < globals, (300, 300)), (np.abs(key - position) <= 20) & (key >= globals)]
    q8, k8, v8 = (x.swapaxes(0, 1) for x in (q, k, v))
    local = slice(globals, None)
    part = attention.Heads(*quantize(q8[:, local]))
    no_bias = np.zeros((2, 300 - globals, 300), np.float32)
    if globals < 300:
        near = attention._attend_int8(part, k8, v8, 32**-0.5, no_bias, *((walk[local], 1) for walk in walks))
        found = result[local].swapaxes(0, 1)
        assert np.abs(found - near).max() < 0.05
        assert np.median(np.abs(found - near)) < 1e-4
    same_bits(result[:globals], kernels.attention(q, k, v)[:globals])


@pytest.mark.parametrize("dtype", ["int8", "float32"])
def test_what_a_pattern_is_made_of(dtype: Any) -> None:
    """The bits of a plain window, of every remainder's tokens alone, and of the block alone."""
    q, k, v = heads(256, 4, 0), heads(256, 2, 1), heads(256, 2, 2)
    plain = kernels.attention(q, k, v, window=(30, 8), dtype=dtype)
    same_bits(kernels.attention(q, k, v, pattern=Window(30, 8), dtype=dtype), plain)
    same_bits(kernels.attention(q, k, v, pattern=Window(31, 9, inclusive=False), dtype=dtype), plain)
    strided = kernels.attention(q, k, v, causal=True, pattern=Window(dilation=3), dtype=dtype)
    bias = np.random.default_rng(0).standard_normal((4, 21)).astype(np.float32)
    biased = kernels.attention(q, k, v, pattern=Window(2, 2, dilation=5), bias=bias, dtype=dtype)
    for r in range(3):
        parts = (np.ascontiguousarray(x[r::3]) for x in (q, k, v))
        same_bits(strided[r::3], kernels.attention(*parts, causal=True, dtype=dtype))
    for r in range(5):
        parts = (np.ascontiguousarray(x[r::5]) for x in (q, k, v))
        own = np.ascontiguousarray(bias[:, ::5])
        same_bits(biased[r::5], kernels.attention(*parts, window=2, bias=own, dtype=dtype))
    blocks = kernels.attention(q, k, v, pattern=Blocks(64, [[2], [2], [0], [1]]), dtype=dtype)
    for b, key in enumerate((2, 2, 0, 1)):
        rows, seen = slice(64 * b, 64 * b + 64), slice(64 * key, 64 * key + 64)
        same_bits(blocks[rows], kernels.attention(q[rows], k[seen], v[seen], dtype=dtype))


def test_batches() -> None:
    q, k, v = heads(170, 4, 0), heads(170, 2, 1), heads(170, 2, 2)
    offsets = np.array([0, 3, 3, 120, 170])
    for pattern in (Window(5, 5, globals=4), Window(2, 9, dilation=4)):
        together = kernels.attention(q, k, v, offsets=offsets, pattern=pattern)
        for begin, end in ((0, 3), (3, 120), (120, 170)):
            part = slice(begin, end)
            same_bits(together[part], kernels.attention(q[part], k[part], v[part], pattern=pattern))
    with pytest.raises(ValueError, match="offsets is given beside a pattern of blocks"):
        kernels.attention(q, k, v, offsets=offsets, pattern=Blocks(64, [[0]] * 3))


def test_what_makes_no_pattern_is_refused() -> None:
    q, k, v = heads(100, 4, 0), heads(100, 2, 1), heads(100, 2, 2)

    def refused(words: str, **options: Any) -> None:
        with pytest.raises(ValueError, match=words):
            kernels.attention(q, k, v, **options)

    for words, make in (
        ("before is 0; it must be an integer of at least 1", lambda: Window(0, inclusive=False)),
        ("dilation is 0", lambda: Window(dilation=0)),
        ("globals is 1.5", lambda: Window(globals=1.5)),  # type: ignore[arg-type]
        ("globals is 2 beside a dilation of 3", lambda: Window(globals=2, dilation=3)),
        ("size is 0", lambda: Blocks(0, [])),
    ):
        with pytest.raises(ValueError, match=words):
            make()
    refused("window is 3 beside a pattern", window=3, pattern=Window(3))
    refused("causal is True beside 2 global positions", causal=True, pattern=Window(globals=2))
    refused("pattern is 'strided'", pattern="strided")
    refused("pattern has keys of 1 query blocks; 100 keys are 2 blocks of 64", pattern=Blocks(64, [[0]]))
    refused("pattern names block 2; there are 2", pattern=Blocks(64, [[0], [2]]))
    refused("pattern names block 1 twice", causal=True, pattern=Blocks(64, [[0], [1, 1]]))
    with pytest.raises(TypeError):
        kernels.attention(q, k, v, pattern=Blocks(64, [[0], [0.5]]))  # type: ignore[list-item]
    with pytest.raises(ValueError, match="q has 120 rows and k 100; with causal, window, pattern or bias"):
        kernels.attention(heads(120, 4, 0), k, v, pattern=Window(dilation=2))


@pytest.mark.slow
def test_time_is_that_of_the_keys_that_are_named() -> None:
    """An eighth of the keys in less than a third of the time of all, whichever they are."""
    tokens, size = 4096, 64
    q, k, v, count = heads(tokens, 2, 0), heads(tokens, 1, 1), heads(tokens, 1, 2), tokens // size
    rng = np.random.default_rng(0)
    some = [rng.choice(count, count // 8, replace=False).tolist() for _ in range(count)]
    patterns = (Window(256, 255), Window(dilation=8), Window(240, 240, globals=16), Blocks(size, some))

    def seconds(pattern: Window | Blocks | None) -> float:
        begin = time.thread_time()
        kernels.attention(q, k, v, pattern=pattern, threads=1)
        return time.thread_time() - begin

    for pattern in patterns:
        assert best_of(lambda pattern=pattern: seconds(pattern) / seconds(None), 1 / 3) <= 1 / 3, pattern

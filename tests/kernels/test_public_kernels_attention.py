"""pocketformer.kernels: attention of plain arrays and the key-value cache, beside plain softmax and a model's bits."""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from pocketformer import _core, kernels
from pocketformer.graph import Array

every_isa = pytest.mark.parametrize("isa", _core.isas())


def heads_of(tokens: int, heads: int, head_dim: int, seed: int) -> Array:
    x = np.random.default_rng((seed, tokens, heads, head_dim)).standard_normal((tokens, heads, head_dim))
    return (x * 1.5).astype(np.float32)


def qkv(tokens: int, heads: int, kv_heads: int, head_dim: int, queries: int | None = None) -> tuple[Array, ...]:
    q = heads_of(queries or tokens, heads, head_dim, 0)
    return q, heads_of(tokens, kv_heads, head_dim, 1), heads_of(tokens, kv_heads, head_dim, 2)


def same_bits(a: Array, b: Array) -> None:
    np.testing.assert_array_equal(a.view(np.uint8), b.view(np.uint8))


def softmax_attention(
    q: Array,
    k: Array,
    v: Array,
    causal: bool = False,
    window: Any = None,
    bias: Array | None = None,
    scale: float = 0,
    softcap: float = 0,
) -> Array:
    """In float64."""
    q, k, v = (x.astype(np.float64).swapaxes(0, 1) for x in (q, k, v))
    share = len(q) // len(k)
    k, v = k.repeat(share, 0), v.repeat(share, 0)
    scores = q @ k.swapaxes(1, 2) * (scale or q.shape[2] ** -0.5)
    scores = softcap * np.tanh(scores / softcap) if softcap else scores
    distance = np.arange(q.shape[1])[:, None] + k.shape[1] - q.shape[1] - np.arange(k.shape[1])
    if bias is not None:
        reach = bias.shape[1] // 2
        scores += bias[:, np.clip(distance, -reach, reach) + reach]
    before, after = window if isinstance(window, tuple) else (window, window)
    seen = np.ones(distance.shape, bool)
    seen &= distance <= (distance.max() if before is None else before)
    seen &= -distance <= (0 if causal else distance.size if after is None else after)
    scores = np.where(seen, scores, -np.inf)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    result: Array = (p @ v / p.sum(-1, keepdims=True)).swapaxes(0, 1)
    return result


CASES: list[tuple[tuple[int, int, int, int], dict[str, Any]]] = [
    ((1, 1, 1, 1), {}),
    ((5, 3, 3, 26), {}),
    ((33, 4, 2, 32), {"causal": True}),
    ((130, 2, 1, 80), {"window": 9}),
    ((140, 3, 3, 64), {"window": (20, 3)}),
    ((140, 3, 3, 64), {"window": (None, 3)}),
    ((1100, 2, 2, 16), {"causal": True, "window": 1050}),
    ((65, 4, 4, 256), {"scale": 0.02}),
    ((3, 4, 2, 26), {"softcap": 1.5}),
    ((140, 3, 3, 64), {"causal": True, "softcap": 2.0}),
    ((33, 2, 1, 32), {"scale": 3.0, "softcap": 4.0}),
]


@every_isa
@pytest.mark.parametrize(("shape", "options"), CASES)
def test_attention(isa: str, shape: tuple[int, int, int, int], options: dict[str, Any]) -> None:
    q, k, v = qkv(*shape)
    exact = softmax_attention(q, k, v, **options)
    with kernels.using(isa):
        rounded = kernels.attention(q, k, v, **options)
        close = kernels.attention(q, k, v, dtype="float32", **options)
    assert np.abs(close - exact).max() < 1e-5
    assert np.abs(rounded - exact).max() < 0.15
    assert np.sqrt(np.square(rounded - exact).mean()) < 0.02
    same_bits(rounded, kernels.attention(q, k, v, **options))
    same_bits(close, kernels.attention(q, k, v, dtype="float32", **options))


@pytest.mark.parametrize("dtype", ["int8", "float32"])
@pytest.mark.parametrize("reach", [0, 3, 200])
def test_bias(reach: int, dtype: Any) -> None:
    q, k, v = qkv(70, 2, 2, 32, queries=20)
    bias = np.random.default_rng(1).standard_normal((2, 2 * reach + 1)).astype(np.float32)
    result = kernels.attention(q, k, v, bias=bias, dtype=dtype, threads=2)
    exact = softmax_attention(q, k, v, bias=bias)
    assert np.abs(result - exact).max() < (1e-5 if dtype == "float32" else 0.1)
    if reach:
        assert np.abs(result - softmax_attention(q, k, v)).max() > 0.2


@pytest.mark.parametrize("dtype", ["int8", "float32"])
@pytest.mark.parametrize("options", [{}, {"causal": True}, {"window": (70, 4)}])
def test_threads_and_offsets_change_no_bit(options: dict[str, Any], dtype: Any) -> None:
    lengths = (1, 150, 33, 0, 17)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    q, k, v = qkv(sum(lengths), 4, 2, 40)
    alone = [kernels.attention(q[b:e], k[b:e], v[b:e], dtype=dtype, threads=1, **options) for b, e in pairwise(offsets)]
    for threads in (1, 2, 5):
        together = kernels.attention(q, k, v, offsets=offsets, dtype=dtype, threads=threads, **options)
        same_bits(together, np.concatenate(alone))


@pytest.mark.parametrize("dtype", ["int8", "float32"])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_the_last_queries_alone(dtype: Any, softcap: float | None) -> None:
    """Few queries are attended for in another way, with the same bits."""
    q, k, v = qkv(300, 4, 2, 64)
    options: dict[str, Any] = {"causal": True, "window": 200, "dtype": dtype, "softcap": softcap}
    whole = kernels.attention(q, k, v, **options)
    for rows in (1, 2, 3, 17, 130):
        same_bits(kernels.attention(q[-rows:], k, v, **options), whole[-rows:])


@pytest.mark.parametrize("softcap", [0, -1.0, float("inf")])
def test_a_softcap_is_above_zero_and_goes_with_no_bias(softcap: float) -> None:
    q, k, v = qkv(5, 2, 2, 16)
    with pytest.raises(ValueError, match=r"softcap is .*; it must be above 0"):
        kernels.attention(q, k, v, softcap=softcap)
    with pytest.raises(ValueError, match=r"softcap is 1 beside a bias"):
        kernels.attention(q, k, v, softcap=1.0, bias=np.zeros((2, 3), np.float32))


def test_more_queries_than_keys() -> None:
    """Cross attention: every query sees every key."""
    q, k, v = qkv(7, 4, 2, 32, queries=50)
    assert np.abs(kernels.attention(q, k, v, dtype="float32") - softmax_attention(q, k, v)).max() < 1e-5
    same_bits(kernels.attention(q, k, v)[3:5], kernels.attention(q[3:5], k, v))


def test_out() -> None:
    q, k, v = qkv(20, 2, 2, 16)
    out = np.empty_like(q)
    assert kernels.attention(q, k, v, out=out) is out
    same_bits(out, kernels.attention(q, k, v))
    for name, operand in (("q", q), ("k", k), ("v", v)):
        with pytest.raises(ValueError, match=f"out shares memory with {name}"):
            kernels.attention(q, k, v, out=operand)


# --- cache ------------------------------------------------------------------------------------------------------------


@every_isa
@pytest.mark.parametrize("chunk", [1, 3, 17, 200])
def test_a_cache_gives_the_bits_of_attention(isa: str, chunk: int) -> None:
    """However the tokens arrive: whole, in chunks, or one by one."""
    q, k, v = qkv(200, 6, 2, 40)
    with kernels.using(isa):
        whole = kernels.attention(q, k, v, causal=True)
        cache = kernels.KeyValueCache(2, 40, 200)
    parts = []
    for begin in range(0, 200, chunk):
        cache.append(k[begin : begin + chunk], v[begin : begin + chunk])
        assert cache.length == min(begin + chunk, 200)
        parts.append(cache.attend(q[begin : begin + chunk], threads=2))
    same_bits(np.concatenate(parts), whole)
    same_bits(cache.attend(q[-5:], window=30), kernels.attention(q, k, v, causal=True, window=30)[-5:])
    same_bits(cache.attend(q, causal=False), kernels.attention(q, k, v))
    assert cache.isa == isa


def test_truncate_and_fork() -> None:
    q, k, v = qkv(90, 4, 4, 32)
    cache = kernels.KeyValueCache(4, 32, 100)
    cache.append(k[:50], v[:50])
    cache.append(v[50:80], k[50:80])  # a wrong turn
    cache.truncate(50)
    fork = cache.fork()
    cache.append(k[50:], v[50:])
    assert (cache.length, fork.length) == (90, 50)
    same_bits(cache.attend(q), kernels.attention(q, k, v, causal=True))
    fork.append(k[50:51], v[50:51])
    same_bits(fork.attend(q[50:51]), kernels.attention(q[:51], k[:51], v[:51], causal=True)[50:])
    assert isinstance(fork, kernels.KeyValueCache)
    assert fork.capacity == 100
    assert fork.nbytes == 2 * 4 * 112 * 32 + 2 * 4 * 112 * 4


@pytest.mark.parametrize(("window", "capacity", "chunk"), [(100, 300, 200), (0, 1, 1), (1500, 1900, 77), (9, 40, 31)])
def test_a_window_drops_what_nobody_sees(window: int, capacity: int, chunk: int) -> None:
    """Many times its capacity passes, with the bits of attention over everything."""
    tokens = 4500
    q, k, v = qkv(tokens, 2, 1, 16)
    whole = kernels.attention(q, k, v, causal=True, window=window)
    cache = kernels.KeyValueCache(1, 16, capacity, window)
    assert (cache.window, cache.capacity, cache.nbytes) == (
        window,
        capacity,
        2 * 20 * (-(-(capacity + 1024) // 16) * 16),
    )
    for begin in range(0, tokens if chunk > 1 else 1500, chunk):
        part = slice(begin, begin + chunk)
        cache.append(k[part], v[part])
        same_bits(cache.attend(q[part]), whole[part])
        if begin % 7 == 0 and window > 5:
            same_bits(cache.attend(q[part], window=5), kernels.attention(q, k, v, causal=True, window=5)[part])


def test_a_window_refuses_what_it_has_dropped() -> None:
    q, k, v = qkv(3000, 2, 1, 16)
    cache = kernels.KeyValueCache(1, 16, 300, 100)
    for begin in range(0, 3000, 200):
        cache.append(k[begin : begin + 200], v[begin : begin + 200])
    with pytest.raises(ValueError, match="k has 201 tokens; beside its window of 100 the cache takes 200 at a time"):
        cache.append(k[:201], v[:201])
    with pytest.raises(ValueError, match=r"length is 10; a token there sees keys that the cache has dropped: .* 2148"):
        cache.truncate(10)
    with pytest.raises(ValueError, match="q has 3000 rows; the first of them sees keys that the cache has dropped"):
        cache.attend(q)
    whole = kernels.attention(q, k, v, causal=True, window=100)
    fork = cache.fork()
    cache.truncate(2200)
    cache.append(k[2200:2300], v[2200:2300])
    same_bits(cache.attend(q[2250:2300]), whole[2250:2300])
    same_bits(fork.attend(q[-200:]), whole[-200:])


def test_a_cache_keeps_what_it_had_after_a_refusal() -> None:
    q, k, v = qkv(20, 2, 2, 16)
    cache = kernels.KeyValueCache(2, 16, 20)
    cache.append(k[:10], v[:10])
    before = cache.attend(q[:10])
    bad = v[10:].copy()
    bad[3, 1, 2] = np.nan
    with pytest.raises(ValueError, match="v, row 3, holds NaN or infinity"):
        cache.append(k[10:], bad)
    same_bits(cache.attend(q[:10]), before)


def test_a_cache_has_one_user_at_a_time() -> None:
    q, k, v = qkv(3000, 4, 4, 64)
    with kernels.using("scalar"):
        cache = kernels.KeyValueCache(4, 64, 3000)
    cache.append(k, v)
    thread = threading.Thread(target=cache.attend, args=(q[-600:],))
    thread.start()
    seen = False
    while thread.is_alive() and not seen:
        try:
            cache.truncate(3000)
        except RuntimeError as error:
            seen = "another thread is using this cache; give every thread one of its own" in str(error)
    thread.join()
    assert seen


Q, K, V = qkv(20, 4, 2, 16)
CACHE = kernels.KeyValueCache(2, 16, 25)
CACHE.append(K, V)
WIDE = np.zeros((4, 1, 257), np.float32)
REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: kernels.attention(Q[0], K, V), r"q is float32 of shape \(4, 16\); it must have shape \(tokens, heads"),
    (lambda: kernels.attention(Q, K.astype(np.float64), V), "k is float64 .*; pass a numpy array of float32"),
    (lambda: kernels.attention(Q, K, V[:5]), r"v is .*; it must have the shape of k, \(20, 2, 16\)"),
    (lambda: kernels.attention(Q, K[..., :8].copy(), V), r"k is .*; its head_dim must be that of q, 16"),
    (lambda: kernels.attention(Q[:, :3].copy(), K, V), "q has 3 heads; they must be a multiple of those of k and v, 2"),
    (lambda: kernels.attention(WIDE, WIDE, WIDE), "q is .*; it must have .* a head_dim of 1 to 256"),
    (
        lambda: kernels.attention(Q, K[:9], V[:9], causal=True),
        "q has 20 rows and k 9; with causal, window, pattern or bias",
    ),
    (lambda: kernels.attention(Q, K[:0], V[:0]), "k has no rows; a query needs a key"),
    (lambda: kernels.attention(Q, K, V, window=-1), "window is -1; pass a distance of 0 or more"),
    (lambda: kernels.attention(Q, K, V, window=1.5), "window is 1.5; pass a distance"),  # type: ignore[arg-type]
    (lambda: kernels.attention(Q, K, V, scale=0), "scale is 0; it must be above 0"),
    (lambda: kernels.attention(Q, K, V, scale="1"), "scale is a str; pass a number"),  # type: ignore[arg-type]
    (lambda: kernels.attention(Q, K, V, dtype="bf16"), "dtype is 'bf16'; it must be int8 or float32"),  # type: ignore[arg-type]
    (lambda: kernels.attention(Q, K, V, bias=np.zeros((4, 2), np.float32)), r"bias is .*\(heads, 2 \* distance \+ 1\)"),
    (
        lambda: kernels.attention(Q, K, V, bias=np.full((4, 3), np.nan, np.float32)),
        "bias holds NaN or infinity; pass finite numbers, and causal or window to hide keys",
    ),
    (
        lambda: kernels.attention(Q, K, V, offsets=np.array([0, 5])),
        "offsets must ascend from 0 to the number of tokens, 20",
    ),
    (
        lambda: kernels.attention(Q, K, V, offsets=np.array([0, 9, 5, 20])),
        "offsets must ascend from 0 to the number of tokens, 20",
    ),
    (
        lambda: kernels.attention(Q, K, V, offsets=np.array([0, 20], np.int32)),
        "offsets is int32 .*; pass a numpy array of int64",
    ),
    (lambda: kernels.KeyValueCache(0, 16, 25), "kv_heads is 0; it must be 1 to 1024"),
    (lambda: kernels.KeyValueCache(2, 300, 25), "head_dim is 300; it must be 1 to 256"),
    (lambda: kernels.KeyValueCache(2, 16, 0), "capacity is 0; it must be 1 to"),
    (lambda: kernels.KeyValueCache(2, 16, 100, 100), "window is 100; it must be 0 to 99"),
    (lambda: kernels.KeyValueCache(2, 16, 100, 2**70), "window is an integer of more than 64 bits; pass a smaller one"),
    (lambda: kernels.KeyValueCache(2, 16, 100, 1.5), "window is a float; pass an integer"),  # type: ignore[arg-type]
    (lambda: CACHE.append(K[:, :1].copy(), V), r"k is .*; it must have shape \(tokens, 2, 16\)"),
    (lambda: CACHE.append(K, V), "k has 20 tokens; the cache holds 20 of 25: make a larger one, or truncate it"),
    (lambda: CACHE.attend(heads_of(21, 4, 16, 0)), "q has 21 rows; .* 20 have been appended: append theirs first"),
    (lambda: CACHE.attend(heads_of(2, 4, 32, 0)), "q is .*; its head_dim must be the cache's, 16"),
    (lambda: CACHE.truncate(21), "length is 21; it must be 0 to what the cache holds, 20"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED)
def test_refusals(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_what_is_not_finite_is_refused(name: str) -> None:
    arrays = dict(zip("qkv", qkv(80, 2, 2, 20), strict=True))
    arrays[name][71, 1, 19] = np.inf
    for dtype in ("int8", "float32"):
        for threads in (1, 3):
            with pytest.raises(ValueError, match=f"{name}, row 71, holds NaN or infinity; pass finite numbers"):
                kernels.attention(**arrays, dtype=dtype, threads=threads)  # type: ignore[arg-type]

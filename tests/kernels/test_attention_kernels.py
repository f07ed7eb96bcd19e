"""Attention of every ISA against float64, and equal bytes however the work is divided."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest

from helpers.kernels import EPS, OLD, Attention, Heads, heads_of, kernels, padded, quantized, rotated
from pocketformer import _core
from pocketformer.graph import Array
from pocketformer.layout import LANES, round_up

ISAS = _core.isas()
HEAD_DIMS = (1, 2, 3, 4, 5, 26, 32, 64, 80, 128, 256)
LENGTHS = (1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 257)
RANGES = ((-1, -1), (-1, 0), (0, -1), (0, 0), (3, 5), (64, 0), (0, 7), (130, 2), (1, 1))
KEY_TILE = 128
EXP2_ERROR = 1.2e-4  # of the weights that int8 attention rounds to seven bits; fp32 attention's is 2e-7

every_isa = pytest.mark.parametrize("isa", ISAS)
both_kinds = pytest.mark.parametrize("int8", [False, True], ids=["fp32", "int8"])


def visible(length: int, left: int, right: int) -> Array:
    """bool [query, key]."""
    distance = np.arange(length)[None, :] - np.arange(length)[:, None]
    mask: Array = np.ones((length, length), bool)
    if left >= 0:
        mask &= distance >= -left
    if right >= 0:
        mask &= distance <= right
    return mask


def bias_of(heads: Heads) -> tuple[Array, int]:
    """A relative bias for every distance, and the entry of distance zero."""
    rng = np.random.default_rng(heads.length)
    return padded(rng.standard_normal((heads.heads, 2 * heads.length - 1)).astype(np.float32) * 2), heads.length - 1


def relative(bias: Array, center: int, length: int) -> Array:
    """[heads, query, key] from [heads, distance]."""
    distance = np.arange(length)[:, None] - np.arange(length)[None, :]
    return bias[:, distance + center].astype(np.float64)


def joined(x: Array) -> Array:
    """[heads, length, head_dim] → [length, heads·head_dim]."""
    return x.transpose(1, 0, 2).reshape(x.shape[1], -1)


def oracle_f32(heads: Heads, left: int, right: int, bias: Array | None) -> tuple[Array, Array]:
    """The result in float64 and a bound of the error of float32."""
    q, k, v = (x.astype(np.float64) for x in heads.split())
    scores = heads.scale * q @ k.transpose(0, 2, 1)
    magnitude = heads.scale * np.abs(q) @ np.abs(k).transpose(0, 2, 1)
    if bias is not None:
        scores, magnitude = scores + bias, magnitude + np.abs(bias)
    mask = visible(heads.length, left, right)
    scores = np.where(mask, scores, -np.inf)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    # A score is off by a dot product's error and a few roundings; a weight by that, by exp2 and by the sums of a tile.
    off = (heads.head_dim + 8) * EPS * np.where(mask, magnitude, 0).max(-1, keepdims=True)
    error = 2 * off + 1e-6 + 2 * (min(KEY_TILE, heads.length) + 8) * EPS
    return joined(p @ v), joined(error * (p @ np.abs(v))) + 1e-30


def oracle_i8(heads: Heads, left: int, right: int, bias: Array | None, *, fine: bool = False) -> tuple[Array, Array]:
    """The result with docs/format.md's roundings, and a bound from those of P that may go either way."""
    (q, qs), (k, ks), (v, vs) = (quantized(x) for x in heads.split())
    qs, ks, vs = (s.astype(np.float64) for s in (qs, ks, vs))
    log2e = 1 / np.log(2)
    factor = np.maximum(qs * heads.scale * log2e, 1e-20)[..., None]
    scores = (q @ k.transpose(0, 2, 1)) * ks[:, None, :] * factor
    if bias is not None:
        scores = scores + bias * log2e
    mask = visible(heads.length, left, right)
    scores = np.where(mask, scores, -np.inf)
    top = scores.max(-1, keepdims=True)
    steps = (1 << 14) - 1 if fine else 127
    relative_error = 2 * EXP2_ERROR + 16 * EPS * np.abs(np.where(mask, scores, 0)).max()
    out, error = np.zeros(heads.split()[0].shape), np.zeros(heads.split()[0].shape)
    total = np.zeros(top.shape)
    for start in range(0, heads.length, KEY_TILE):
        tile = slice(start, start + KEY_TILE)
        if not mask[:, tile].any():
            continue
        tile_top = scores[..., tile].max(-1, keepdims=True)
        seen = np.isfinite(tile_top)
        p = np.where(mask[:, tile], np.exp2(scores[..., tile] - np.where(seen, tile_top, 0)), 0)
        w = p * vs[:, None, tile]
        largest = np.maximum(w.max(-1, keepdims=True), 1e-30)
        exact = w * steps / largest
        rounded = np.rint(exact)
        undecided = np.abs(np.abs(exact - np.trunc(exact)) - 0.5) <= relative_error * exact + 1e-9
        weight = np.where(seen, np.exp2(np.where(seen, tile_top, 0) - top), 0)
        values, take = v[:, tile], weight * largest / steps
        out += take * (rounded @ values)
        error += take * ((undecided + relative_error * rounded) @ np.abs(values))
        total += weight * p.sum(-1, keepdims=True)
    out, error = out / total, error / total
    return joined(out), joined(error * (1 + relative_error) + 2 * relative_error * np.abs(out)) + 1e-30


def oracle(heads: Heads, int8: bool, left: int, right: int, bias: Array | None = None) -> tuple[Array, Array]:
    return (oracle_i8 if int8 else oracle_f32)(heads, left, right, bias)


def same_bytes(a: Array, b: Array) -> None:
    np.testing.assert_array_equal(np.ascontiguousarray(a).view(np.uint8), np.ascontiguousarray(b).view(np.uint8))


# --- against the oracle, and every ISA against the scalar one ---------------------------------------------------------


@both_kinds
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("length", LENGTHS)
def test_ranges(length: int, head_dim: int, int8: bool) -> None:
    heads = heads_of(length, head_dim)
    stored = [Attention(isa, heads, int8) for isa in ISAS]
    for left, right in RANGES:
        results = [s.attend(left=left, right=right) for s in stored]
        exact, bound = oracle(heads, int8, left, right)
        assert (np.abs(results[-1] - exact) <= bound).all(), (left, right)
        for result in results[:-1]:
            same_bytes(result, results[-1])


@both_kinds
@pytest.mark.parametrize(("length", "head_dim"), [(1, 1), (2, 5), (17, 26), (65, 64), (129, 32), (257, 80)])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (3, 3), (6, 1)])
def test_relative_bias(length: int, head_dim: int, heads: int, kv_heads: int, int8: bool) -> None:
    case = heads_of(length, head_dim, heads, kv_heads)
    bias, center = bias_of(case)
    stored = [Attention(isa, case, int8) for isa in ISAS]
    for left, right in ((-1, -1), (-1, 0), (7, 3)):
        results = [s.attend(left=left, right=right, bias=bias, bias_center=center) for s in stored]
        exact, bound = oracle(case, int8, left, right, relative(bias, center, length))
        assert (np.abs(results[-1] - exact) <= bound).all()
        for result in results[:-1]:
            same_bytes(result, results[-1])


FINE = [(1, 1, -1, 0), (2, 5, -1, 0), (17, 26, -1, 0), (65, 64, -1, -1), (129, 32, 40, 0), (300, 80, -1, 0)]


@pytest.mark.parametrize(("length", "head_dim", "left", "right"), FINE)
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (3, 1), (5, 5)])
def test_weights_of_fourteen_bits(length: int, head_dim: int, left: int, right: int, heads: int, kv_heads: int) -> None:
    """Many rows and few, in equal bytes, and within their own bound."""
    case = heads_of(length, head_dim, heads, kv_heads)
    exact, bound = oracle_i8(case, left, right, None, fine=True)
    whole = [Attention(isa, case, int8=True) for isa in ISAS]
    results = [s.attend(left=left, right=right, fine=True) for s in whole]
    assert (np.abs(results[-1] - exact) <= bound).all()
    for result, stored in zip(results, whole, strict=True):
        same_bytes(result, results[-1])
        for begin, end in ((length - 1, length), (max(length - 3, 0), length)):
            same_bytes(stored.attend(begin, end, left=left, right=right, fine=True), result[begin:end])


@every_isa
def test_fourteen_bits_are_nearer_than_seven(isa: str) -> None:
    """Against weights that are not rounded at all: what is left is the error of the exponent."""
    case = heads_of(200, 64)
    (q, qs), (k, ks), (v, vs) = (quantized(x) for x in case.split())
    scores = case.scale * (q * qs[..., None].astype(np.float64)) @ (k * ks[..., None].astype(np.float64)).swapaxes(1, 2)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    exact = joined(p / p.sum(-1, keepdims=True) @ (v * vs[..., None].astype(np.float64)))
    stored = Attention(isa, case, int8=True)
    plain, fine = (np.abs(stored.attend(fine=fine) - exact).mean() for fine in (False, True))
    assert fine < plain / 8


def test_bounds_are_tight() -> None:
    """The bounds would notice one key too many or too few."""
    for int8 in (False, True):
        heads = heads_of(65, 26)
        wide, bound = oracle(heads, int8, 4, 3)
        for left, right in ((3, 3), (4, 2), (5, 3)):
            narrow, _ = oracle(heads, int8, left, right)
            assert (np.abs(wide - narrow) > 10 * bound).mean() > 0.3


def activations(x: Array, offset: int) -> Array:
    """The integers in bytes that hold value + offset."""
    return x.view(np.int8 if offset == 0 else np.uint8).astype(np.int64) - offset


@every_isa
@pytest.mark.parametrize(
    ("int8", "head_dim", "rotate", "kv_heads"),
    [(False, 26, 0, 2), (True, 26, 0, 2), (True, 26, 2, 2), (True, 24, 8, 17), (True, 80, 16, 1), (True, 256, 128, 9)],
)
def test_stored_integers_equal_numpy(isa: str, int8: bool, head_dim: int, rotate: int, kv_heads: int) -> None:
    heads = heads_of(37, head_dim, 2 * kv_heads, kv_heads)
    stored = Attention(isa, heads, int8, slot=16, rotate=rotate)
    stride, used = round_up(heads.head_dim, LANES), slice(16, 16 + heads.length)
    q, k, v = (x.transpose(1, 0, 2) for x in heads.split())
    k, v = k[:, ::2], v[:, ::2]
    if rotate:
        q, k = rotated(q, rotate), rotated(k, rotate)
    if not int8:
        for got, expected in zip(stored.cache, (k, v), strict=True):
            assert np.array_equal(got[:, used, : heads.head_dim], expected.transpose(1, 0, 2))
            assert not got[:, used, heads.head_dim :].any()
        return
    offset = kernels(isa).activation_offset
    keys, k_scale, values, v_scale = stored.cache
    values = values.transpose(0, 1, 3, 2).reshape(kv_heads, -1, stride)
    for got, (expected, scale), got_scale in (
        (stored.q, quantized(q), stored.q_scale),
        (activations(keys[:, used], offset).transpose(1, 0, 2), quantized(k), k_scale[:, used].T),
        (values[:, used].transpose(1, 0, 2), quantized(v), v_scale[:, used].T),
    ):
        assert np.array_equal(got[..., : heads.head_dim], expected)
        assert not got[..., heads.head_dim :].any()
        assert np.array_equal(got_scale, scale)
    assert (np.ascontiguousarray(keys[:, :16]).view(np.uint8) == OLD).all()


@every_isa
@pytest.mark.parametrize(("head_dim", "rotate"), [(64, 64), (80, 16), (24, 8)])
def test_rotation_spreads_outliers(isa: str, head_dim: int, rotate: int) -> None:
    """With a channel of the keys far above the others, what was rotated is nearer to the exact result by a third."""
    heads = heads_of(200, head_dim)
    by_head = heads.qkv.reshape(heads.length, -1, head_dim)
    by_head[:, :4] /= 3
    by_head[:, :4, 5] /= 5
    by_head[:, 4:6, 5] *= 25
    exact, _ = oracle_f32(heads, -1, 0, None)
    plain, spread = (
        float(np.sqrt(np.mean((Attention(isa, heads, True, rotate=block).attend(right=0) - exact) ** 2)))
        for block in (0, rotate)
    )
    assert spread < plain * 2 / 3


@both_kinds
@pytest.mark.parametrize("size", [1e6, 1e9, 1e12])
def test_scores_beyond_what_an_exponent_takes(size: float, int8: bool) -> None:
    """Rounding lifts the difference to the largest score far above 0; the result must stay an average of the values."""
    heads = heads_of(150, 32)
    heads = replace(heads, qkv=heads.qkv * np.float32(size))
    results = [Attention(isa, heads, int8).attend() for isa in ISAS]
    assert np.isfinite(results[0]).all()
    assert np.abs(results[0]).max() <= np.abs(heads.qkv).max() * 1.01
    for result in results[1:]:
        same_bytes(result, results[0])


# --- the same bytes however the work is divided -----------------------------------------------------------------------


@every_isa
@both_kinds
def test_stored_in_parts(isa: str, int8: bool) -> None:
    heads = heads_of(129, 26)
    whole = Attention(isa, heads, int8)
    for parts in ((1,), (3,), (17,), (2, 1, 1, 64), (50, 29)):
        part = Attention(isa, heads, int8, parts=parts)
        same_bytes(part.q, whole.q)
        for a, b in zip(part.cache, whole.cache, strict=True):
            same_bytes(a, b)


@every_isa
@both_kinds
@pytest.mark.parametrize(("left", "right"), [(-1, -1), (-1, 0), (40, 3), (0, 0)])
def test_queries_from_the_middle(isa: str, left: int, right: int, int8: bool) -> None:
    heads = heads_of(257, 32)
    bias, center = bias_of(heads)
    for options in ({}, {"bias": bias, "bias_center": center}):
        whole = Attention(isa, heads, int8).attend(left=left, right=right, **options)
        for begin, end in ((0, 1), (1, 2), (5, 21), (63, 64), (100, 257), (256, 257), (128, 145)):
            part = Attention(isa, heads, int8, slot=48, spare=32).attend(begin, end, left=left, right=right, **options)
            same_bytes(part, whole[begin:end])


FEW = (1, 2, 3, 4, 5, 6, 7, 8, 11, 15)
"""Queries at once: with up to six rows keys and channels go into the lanes, with more the rows do."""


@every_isa
@both_kinds
@pytest.mark.parametrize(
    ("length", "head_dim", "heads", "kv_heads"),
    [
        *((40, 1, 2, 2), (140, 26, 4, 2), (77, 80, 3, 1), (300, 64, 4, 4), (130, 32, 9, 3)),
        *((131, 256, 4, 1), (90, 128, 8, 1), (66, 48, 17, 1), (1100, 16, 2, 1)),
    ],
)
def test_few_queries(isa: str, length: int, head_dim: int, heads: int, kv_heads: int, int8: bool) -> None:
    """Alone, a few queries have the bytes that they have among many."""
    case = heads_of(length, head_dim, heads, kv_heads)
    stored = Attention(isa, case, int8)
    bias, center = bias_of(case)
    for left, right in ((-1, 0), (-1, -1), (37, 2), (0, 0)):
        for options in ({}, {"bias": bias, "bias_center": center}):
            whole = stored.attend(max(0, length - 48), left=left, right=right, **options)
            for count in FEW:
                for end in {length, length - 5 - count}:
                    part = stored.attend(end - count, end, left=left, right=right, **options)
                    rows = slice(end - count - length + len(whole), end - length + len(whole))
                    same_bytes(part, whole[rows])


@every_isa
@both_kinds
def test_few_queries_of_some_heads(isa: str, int8: bool) -> None:
    """However the heads that share keys are divided among threads."""
    stored = Attention(isa, heads_of(70, 26, 12, 2), int8)
    whole = stored.attend()
    for count in (1, 2, 3, 17):
        for begin, end in ((0, 1), (4, 9), (5, 6), (6, 12), (1, 12)):
            part = stored.attend(70 - count, head_begin=begin, head_end=end)
            inside = slice(begin * 26, end * 26)
            same_bytes(part[:, inside], whole[70 - count :, inside])


@both_kinds
@pytest.mark.parametrize(("left", "right"), [(-1, -1), (-1, 0), (1000, 50), (1, 1)])
def test_splits_of_many_keys(left: int, right: int, int8: bool) -> None:
    """Beyond 1,024 keys: near float64, and a query's bytes do not depend on which splits its neighbours see."""
    heads = heads_of(2100, 26, 2, 1)
    exact, bound = oracle(heads, int8, left, right)
    whole = Attention(ISAS[0], heads, int8).attend(left=left, right=right)
    assert (np.abs(whole - exact) <= bound).all()
    for isa in ISAS:
        stored = Attention(isa, heads, int8)
        for begin, end in ((1000, 1050), (1023, 1024), (2040, 2100), (2097, 2100)):
            same_bytes(stored.attend(begin, end, left=left, right=right), whole[begin:end])


@every_isa
@both_kinds
def test_heads_apart(isa: str, int8: bool) -> None:
    heads = heads_of(33, 26)
    stored = Attention(isa, heads, int8)
    whole = stored.attend()
    for begin, end in ((0, 1), (1, 3), (3, 4), (2, 2)):
        part = stored.attend(head_begin=begin, head_end=end)
        inside = slice(begin * 26, end * 26)
        same_bytes(part[:, inside], whole[:, inside])
        outside = np.delete(part, np.arange(inside.start, inside.stop), axis=1)
        assert (np.ascontiguousarray(outside).view(np.uint8) == OLD).all()


# --- windows ----------------------------------------------------------------------------------------------------------


def spoil(stored: Attention, begin: int, end: int) -> None:
    """Not a number, or whatever bytes, in the slots [begin, end)."""
    if stored.int8:
        keys, k_scale, values, v_scale = stored.cache
        keys[:, begin:end], values[:, begin // 4 : end // 4] = 170, -86
        k_scale[:, begin:end] = v_scale[:, begin:end] = np.nan
    else:
        for array in stored.cache:
            array[:, begin:end] = np.nan


@every_isa
@both_kinds
@pytest.mark.parametrize(("begin", "end", "left", "right"), [(400, 416, 64, 0), (256, 272, 0, 0), (300, 340, 100, 100)])
def test_tiles_out_of_range_are_not_touched(isa: str, begin: int, end: int, left: int, right: int, int8: bool) -> None:
    stored = Attention(isa, heads_of(1024, 26), int8)
    whole = stored.attend(begin, end, left=left, right=right)
    first, last = max(0, begin - left) // KEY_TILE * KEY_TILE, round_up(end + right, KEY_TILE)
    spoil(stored, 0, first)
    spoil(stored, last, 1024)
    same_bytes(stored.attend(begin, end, left=left, right=right), whole)
    assert np.isfinite(whole).all()
    spoil(stored, first, last)  # the test can fail: these tiles are read
    assert not np.array_equal(stored.attend(begin, end, left=left, right=right), whole)


@every_isa
@both_kinds
def test_window_takes_linear_time(isa: str, int8: bool) -> None:
    """Four times the length takes about four times the time, not sixteen, and far less than attending to all keys."""
    length = 256 if isa == "scalar" else 1024
    short, long = (Attention(isa, heads_of(n, 32, 1, 1), int8) for n in (length, 4 * length))
    times: dict[str, list[float]] = {"short": [], "long": [], "dense": []}
    for _ in range(7):  # in turn, by the thread's own clock, which stands while a neighbour has the core
        for name, stored, left in (("short", short, 64), ("long", long, 64), ("dense", long, -1)):
            start = time.thread_time()
            stored.attend(left=left, right=0 if left >= 0 else -1)
            times[name].append(time.thread_time() - start)
    best = {name: min(values) for name, values in times.items()}
    assert best["long"] < 8 * best["short"]
    assert best["dense"] > 2 * best["long"]


@every_isa
@both_kinds
def test_zero_and_huge_rows(isa: str, int8: bool) -> None:
    """Rows of zeros attend evenly; scores far apart pick one key; nothing overflows."""
    heads = heads_of(40, 26)
    heads.qkv[:] = np.abs(heads.qkv)
    heads.qkv[3] = 0
    heads.qkv[20] *= 1e4
    result = Attention(isa, heads, int8).attend()
    assert np.isfinite(result).all()
    exact, bound = oracle(heads, int8, -1, -1)
    assert (np.abs(result - exact) <= bound)[3].all()
    zeros = Heads(np.zeros((5, 8 * 26), np.float32), 26)
    assert not Attention(isa, zeros, int8).attend().view(np.uint8).any()

"""Attention of every ISA against float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from helpers.attention_oracle import bias_of, joined, oracle, oracle_f32, oracle_i8, relative, same_bytes
from helpers.kernels import OLD, Attention, Heads, heads_of, kernels, quantized, rotated
from pocketformer import _core
from pocketformer.graph import Array
from pocketformer.layout import LANES, round_up

ISAS = _core.isas()
HEAD_DIMS = (1, 2, 3, 4, 5, 26, 32, 64, 80, 128, 256)
LENGTHS = (1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 257)
RANGES = ((-1, -1), (-1, 0), (0, -1), (0, 0), (3, 5), (64, 0), (0, 7), (130, 2), (1, 1))

every_isa = pytest.mark.parametrize("isa", ISAS)
both_kinds = pytest.mark.parametrize("int8", [False, True], ids=["fp32", "int8"])


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

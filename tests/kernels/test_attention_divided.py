"""Attention has the same bytes however its work is divided, and reads no key that is out of range."""

from __future__ import annotations

import time

import numpy as np
import pytest

from helpers.attention_oracle import KEY_TILE, bias_of, oracle, same_bytes
from helpers.kernels import OLD, Attention, heads_of
from pocketformer import _core
from pocketformer.layout import round_up

ISAS = _core.isas()

every_isa = pytest.mark.parametrize("isa", ISAS)
both_kinds = pytest.mark.parametrize("int8", [False, True], ids=["fp32", "int8"])


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

"""Weights whose pairs are bounded: how ``pack`` rounds them, and products at the bound, where 16 bits are full."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from helpers.kernels import fma32
from pocketformer import _core, kernels
from pocketformer.graph import Array
from pocketformer.layout import MAX_PAIR

every_isa = pytest.mark.parametrize("isa", _core.isas())


def codes(w: kernels.Weight) -> Array:
    return kernels.matmul_int8(np.eye(w.shape[1], dtype=np.int8), w).T


def pairs(values: Array) -> Array:
    """|w0| + |w1| of each pair [n, ⌈k/2⌉]."""
    n, k = values.shape
    return np.abs(np.pad(values, ((0, 0), (0, k % 2)))).reshape(n, -1, 2).sum(2)


def at_the_bound(n: int, k: int) -> Array:
    """int8 [n, k]: 64 and 64, 127 and 1, 1 and 127 and others, of one sign, of the other, and of both."""
    rng = np.random.default_rng((n, k))
    first = rng.choice([1, 64, 127, 100], (n, (k + 1) // 2))
    first[::5], first[1::5] = 64, 127
    if k == 1:
        first[:] = 127
    weight = np.stack([first, MAX_PAIR - first], axis=2).reshape(n, -1)[:, :k]
    signs = rng.choice([-1, 1], (n, k))
    signs[::3], signs[1::3] = 1, -1
    signs[0] = 1
    return (weight * signs).astype(np.int8)


def extreme(m: int, k: int) -> Array:
    q = np.random.default_rng((m, k)).choice([-127, 127, 0, 1], (m, k)).astype(np.int8)
    q[0], q[m // 2], q[m - 1] = 127, -127, np.where(np.arange(k) % 2, 127, -127)
    return q


@every_isa
@pytest.mark.parametrize("k", [1, 2, 3, 7, 64, 257, 1099])
def test_products_at_the_bound_are_exact(isa: str, k: int) -> None:
    values = at_the_bound(37, k)
    w, plain = (kernels.pack(values.astype(np.float32), rotate=0, bounded_pairs=b) for b in (True, False))
    np.testing.assert_array_equal(codes(w), values)
    assert (w.bounded_pairs, plain.bounded_pairs) == (True, False)
    for m in range(1, 10):
        q = extreme(m, k)
        exact = q.astype(np.int64) @ values.T.astype(np.int64)
        x = q.astype(np.float32) * np.float32(0.25)
        with kernels.using(isa):
            np.testing.assert_array_equal(kernels.matmul_int8(q, w), exact)
            y = kernels.matmul(x, w, np.ones(37, np.float32))
        rounded, scale = kernels.quantize(x, like=w)
        integers = rounded.astype(np.int64) @ values.T.astype(np.int64)
        assert w.scale is not None
        expected = fma32(integers.astype(np.float32) * w.scale, scale[:, None], np.ones(37, np.float32))
        np.testing.assert_array_equal(y.view(np.int32), expected.view(np.int32))


@pytest.mark.parametrize(("n", "k"), [(1, 1), (17, 6), (40, 384), (33, 1101)])
@pytest.mark.parametrize("rotate", ["auto", 0])
def test_packing_keeps_to_the_bound_and_near_the_weight(n: int, k: int, rotate: Any) -> None:
    weight = np.random.default_rng(k).standard_normal((n, k)).astype(np.float32)
    weight[n // 2] = 0 if n > 1 else weight[0]
    bounded, plain = (kernels.pack(weight, rotate=rotate, bounded_pairs=b) for b in (True, False))
    values = codes(bounded)
    assert pairs(values).max() <= MAX_PAIR
    assert np.abs(values).max() <= 127
    errors = [np.square(w.dequantize() - weight.astype(np.float64)).sum() for w in (bounded, plain)]
    assert errors[0] <= (2.2 if k >= 100 else 4.1) * errors[1] + 1e-12  # a step is at most twice as long


def test_pairs_beyond_the_bound_become_what_is_near() -> None:
    """One pair of many is beyond: it is moved onto the bound, and the others keep their scale."""
    weight = np.tile(np.array([[127, 0, 1, -3]], np.float32), (1, 256))
    weight[0, 8:10] = -70, 62
    w = kernels.pack(weight, rotate=0, bounded_pairs=True)
    values = codes(w)
    assert w.scale is not None
    assert w.scale[0] == 1
    np.testing.assert_array_equal(values[0, 8:10], [-68, 60])
    np.testing.assert_array_equal(np.delete(values, [8, 9]), np.delete(weight, [8, 9]))


@pytest.mark.parametrize("dtype", ["int4", "float16", "float32"])
def test_only_int8_has_them(dtype: Any) -> None:
    with pytest.raises(ValueError, match=f"bounded_pairs is true; {dtype} weights have no such pairs"):
        kernels.pack(np.ones((3, 32), np.float32), dtype, bounded_pairs=True)

"""pocketformer.kernels: 4-bit weights, indices into a codebook with a scale for each output or group of inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pocketformer import _core, kernels
from pocketformer.graph import Array

every_isa = pytest.mark.parametrize("isa", _core.isas())
every_group = pytest.mark.parametrize("group", [None, 16, 32, 64, 128])
LEARNED = np.array([-127, -96, -72, -52, -38, -24, -12, -3, 5, 14, 26, 40, 56, 74, 96, 125], np.int8)


def floats(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float32)


def nearest(weight: Array, group: int, codebook: Array) -> tuple[Array, Array]:
    """What float64 [n, k] stands for after rounding, and the scales [n, k // group]."""
    n, k = weight.shape
    parts = weight.astype(np.float64).reshape(n, k // group, group)
    extreme = np.take_along_axis(parts, np.abs(parts).argmax(-1)[..., None], -1)
    most = codebook[0] if -int(codebook[0]) > codebook[-1] else codebook[-1]
    scale = (extreme / most).astype(np.float32)
    step = np.where(scale == 0, 1, scale).astype(np.float64)
    index = np.abs((parts / step)[..., None] - codebook).argmin(-1)
    return (codebook[index] * scale.astype(np.float64)).reshape(n, k), scale[..., 0]


@every_group
@pytest.mark.parametrize("codebook", [None, LEARNED])
def test_packing_takes_the_nearest_entry(group: int | None, codebook: Array | None) -> None:
    weight = floats(33, 384)
    weight[7] = 0
    w = kernels.pack(weight, "int4", group, rotate=0, codebook=codebook)
    expected, scale = nearest(weight, group or 384, kernels.UNIFORM if codebook is None else codebook)
    assert (w.dtype, w.group, w.rotate) == ("int4", group, 0)
    assert w.scale is not None
    np.testing.assert_array_equal(w.scale, scale if group else scale[:, 0])
    np.testing.assert_array_equal(w.dequantize(), expected.astype(np.float32))
    assert w.nbytes == 48 * 384 // 2 + 48 * (384 // (group or 384)) * 4 + 64


@every_isa
@every_group
@pytest.mark.parametrize(("m", "n", "k"), [(1, 16, 128), (19, 39, 384), (66, 80, 256)])
def test_products(isa: str, group: int | None, m: int, n: int, k: int) -> None:
    x, weight, bias = floats(m, k), floats(n, k, seed=1), floats(n, seed=2)
    w = kernels.pack(weight, "int4", group, codebook=LEARNED)
    plain = kernels.pack(w.dequantize(), "float32")
    with kernels.using(isa):
        y = kernels.matmul(x, w, bias)
        for threads in (2, 5):
            np.testing.assert_array_equal(kernels.matmul(x, w, bias, threads=threads), y)
    np.testing.assert_array_equal(y, kernels.matmul(x, w, bias))
    exact = kernels.matmul(x, plain, bias)
    assert np.linalg.norm(y - exact) / np.linalg.norm(exact) < 0.012  # the rounding of x, as with int8


@every_isa
@pytest.mark.parametrize(("k", "group"), [(1, None), (5, None), (26, None), (100, None), (48, 16)])
def test_odd_depths(isa: str, k: int, group: int | None) -> None:
    """Against the integers of the rounded input, in float64."""
    x, w = floats(9, k), kernels.pack(floats(20, k, seed=1), "int4", group, rotate=0)
    q, s = kernels.quantize(x, like=w)
    with kernels.using(isa):
        y = kernels.matmul(x, w)
    exact = q.astype(np.float64) * s[:, None] @ w.dequantize().T.astype(np.float64)
    np.testing.assert_allclose(y, exact, rtol=1e-5, atol=1e-5)


def test_what_follows_a_product() -> None:
    x, w = floats(19, 64), kernels.pack(floats(39, 64, seed=1), "int4", 32)
    multiply, residual = floats(19, 39, seed=3), floats(19, 39, seed=4)
    y = kernels.matmul(x, w)
    np.testing.assert_array_equal(
        kernels.matmul(x, w, None, "silu", multiply, residual), kernels.silu(y) * multiply + residual
    )


def test_rotation_helps() -> None:
    x, weight = floats(50, 256), floats(64, 256, seed=1)
    x[:, 3] *= 40
    exact = x @ weight.T
    errors = [np.linalg.norm(kernels.matmul(x, kernels.pack(weight, "int4", 32, rotate=r)) - exact) for r in (128, 0)]
    assert errors[0] < errors[1]


X = floats(5, 96)
W = kernels.pack(X, "int4")
REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: kernels.pack(X, "int4", 24), "group is 24; it must be None, 16, 32, 64 or 128 and divide the inputs, 96"),
    (lambda: kernels.pack(X, "int4", 64), "group is 64; .* divide the inputs, 96"),
    (lambda: kernels.pack(X, "int4", codebook=LEARNED[:15]), r"codebook is .*; it must have shape \(16\)"),
    (lambda: kernels.pack(X, "int4", codebook=LEARNED[::-1].copy()), "codebook must ascend from -127 at least"),
    (lambda: kernels.pack(X, "int4", codebook=LEARNED.astype(np.int16)), "codebook is int16"),
    (lambda: kernels.pack(X, "int8", codebook=LEARNED), "codebook is given; only int4 weights have one"),
    (lambda: kernels.matmul_int8(np.zeros((2, 96), np.int8), W), "w is int4; the integer product takes a weight of"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED)
def test_refusals(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()

"""pocketformer.kernels: norms, activations and softmax on rows of any length."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pocketformer import _core, kernels
from pocketformer.graph import Array

every_isa = pytest.mark.parametrize("isa", _core.isas())
every_width = pytest.mark.parametrize("width", [1, 5, 16, 33, 384, 1000])


def floats(*shape: int, seed: int = 0, spread: float = 1.0) -> Array:
    return (np.random.default_rng((seed, *shape)).standard_normal(shape) * spread).astype(np.float32)


def on_every_isa(call: Callable[[], Array]) -> Array:
    """The result, which must be the same bytes on all."""
    results = []
    for isa in kernels.isas():
        with kernels.using(isa):
            results.append(call())
    for result in results[1:]:
        np.testing.assert_array_equal(result.view(np.uint8), results[0].view(np.uint8))
    return results[0]


@every_width
def test_layer_norm(width: int) -> None:
    x, weight, bias = floats(2, 3, width, spread=4) + 2, floats(width, seed=1), floats(width, seed=2)
    result = on_every_isa(lambda: kernels.layer_norm(x, weight, bias, eps=1e-3))
    wide = x.astype(np.float64)
    centred = wide - wide.mean(-1, keepdims=True)
    exact = centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + 1e-3) * weight + bias
    np.testing.assert_allclose(result, exact, rtol=1e-5, atol=2e-5)
    without = kernels.layer_norm(x, weight, eps=1e-3)
    np.testing.assert_allclose(without, exact - bias, rtol=1e-5, atol=2e-5)


@every_width
def test_rms_norm(width: int) -> None:
    x, weight = floats(7, width, spread=4), floats(width, seed=1)
    result = on_every_isa(lambda: kernels.rms_norm(x, weight, eps=1e-3))
    wide = x.astype(np.float64)
    exact = wide / np.sqrt(np.square(wide).mean(-1, keepdims=True) + 1e-3) * weight
    np.testing.assert_allclose(result, exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(1,), (15,), (3, 5, 7), (1030,), (2, 1024), (0, 4)])
def test_activations(shape: tuple[int, ...]) -> None:
    x = floats(*shape, spread=3)
    wide = x.astype(np.float64)
    erf = np.vectorize(math.erf, otypes=[np.float64])
    tanh = np.tanh(math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3))
    for result, exact in (
        (on_every_isa(lambda: kernels.gelu(x)), wide * 0.5 * (1 + erf(wide / math.sqrt(2)))),
        (on_every_isa(lambda: kernels.gelu(x, "tanh")), wide * 0.5 * (1 + tanh)),
        (on_every_isa(lambda: kernels.silu(x)), wide / (1 + np.exp(-wide))),
    ):
        assert result.shape == x.shape
        np.testing.assert_allclose(result, exact, rtol=1e-5, atol=4e-6)


@every_width
def test_softmax(width: int) -> None:
    x = floats(9, width, spread=5)
    x[3] += 1e4
    x[4, 0] = -3e38
    result = on_every_isa(lambda: kernels.softmax(x))
    distance = x.astype(np.float64) - x.astype(np.float64).max(-1, keepdims=True)
    exact = np.exp(distance) / np.exp(distance).sum(-1, keepdims=True)
    # The exponent's own error, and two roundings of its argument.
    assert (np.abs(result - exact) <= exact * (5e-7 - distance * 2.0**-23) + 1e-30).all()
    np.testing.assert_allclose(result.sum(-1), 1, rtol=1e-5)
    assert (kernels.softmax(floats(3, 1)) == 1).all()


def turned(x: Array, positions: Array, frequencies: Array, factor: float = 1.0) -> Array:
    """In float64, of the float32 product of position and frequency."""
    n = len(frequencies)
    angle = (positions.astype(np.float32)[:, None] * frequencies).astype(np.float64)[:, None]
    sin, cos = np.sin(angle) * factor, np.cos(angle) * factor
    low, high, rest = x[..., :n].astype(np.float64), x[..., n : 2 * n].astype(np.float64), x[..., 2 * n :]
    result: Array = np.concatenate([low * cos - high * sin, high * cos + low * sin, rest], axis=-1)
    return result


@pytest.mark.parametrize(("tokens", "heads", "head_dim"), [(1, 1, 2), (7, 3, 26), (20, 4, 64), (5, 2, 33), (3, 1, 256)])
def test_rope(tokens: int, heads: int, head_dim: int) -> None:
    x = floats(tokens, heads, head_dim)
    pairs = np.arange(0, head_dim - head_dim % 2, 2)
    default = (10000.0 ** (-pairs / head_dim)).astype(np.float32)
    result = on_every_isa(lambda: kernels.rope(x))
    np.testing.assert_allclose(result, turned(x, np.arange(tokens), default), atol=3e-6)
    positions = np.linspace(0, 2**17 - 1, tokens, dtype=np.int32)
    some = default[: max(1, len(default) // 2)]
    result = on_every_isa(lambda: kernels.rope(x, positions, some, factor=1.3))
    np.testing.assert_allclose(result, turned(x, positions, some, 1.3), atol=1e-5)
    np.testing.assert_array_equal(result[..., 2 * len(some) :], x[..., 2 * len(some) :])


X = floats(3, 8)
HEADS = floats(3, 2, 8)
ONES = np.ones(8, np.float32)
REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: kernels.layer_norm(X.astype(np.float16), ONES), "x is float16 .*; pass a numpy array of float32"),
    (lambda: kernels.layer_norm(X, ONES[:7]), r"weight is float32 of shape \(7,\); it must have shape \(8\)"),
    (lambda: kernels.layer_norm(X, None), "weight is None; pass one value for each of the 8 columns"),  # type: ignore[arg-type]
    (lambda: kernels.layer_norm(X, ONES, np.ones(9, np.float32)), r"bias is .*; it must have shape \(8\)"),
    (lambda: kernels.rms_norm(X, ONES, eps=-1.0), "eps is -1; it must be 0 or above"),
    (lambda: kernels.rms_norm(X[:, :0].copy(), ONES), "x is .*; its last axis must hold 1 to"),
    (lambda: kernels.gelu(X[:, ::2]), "x is not C-contiguous; pass numpy.ascontiguousarray"),
    (lambda: kernels.gelu(X, "erf"), "approximate is 'erf'; it must be none or tanh"),  # type: ignore[arg-type]
    (lambda: kernels.rope(X), r"x is .*; it must have shape \(tokens, heads, head_dim\)"),
    (lambda: kernels.rope(HEADS, np.arange(2, dtype=np.int32)), "positions is .*; it must have one for each token, 3"),
    (lambda: kernels.rope(HEADS, np.arange(3)), "positions is int64 .*; pass a numpy array of int32"),  # type: ignore[arg-type]
    (
        lambda: kernels.rope(HEADS, np.array([0, 1, 2**17], np.int32)),
        "positions holds 131072; they must be 0 to 131071",
    ),
    (lambda: kernels.rope(HEADS, frequencies=ONES[:5]), "frequencies is .*; it must have 1 to head_dim / 2 entries, 4"),
    (lambda: kernels.rope(HEADS, frequencies=ONES[:2] * 3), "frequencies holds 3; they must be 0 to 1"),
    (lambda: kernels.rope(HEADS, factor=0), "factor is 0; it must be above 0"),
    (lambda: kernels.softmax(np.float32(3)), "x is a float32; pass a numpy array"),  # type: ignore[arg-type]
    (lambda: kernels.softmax(X * np.float32(np.nan)), "x, row 0, holds NaN or infinity; pass finite numbers"),
    (lambda: kernels.rms_norm(X, ONES * np.float32(np.inf)), "weight, row 0, holds NaN or infinity"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED)
def test_refusals(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()

"""What products of every format share: the order of the epilogue, rows as short as the channels, sums of rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from helpers.kernels import OLD, aligned, fresh, kernels, padded, panels, quantized, rotated
from pocketformer import _core
from pocketformer.graph import Array
from pocketformer.layout import LANES, round_up

every_isa = pytest.mark.parametrize("isa", _core.isas())
every_format = pytest.mark.parametrize("weights", ["fp32", "int8"])


def floats(shape: tuple[int, ...], seed: int = 0, spread: float = 1.0) -> Array:
    return (np.random.default_rng((seed, *shape)).standard_normal(shape) * spread).astype(np.float32)


def operands(isa: str, weights: str, m: int, n: int, k: int) -> tuple[Array, Array, dict[str, Any]]:
    """x, weight and what belongs to them, as ``Kernels.gemm`` takes them; n and k besides."""
    x = padded(floats((m, k)))
    if weights == "fp32":
        return x, panels(floats((n, k), 1)), {"k": k, "n": n}
    q, x_scale = fresh((m, round_up(k, 64)), np.uint8), fresh((m,))
    kernels(isa).quantize_rows(x, q, x_scale, k)
    weight = np.random.default_rng(n).integers(-127, 128, (n, k)).astype(np.int8)
    colsum = padded(weight.sum(1, dtype=np.int32))
    return q, panels(weight), {"k": k, "n": n, "x_scale": x_scale, "scale": padded(floats((n,), 2)), "colsum": colsum}


def product(isa: str, weights: str, m: int, n: int, k: int, columns: int = 0, **options: Any) -> Array:
    """[m, ``columns``], by default whole panels."""
    x, weight, beside = operands(isa, weights, m, n, k)
    out = fresh((m, columns or round_up(n, LANES)))
    kernels(isa).gemm(x, weight, out, **beside, **options)
    return out


@every_isa
@every_format
@pytest.mark.parametrize("activation", ["none", "gelu", "silu"])
def test_multiply_comes_after_the_activation_and_before_the_residual(isa: str, weights: str, activation: str) -> None:
    shape = 29, 33, 26
    multiply, residual = padded(floats((29, 33), 3)), padded(floats((29, 33), 4))
    plain = product(isa, weights, *shape, activation=activation, precise=True)
    times = product(isa, weights, *shape, activation=activation, multiply=multiply)
    assert np.array_equal(times, plain * multiply)
    both = product(isa, weights, *shape, activation=activation, multiply=multiply, residual=residual)
    assert np.array_equal(both, plain * multiply + residual)


@every_isa
@every_format
def test_the_caller_chooses_the_polynomial(isa: str, weights: str) -> None:
    precise, fast = (product(isa, weights, 3, 20, 26, activation="gelu", precise=p) for p in (True, False))
    default = product(isa, weights, 3, 20, 26, activation="gelu")
    assert not np.array_equal(precise, fast)
    assert np.abs(precise - fast).max() < 2e-4
    assert np.array_equal(default, precise if weights == "fp32" else fast)


@every_isa
@every_format
@pytest.mark.parametrize("n", [1, 15, 17, 33, 48, 100])
def test_rows_may_be_as_short_as_the_channels(isa: str, weights: str, n: int) -> None:
    bias = padded(floats((n,), 5))
    for m in (1, 2, 17, 40):
        multiply, residual = padded(floats((m, n), 3)), padded(floats((m, n), 4))
        options = {"activation": "gelu", "bias": bias}
        whole = product(isa, weights, m, n, 26, multiply=multiply, residual=residual, **options)
        assert not whole[:, n:].any()
        for columns in {n, min(n + 3, round_up(n, LANES)), n + 40}:
            wide = columns > round_up(n, LANES)
            beside = [padded(a) if wide else aligned(whole_of(a, columns)) for a in (multiply, residual)]
            short = product(isa, weights, m, n, 26, columns, multiply=beside[0], residual=beside[1], **options)
            written = min(columns, round_up(n, LANES))
            assert np.array_equal(short[:, :written], whole[:, :written]), (m, columns)
            assert (np.ascontiguousarray(short[:, written:]).view(np.uint8) == OLD).all()


def whole_of(array: Array, columns: int) -> Array:
    return np.ascontiguousarray(array[:, :columns])


@every_isa
@every_format
def test_short_rows_by_panels(isa: str, weights: str) -> None:
    """Each range of panels writes its own columns, the last of them shorter than a vector."""
    x, weight, beside = operands(isa, weights, 19, 70, 26)
    whole, parts = fresh((19, 70)), fresh((19, 70))
    kernels(isa).gemm(x, weight, whole, **beside)
    for begin, end in ((4, 5), (0, 1), (1, 4), (5, 5)):
        kernels(isa).gemm(x, weight, parts, **beside, panel_begin=begin, panel_end=end)
    assert np.array_equal(whole, parts)


@every_isa
@pytest.mark.parametrize("rotate", [0, 2, 128])
@pytest.mark.parametrize(("k", "group"), [(26, 0), (1200, 0), (9000, 0), (64, 16), (96, 32), (640, 128), (4608, 64)])
def test_signed_rows_and_their_sums(isa: str, k: int, group: int, rotate: int) -> None:
    if rotate != 0 and k % rotate != 0:
        rotate = k & -k if k % 2 == 0 else 0
    x = floats((5, k), 7)
    x[2], x[3] = 0, 127
    groups = 1 if group == 0 else k // group
    q, scale = fresh((5, round_up(k, 64)), np.uint8), fresh((5,))
    sums = fresh((5, groups + 1), np.int32)
    kernels(isa).quantize_rows(padded(x), q, scale, k, rotate, True, group, sums)
    expected, expected_scale = quantized(rotated(x, rotate))
    assert np.array_equal(q.view(np.int8)[:, :k], expected)
    assert not q[:, k : round_up(k, LANES)].any()
    assert np.array_equal(scale, expected_scale)
    assert np.array_equal(sums[:, :groups], expected.reshape(5, groups, -1).sum(2))
    assert (np.ascontiguousarray(sums[:, groups:]).view(np.uint8) == OLD).all()

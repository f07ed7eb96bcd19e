"""Products, quantization and row operators of every ISA: integers equal, floats within bounds from the number of terms.

``avxvnni`` is in the list on CPUs with AVX-VNNI (Intel since Alder Lake, AMD since Zen 5); ``avxvnni_evex`` is the same
source in another encoding and stands for it on CPUs with AVX512-VNNI.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from helpers.kernels import EPS, OLD, aligned, fma32, fresh, kernels, padded, panels, quantized, rotated
from pocketformer import _core
from pocketformer.graph import Array
from pocketformer.layout import LANES, round_up

ISAS = _core.isas()
ROWS = (*range(1, 16), 17, 28, 29, 63)
COLUMNS = (1, 2, 15, 16, 17, 31, 33, 48, 312)
DEPTHS = (1, 2, 3, 4, 5, 7, 8, 26, 127, 128, 384, 1200, 1536)
ACTIVATIONS = ("gelu", "gelu_tanh", "relu", "silu", "tanh")

every_isa = pytest.mark.parametrize("isa", ISAS)


def same_bytes(a: Array, b: Array) -> None:
    np.testing.assert_array_equal(a.view(np.uint8), b.view(np.uint8))


def floats(shape: tuple[int, ...], seed: int = 0, spread: float = 1.0) -> Array:
    return (np.random.default_rng((seed, *shape)).standard_normal(shape) * spread).astype(np.float32)


# --- int8 product -----------------------------------------------------------------------------------------------------


def int8_case(kind: str, rows: int, n: int, k: int) -> tuple[Array, Array]:
    if kind == "extreme":  # signs that add up, that cancel, and that alternate within a pair
        a = np.where(np.arange(rows)[:, None] % 2 == 0, 127, -127) * np.where(
            (np.arange(rows)[:, None] % 3 == 0) & (np.arange(k) % 2 == 1), -1, 1
        )
        w = np.where(np.arange(n)[:, None] % 2 == 0, 127, -127) * np.ones((n, k), np.int64)
        return a.astype(np.int8), w.astype(np.int8)
    rng = np.random.default_rng((rows, n, k))
    return rng.integers(-127, 128, (rows, k), np.int8), rng.integers(-127, 128, (n, k), np.int8)


def stored_rows(isa: str, a: Array) -> Array:
    """int8 rows as quantize_rows writes them; what lies beyond the last group of four is never read."""
    k, offset = a.shape[1], kernels(isa).activation_offset
    q = fresh((len(a), round_up(k, 64)), np.uint8)
    q[:, : round_up(k, 4)] = offset
    q[:, :k] = (a.astype(np.int16) + offset).astype(np.uint8)
    return q


def product_i8(isa: str, a: Array, w: Array, rows: int, a_scale: Array, w_scale: Array, **options: Any) -> Array:
    out = fresh((rows, round_up(len(w), LANES)))
    colsum = padded(w.astype(np.int64).sum(1).astype(np.int32))
    x, scales = aligned(stored_rows(isa, a)[:rows]), {"x_scale": aligned(a_scale[:rows]), "scale": padded(w_scale)}
    kernels(isa).gemm(x, panels(w), out, a.shape[1], colsum=colsum, **scales, **options)
    return out


@every_isa
@pytest.mark.parametrize("kind", ["random", "extreme"])
@pytest.mark.parametrize("k", DEPTHS)
def test_int8_product_equals_int64(isa: str, k: int, kind: str) -> None:
    for n in COLUMNS:
        a, w = int8_case(kind, max(ROWS), n, k)
        acc = (a.astype(np.int64) @ w.T.astype(np.int64)).astype(np.float32)
        a_scale, w_scale, bias = floats((len(a),), 1), floats((n,), 2), floats((n,), 3, spread=100)
        expected = np.zeros((len(a), round_up(n, LANES)), np.float32)
        expected[:, :n] = fma32(acc * w_scale, a_scale[:, None], bias)
        for rows in ROWS:
            out = product_i8(isa, a, w, rows, a_scale, w_scale, bias=padded(bias))
            assert np.array_equal(out, expected[:rows]), (rows, n)


@every_isa
@pytest.mark.parametrize("k", [1, 2, 7, 128, 1536])
def test_int8_product_accumulators(isa: str, k: int) -> None:
    """Without scales, bias or rounding in the way."""
    a, w = int8_case("extreme", 29, 33, k)
    out = product_i8(isa, a, w, 29, np.ones(29, np.float32), np.ones(33, np.float32))
    assert np.array_equal(out[:, :33], (a.astype(np.int64) @ w.T.astype(np.int64)).astype(np.float32))


def test_int8_product_may_round_only_its_sum() -> None:
    """The test data do reach sums that float32 cannot hold, or the order of roundings would go untested."""
    a, w = int8_case("extreme", 63, 2, 1536)
    sums = a.astype(np.int64) @ w.T.astype(np.int64)
    assert np.abs(sums).max() == 1536 * 127 * 127 > 2**24


@every_isa
@pytest.mark.parametrize(("begin", "end"), [(0, 0), (0, 1), (1, 2), (0, 3), (2, 5), (3, 5), (4, 5), (1, 4)])
def test_panel_ranges_touch_nothing_else(isa: str, begin: int, end: int) -> None:
    a, w = int8_case("random", 17, 70, 26)
    a_scale, w_scale = floats((17,), 1), floats((70,), 2)
    x, v, residual = floats((17, 26)), floats((70, 26), 5), padded(floats((17, 70), 6))
    out32 = fresh((17, 96))
    whole32 = fresh((17, 96))
    whole = product_i8(isa, a, w, 17, a_scale, w_scale, residual=residual, activation="gelu")
    part = product_i8(
        isa, a, w, 17, a_scale, w_scale, residual=residual, activation="gelu", panel_begin=begin, panel_end=end
    )
    kernels(isa).gemm(padded(x), panels(v), whole32, 26)
    kernels(isa).gemm(padded(x), panels(v), out32, 26, panel_begin=begin, panel_end=end)
    inside = slice(begin * LANES, end * LANES)
    for result, full in ((part, whole), (out32, whole32)):
        same_bytes(aligned(result[:, inside]), aligned(full[:, inside]))
        outside = np.delete(result, np.arange(inside.start, inside.stop), axis=1)
        assert (np.ascontiguousarray(outside).view(np.uint8) == OLD).all()


# --- fp32 product, epilogues ------------------------------------------------------------------------------------------


def product_f32(isa: str, x: Array, w: Array, **options: Any) -> Array:
    out = fresh((len(x), round_up(len(w), LANES)))
    kernels(isa).gemm(padded(x), panels(w), out, x.shape[1], **options)
    return out


@every_isa
@pytest.mark.parametrize("k", DEPTHS)
def test_fp32_product(isa: str, k: int) -> None:
    for n in COLUMNS:
        x, w, bias = floats((max(ROWS), k)), floats((n, k), 1), floats((n,), 2)
        exact = x.astype(np.float64) @ w.T.astype(np.float64) + bias
        bound = (k + 1) * EPS * 1.01 * (np.abs(x).astype(np.float64) @ np.abs(w).T + np.abs(bias))
        reference = product_f32("scalar", x, w, bias=padded(bias))
        assert (np.abs(reference[:, :n] - exact) <= bound).all()
        assert not reference[:, n:].any()
        for rows in ROWS:
            same_bytes(product_f32(isa, x[:rows], w, bias=padded(bias)), reference[:rows])


def normal_cdf(x: Array) -> Array:
    return np.array([0.5 * math.erfc(-v / math.sqrt(2)) for v in x])


def exact_activation(kind: str, x: Array) -> Array:
    if kind == "gelu":
        return x * normal_cdf(x)
    if kind == "gelu_tanh":
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    if kind == "silu":
        return x / (1 + np.exp(np.minimum(-x, 700)))
    return np.tanh(x) if kind == "tanh" else np.maximum(x, 0)


# Largest error: absolute near zero, relative to |x| for large ones.
ACTIVATION_ERROR = {"gelu": 1e-6, "gelu_tanh": 5e-7, "relu": 0.0, "silu": 5e-7, "tanh": 3e-7}


@every_isa
@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_activations(isa: str, kind: str) -> None:
    x = np.concatenate([np.linspace(-12, 12, 24001), [0.0, 1e-30, -1e-30, 60, -60, 1e4, -1e4]]).astype(np.float32)
    rows = np.resize(x, (round_up(len(x), LANES) // LANES, LANES))
    result = product_f32(isa, rows, np.eye(LANES, dtype=np.float32), activation=kind).ravel()[: len(x)]
    exact = exact_activation(kind, x.astype(np.float64))
    assert (np.abs(result - exact) <= ACTIVATION_ERROR[kind] * np.maximum(1, np.abs(x))).all()
    same_bytes(product_f32("scalar", rows, np.eye(LANES, dtype=np.float32), activation=kind).ravel()[: len(x)], result)


@every_isa
@pytest.mark.parametrize("kind", ["none", *ACTIVATIONS])
def test_residual_is_added_after_the_activation(isa: str, kind: str) -> None:
    a, w = int8_case("random", 29, 33, 26)
    a_scale, w_scale = floats((29,), 1, 0.01), floats((33,), 2, 0.01)
    residual = padded(floats((29, 33), 3))
    plain = product_i8(isa, a, w, 29, a_scale, w_scale, activation=kind)
    added = product_i8(isa, a, w, 29, a_scale, w_scale, activation=kind, residual=residual)
    same_bytes(added, plain + residual)
    x, v = floats((29, 26)), floats((33, 26), 4)
    same_bytes(
        product_f32(isa, x, v, activation=kind, residual=residual), product_f32(isa, x, v, activation=kind) + residual
    )


@every_isa
def test_residual_may_be_the_output(isa: str) -> None:
    x, w, residual = floats((29, 26)), floats((33, 26), 4), padded(floats((29, 33), 3))
    apart = product_f32(isa, x, w, residual=residual)
    kernels(isa).gemm(padded(x), panels(w), residual, 26, residual=residual)
    same_bytes(residual, apart)


# --- row quantization -------------------------------------------------------------------------------------------------


def quantize(isa: str, x: Array, rotate: int = 0) -> tuple[Array, Array]:
    k = x.shape[1]
    q, scale = fresh((len(x), round_up(k, 64)), np.uint8), fresh((len(x),))
    kernels(isa).quantize_rows(padded(x), q, scale, k, rotate)
    return q, scale


def difficult_rows(k: int) -> Array:
    """Rows of zeros, of huge and of tiny values, of halves that must round to even, and usual ones."""
    x = floats((8, k), 7)
    x[0] = 0
    x[1] *= 1e30
    x[2] *= 1e-30
    x[3] *= np.float32(1e-42)  # subnormal: too small for a scale
    x[4] = np.arange(k) % 255 - 127 + 0.5  # with 127 as the maximum these are ties
    x[4, 0] = 127
    x[5] = 127
    x[6, ::2] = -0.0
    return x


@every_isa
@pytest.mark.parametrize("rotate", [0, 2, 4, 8, 16, 32, 64, 128])
@pytest.mark.parametrize("k", [1, 2, 3, 4, 5, 15, 16, 17, 26, 63, 64, 65, 127, 128, 384, 1200, 4096, 4100, 8192, 9000])
def test_quantize_rows(isa: str, k: int, rotate: int) -> None:
    if rotate != 0 and k % rotate != 0:
        k = round_up(k, rotate)
    x = difficult_rows(k)
    q, scale = quantize(isa, x, rotate)
    expected, expected_scale = quantized(rotated(x, rotate))
    offset = kernels(isa).activation_offset
    assert np.array_equal(q[:, :k], (expected + offset).astype(np.uint8))
    assert (q[:, k : round_up(k, 4)] == offset).all()
    assert (np.ascontiguousarray(q[:, round_up(k, LANES) :]) == OLD).all()
    same_bytes(scale, expected_scale)
    assert scale[0] == 0
    assert (q[0, :k] == offset).all()


def test_ties_are_in_the_data() -> None:
    x = difficult_rows(128)[4]
    assert (np.abs(x - np.trunc(x)) == 0.5).sum() > 100
    assert np.abs(x).max() == 127


# --- embedding, norms, pooling ----------------------------------------------------------------------------------------


@every_isa
@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("width", [1, 2, 15, 16, 17, 26, 128, 312, 384])
def test_embed_from_rows(isa: str, width: int, int8: bool) -> None:
    entries, index = 37, np.array([0, 36, 5, 5, 17], np.int32)
    table = int8_case("random", entries, 1, width)[0] if int8 else floats((entries, width))
    scale = floats((round_up(entries, LANES),), 1) if int8 else np.ones(entries, np.float32)
    out = padded(floats((len(index), width), 2))
    first = out.copy()
    arguments = (aligned(table), aligned(scale) if int8 else None, aligned(index))
    kernels(isa).embed(*arguments, out, width, accumulate=True)
    looked_up = table[index].astype(np.float32)
    same_bytes(aligned(out[:, :width]), fma32(looked_up, scale[index][:, None], first[:, :width]))
    kernels(isa).embed(*arguments, out, width)
    same_bytes(aligned(out[:, :width]), looked_up * scale[index][:, None])
    assert not out[:, width:].any()


@every_isa
@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize(
    ("width", "rotate"), [(1, 0), (17, 0), (26, 2), (12, 4), (24, 8), (48, 16), (312, 8), (384, 128)]
)
def test_embed_from_panels(isa: str, width: int, rotate: int, int8: bool) -> None:
    entries, index = 37, np.array([0, 36, 5, 16, 15], np.int32)
    table = int8_case("random", entries, 1, width)[0] if int8 else floats((entries, width))
    scale = floats((round_up(entries, LANES),), 1) if int8 else np.ones(48, np.float32)
    out = fresh((len(index), round_up(width, LANES)))
    kernels(isa).embed(panels(table), aligned(scale) if int8 else None, aligned(index), out, width, rotate)
    expected = rotated(table[index].astype(np.float32) * scale[index][:, None], rotate)
    assert np.array_equal(out[:, :width], expected)
    assert not out[:, width:].any()


WIDTHS = (1, 2, 15, 16, 17, 26, 63, 64, 65, 80, 312, 384, 1024)


def sum_error(width: int) -> float:
    """Relative error of a row's sum of terms of one sign: its longest chain, the joining tree, the term itself."""
    return (width / 64 + 4 + 8) * EPS


@every_isa
@pytest.mark.parametrize("kind", ["layer", "rms"])
@pytest.mark.parametrize("width", WIDTHS)
def test_norm(isa: str, width: int, kind: str) -> None:
    x = floats((9, width), 1) + (np.arange(9, dtype=np.float32)[:, None] - 4)
    x[3] = 0
    weight, bias, eps = floats((width,), 2), floats((width,), 3), 1e-5
    results = []
    for name in (isa, "scalar"):
        out = fresh((9, round_up(width, LANES)))
        kernels(name).norm(padded(x), padded(weight), padded(bias), out, width, eps, kind)
        results.append(out)
    same_bytes(*results)
    wide = x.astype(np.float64)
    mean = wide.mean(1, keepdims=True) if kind == "layer" else 0.0
    deviation = np.sqrt(((wide - mean) ** 2).mean(1, keepdims=True) + eps)
    exact = (wide - mean) / deviation * weight + bias
    # The mean's own error and each difference's count against the deviation.
    magnitude = (np.abs(wide).max(1, keepdims=True) / deviation + np.abs(wide - mean) / deviation) * np.abs(weight)
    assert (np.abs(results[0][:, :width] - exact) <= sum_error(width) * (2 * magnitude + np.abs(bias))).all()
    assert not results[0][:, width:].any()


@every_isa
def test_norm_in_place_and_without_bias(isa: str) -> None:
    x, weight = padded(floats((5, 26))), padded(floats((26,), 1))
    apart, zeros = fresh(x.shape), fresh(x.shape)
    kernels(isa).norm(x, weight, None, apart, 26, 1e-5, "layer")
    kernels(isa).norm(x, weight, fresh((32,), fill=0), zeros, 26, 1e-5, "layer")
    kernels(isa).norm(x, weight, None, x, 26, 1e-5, "layer")
    same_bytes(x, apart)
    same_bytes(x, zeros)


@every_isa
@pytest.mark.parametrize("kind", ["mean", "cls", "max"])
@pytest.mark.parametrize("width", WIDTHS)
def test_pool(isa: str, width: int, kind: str) -> None:
    for rows in (1, 2, 3, 17, 129):
        x = floats((rows, width), 1)
        out = fresh((round_up(width, LANES),))
        kernels(isa).pool(padded(x), out, width, kind)
        if kind == "mean":
            total = x[0].copy()
            for row in x[1:]:
                total += row
            expected = total / np.float32(rows)
        else:
            expected = x[0] if kind == "cls" else x.max(0)
        same_bytes(aligned(out[:width]), expected)
        assert not out[width:].any()


@every_isa
@pytest.mark.parametrize("width", WIDTHS)
def test_pools_that_weigh_rows(isa: str, width: int) -> None:
    """Within the error of their sums, and the same bytes on every ISA; the last row as it is."""
    for rows, first in ((1, 0), (2, 0), (17, 5), (129, 8000)):
        x = floats((rows, width), 1)
        weights = np.arange(first + 1.0, first + rows + 1)
        expected = {"mean_sqrt": x.sum(0, np.float64) / rows**0.5, "weighted_mean": weights @ x / weights.sum()}
        for kind, exact in expected.items():
            out, scalar = fresh((round_up(width, LANES),)), fresh((round_up(width, LANES),))
            kernels(isa).pool(padded(x), out, width, kind, first)
            kernels("scalar").pool(padded(x), scalar, width, kind, first)
            same_bytes(out, scalar)
            scale = np.abs(x).sum(0) if kind == "mean_sqrt" else np.abs(x).max(0)
            assert (np.abs(out[:width] - exact) <= 2 * sum_error(rows + 3) * scale).all()
            assert not out[width:].any()
        last = fresh((round_up(width, LANES),))
        kernels(isa).pool(padded(x), last, width, "last", first)
        same_bytes(aligned(last[:width]), x[-1])


@every_isa
@pytest.mark.parametrize("width", WIDTHS)
def test_l2_normalize(isa: str, width: int) -> None:
    x = floats((7, width), 1)
    x[2] = 0
    x[3] *= 1e-15  # shorter than the smallest divisor
    results = []
    for name in (isa, "scalar"):
        out = padded(x)
        kernels(name).l2_normalize(out, out, width)
        results.append(out)
    same_bytes(*results)
    exact = x / np.maximum(np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True), 1e-12)
    assert (np.abs(results[0][:, :width] - exact) <= sum_error(width) * np.abs(exact) + 1e-45).all()
    assert not results[0][:, width:].any()

"""pocketformer.kernels: packing and products of plain arrays have the bits of the raw kernels, whatever the shape."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from helpers.kernels import fma32, quantized, rotated
from pocketformer import _core, kernels
from pocketformer.compression.rounding import quantize_rows
from pocketformer.graph import Array
from pocketformer.hadamard import hadamard
from pocketformer.layout import hadamard_block

every_isa = pytest.mark.parametrize("isa", _core.isas())
SHAPES = [(1, 16, 4), (1, 384, 384), (3, 17, 5), (7, 33, 31), (40, 100, 127), (29, 39, 384), (130, 80, 200)]


def floats(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float32)


def same_bits(a: Array, b: Array) -> None:
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(a.view(np.uint8), b.view(np.uint8))


def codes(w: kernels.Weight) -> Array:
    """The integers of an int8 weight, [n, k]: what it does to the unit vectors."""
    return kernels.matmul_int8(np.eye(w.shape[1], dtype=np.int8), w).T


# --- packing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "k"), [(1, 1), (17, 6), (40, 384), (33, 1100)])
@pytest.mark.parametrize("rotate", ["auto", 0])
def test_int8_weights_are_those_of_the_compressor(n: int, k: int, rotate: Any) -> None:
    weight = floats(n, k)
    weight[n // 2] = 0
    w = kernels.pack(weight, "int8", rotate=rotate)
    block = hadamard_block(k) if rotate == "auto" else 0
    rounded, scale = quantize_rows(hadamard(weight.astype(np.float64), block) / max(block, 1))
    assert (w.shape, w.dtype, w.rotate, w.group) == ((n, k), "int8", block, None)
    assert w.scale is not None
    same_bits(w.scale, scale)
    np.testing.assert_array_equal(codes(w), rounded)
    same_bits(w.dequantize(), hadamard(rounded * scale.astype(np.float64)[:, None], block).astype(np.float32))
    assert np.abs(w.dequantize() - weight).max() <= 0.02 * np.abs(weight).max()


def test_float32_weights_are_kept() -> None:
    weight = floats(33, 20)
    w = kernels.pack(weight, "float32")
    same_bits(w.dequantize(), weight)
    assert (w.dtype, w.rotate, w.scale) == ("float32", 0, None)


def test_float16_weights_are_the_nearest() -> None:
    """Ties, subnormal numbers, those that become zero, and those that round up to the next power of two."""
    special = [0.0, -0.0, 2.0**-24, 1.5 * 2**-24, 2.5 * 2**-24, 2.0**-25, 2.1**-25, 2.0**-14 - 2.0**-26, 65519, -65504]
    near_one = 1 + np.arange(-40, 40) * 2.0**-12
    weight = np.resize(np.concatenate([special, near_one, -near_one * 2.0**-15, floats(170)]), (33, 12)).astype(
        np.float32
    )
    w = kernels.pack(weight, "float16")
    same_bits(w.dequantize(), weight.astype(np.float16).astype(np.float32))
    assert (w.dtype, w.rotate, w.scale, w.nbytes) == ("float16", 0, None, 48 * 12 * 2)


@every_isa
@pytest.mark.parametrize("shape", SHAPES)
def test_float16_products_are_those_of_the_widened_weight(isa: str, shape: tuple[int, int, int]) -> None:
    m, n, k = shape
    x, weight, bias = floats(m, k), floats(n, k, seed=1), floats(n, seed=2)
    w = kernels.pack(weight, "float16")
    with kernels.using(isa):
        y = kernels.matmul(x, w, bias, activation="gelu", threads=2)
    same_bits(y, kernels.matmul(x, kernels.pack(w.dequantize(), "float32"), bias, activation="gelu"))


def test_a_weight_describes_itself() -> None:
    w = kernels.pack(floats(32, 64))
    assert w.nbytes == 32 * 64 + 2 * 32 * 4
    assert repr(w) == "Weight(shape=(32, 64), dtype='int8', rotate=64, nbytes=2304)"


# --- products ---------------------------------------------------------------------------------------------------------


def expected(x: Array, w: kernels.Weight, bias: Array) -> Array:
    """An int8 product from its integers, rounded as the kernel rounds it."""
    q, s = kernels.quantize(x, like=w)
    assert w.scale is not None
    return fma32(kernels.matmul_int8(q, w).astype(np.float32) * w.scale, s[..., None], bias)


@every_isa
@pytest.mark.parametrize("shape", SHAPES)
def test_int8_products(isa: str, shape: tuple[int, int, int]) -> None:
    m, n, k = shape
    x, weight, bias = floats(m, k), floats(n, k, seed=1), floats(n, seed=2)
    w = kernels.pack(weight)
    with kernels.using(isa):
        y = kernels.matmul(x, w, bias)
        same_bits(y, expected(x, w, bias))
    exact = x.astype(np.float64) @ weight.T + bias
    assert np.abs(y - exact).max() <= 0.06 * np.sqrt(k)


@every_isa
@pytest.mark.parametrize("shape", SHAPES)
def test_float32_products(isa: str, shape: tuple[int, int, int]) -> None:
    m, n, k = shape
    x, weight, bias = floats(m, k), floats(n, k, seed=1), floats(n, seed=2)
    w = kernels.pack(weight, "float32")
    with kernels.using(isa):
        y = kernels.matmul(x, w, bias)
    same_bits(y, kernels.matmul(x, w, bias))  # those of the best ISA
    bound = (k + 2) * 2.0**-24 * (np.abs(x).astype(np.float64) @ np.abs(weight.T) + np.abs(bias))
    assert (np.abs(y - (x.astype(np.float64) @ weight.T + bias)) <= bound).all()


@pytest.mark.parametrize("dtype", ["int8", "float32"])
@pytest.mark.parametrize("shape", SHAPES)
def test_threads_and_rows_change_no_bit(shape: tuple[int, int, int], dtype: Any) -> None:
    m, n, k = shape
    x, w = floats(m, k), kernels.pack(floats(n, k, seed=1), dtype)
    y = kernels.matmul(x, w, activation="gelu")
    for threads in (1, 2, 3, 16):
        same_bits(kernels.matmul(x, w, activation="gelu", threads=threads), y)
    same_bits(np.stack([kernels.matmul(row, w, activation="gelu") for row in x]), y)


def test_leading_axes() -> None:
    x, w = floats(2, 3, 5, 24), kernels.pack(floats(18, 24))
    flat = kernels.matmul(x.reshape(30, 24), w)
    same_bits(kernels.matmul(x, w), flat.reshape(2, 3, 5, 18))
    same_bits(kernels.matmul(x[0, 0, 0], w), flat[0])
    q, s = kernels.quantize(x, like=w)
    assert (q.shape, s.shape) == ((2, 3, 5, 24), (2, 3, 5))
    assert kernels.matmul_int8(q, w).shape == (2, 3, 5, 18)
    assert kernels.matmul(x[:0], w).shape == (0, 3, 5, 18)


@every_isa
@pytest.mark.parametrize("dtype", ["int8", "float32"])
@pytest.mark.parametrize("n", [32, 39])
def test_what_follows_a_product(isa: str, dtype: Any, n: int) -> None:
    x, w = floats(19, 48), kernels.pack(floats(n, 48, seed=1), dtype)
    bias, multiply, residual = floats(n, seed=2), floats(19, n, seed=3), floats(19, n, seed=4)
    with kernels.using(isa):
        y = kernels.matmul(x, w, bias)
        same_bits(kernels.matmul(x, w, bias, residual=residual), y + residual)
        same_bits(kernels.matmul(x, w, bias, multiply=multiply), y * multiply)
        same_bits(kernels.matmul(x, w, bias, multiply=multiply, residual=residual), y * multiply + residual)
        same_bits(kernels.matmul(x, w, bias, "silu", multiply, residual), kernels.silu(y) * multiply + residual)
        same_bits(kernels.matmul(x, w, bias, "relu"), np.maximum(y, 0))
        np.testing.assert_allclose(kernels.matmul(x, w, bias, "gelu"), kernels.gelu(y), atol=2e-4)


@every_isa
@pytest.mark.parametrize("k", [1, 3, 64, 1040, 1041, 3000])
def test_integer_products_are_exact(isa: str, k: int) -> None:
    rng = np.random.default_rng(k)
    weight = rng.integers(-127, 128, (50, k)).astype(np.float32)
    weight[:, 0] = 127
    weight[0] = 127
    w = kernels.pack(weight, rotate=0)
    q = rng.integers(-127, 128, (35, k), np.int8)
    q[0], q[1] = 127, -127
    sums = q.astype(np.int64) @ weight.T.astype(np.int64)
    assert k < 1041 or np.abs(sums).max() > 2**24
    for threads in (1, 3):
        with kernels.using(isa):
            i = kernels.matmul_int8(q, w, threads=threads)
        assert i.dtype == np.int32
        np.testing.assert_array_equal(i, sums)
    np.testing.assert_array_equal(kernels.matmul_int8(q[2], w, threads=2), sums[2])


@every_isa
@pytest.mark.parametrize(("m", "k"), [(1, 5), (33, 96), (3, 4224), (70, 31)])
def test_quantize(isa: str, m: int, k: int) -> None:
    x = floats(m, k)
    x[m // 2] = 0
    w = kernels.pack(floats(3, k))
    with kernels.using(isa):
        q, s = kernels.quantize(x, like=w)
    whole, scale = quantized(rotated(x, w.rotate))
    np.testing.assert_array_equal(q, whole)
    same_bits(s, scale)


# --- arrays -----------------------------------------------------------------------------------------------------------


def test_out() -> None:
    x, w, residual = floats(20, 32), kernels.pack(floats(24, 32)), floats(20, 24, seed=1)
    y = kernels.matmul(x, w)
    out = np.empty((20, 24), np.float32)
    assert kernels.matmul(x, w, out=out) is out
    same_bits(out, y)
    stream = residual.copy()
    kernels.matmul(x, w, residual=stream, out=stream)
    same_bits(stream, y + residual)
    q, _ = kernels.quantize(x, like=w)
    integers = np.empty((20, 24), np.int32)
    assert kernels.matmul_int8(q, w, out=integers) is integers


def test_rows_beyond_an_array_are_not_touched() -> None:
    """Rows as short as n: the last panel's padding is somebody else's memory."""
    for n in (1, 15, 17, 39):
        memory = np.full((3, 8, n), np.float32(7))
        x, w = floats(8, 20), kernels.pack(floats(n, 20, seed=1))
        kernels.matmul(x, w, out=memory[1], activation="relu")
        assert (memory[[0, 2]] == 7).all()


W = kernels.pack(floats(24, 32))
X = floats(5, 32)
REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: kernels.matmul(X.astype(np.float64), W), r"x is float64 of shape \(5, 32\); pass a numpy"),
    (lambda: kernels.matmul(X.tolist(), W), "x is a list; pass a numpy array of float32"),
    (lambda: kernels.matmul(X.T, W), "x is not C-contiguous; pass numpy.ascontiguousarray"),
    (lambda: kernels.matmul(X[:, :16].copy(), W), r"x is float32 of shape \(5, 16\); its last axis must hold 32"),
    (lambda: kernels.matmul(np.float32(1), W), "x is a float32; pass a numpy array"),
    (lambda: kernels.matmul(X, floats(24, 32)), "w is float32 of shape .*pass a weight that pocketformer.kernels.pack"),
    (lambda: kernels.matmul(X, W, floats(25)), r"bias is float32 of shape \(25,\); it must have shape \(24\)"),
    (lambda: kernels.matmul(X, W, activation="swish"), "activation is 'swish'; it must be gelu, gelu_tanh, relu"),
    (lambda: kernels.matmul(X, W, activation=3), "activation is a int; pass a name or None"),
    (lambda: kernels.matmul(X, W, residual=floats(5, 23)), r"residual is .*the shape of the result, \(5, 24\)"),
    (lambda: kernels.matmul(X, W, multiply=floats(4, 24)), r"multiply is .*the shape of the result, \(5, 24\)"),
    (lambda: kernels.matmul(X, W, out=floats(5, 23)), r"out is .*; it must have shape \(5, 24\)"),
    (lambda: kernels.matmul(X, W, threads=0), "threads is 0; it must be 1 to 256"),
    (lambda: kernels.matmul(X, W, threads=True), "threads is a bool; pass an integer"),
    (lambda: kernels.matmul(X, W, threads=2**70), "threads is an integer of more than 64 bits; pass a smaller one"),
    (lambda: kernels.matmul_int8(X, W), "q is float32 .* pass a numpy array of int8"),
    (lambda: kernels.matmul_int8(np.full((2, 32), -128, np.int8), W), "q, row 0, holds the value -128; it must lie"),
    (lambda: kernels.matmul_int8(np.zeros((2, 31), np.int8), W), "q is int8 .* its last axis must hold 32 values"),
    (
        lambda: kernels.matmul_int8(np.zeros((2, 32), np.int8), kernels.pack(floats(24, 32), "float32")),
        "w is float32; the integer product takes a weight of int8",
    ),
    (lambda: kernels.quantize(X, kernels.pack(floats(24, 32), "float32")), "like is a float32 weight"),
    (lambda: kernels.pack(X, "bfloat16"), "dtype is 'bfloat16'; it must be int8, int4, float16 or float32"),  # type: ignore[arg-type]
    (lambda: kernels.pack(X.astype(np.float16)), "weight is float16 .* pass a numpy array of float32"),
    (lambda: kernels.pack(X[0]), "weight is float32 of shape .*; it must have 2 dimensions"),
    (lambda: kernels.pack(X, rotate=24), "rotate is 24; it must be 0 or a power of two up to 128 that divides"),
    (lambda: kernels.pack(X, rotate=64), "rotate is 64; .* divides the inputs, 32"),
    (lambda: kernels.pack(X, "float32", rotate=32), "rotate is 32; float32 weights are not rotated"),
    (lambda: kernels.pack(X, "float16", rotate=32), "rotate is 32; float16 weights are not rotated"),
    (lambda: kernels.pack(X + np.float32(65600), "float16"), "weight holds .* in row 0, more than the 65504"),
    (lambda: kernels.quantize(X, kernels.pack(floats(24, 32), "float16")), "like is a float16 weight"),
    (lambda: kernels.pack(X, group=32), "group is 32; int8 weights have one scale for each output"),
    (lambda: kernels.pack(floats(2, 70000)), "weight is .*; int8 takes 1 to 16777216 outputs of 1 to 65793 inputs"),
    (lambda: kernels.pack(floats(0, 4)), "weight is .*; int8 takes 1 to"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "message"), REFUSED)
def test_refusals(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["int8", "float32"])
def test_what_is_not_finite_is_refused(bad: float, dtype: Any) -> None:
    weight, x = floats(24, 40), floats(130, 40, seed=1)
    w = kernels.pack(weight, dtype)
    x[77, 39] = bad
    for threads in (1, 4):
        with pytest.raises(ValueError, match="x, row 77, holds NaN or infinity; pass finite numbers"):
            kernels.matmul(x, w, threads=threads)
    weight[3, 0] = bad
    with pytest.raises(ValueError, match="weight holds NaN or infinity in row 3"):
        kernels.pack(weight, dtype)
    largest = np.full((1, 40), np.finfo(np.float32).max / 100, np.float32)
    assert np.isfinite(kernels.matmul(largest, kernels.pack(np.full((2, 40), np.float32(0.01)), dtype, rotate=0))).all()


def test_memory_shared_with_out_is_refused() -> None:
    w = kernels.pack(floats(32, 32))
    x = floats(5, 32)
    with pytest.raises(ValueError, match="out shares memory with x; pass another array"):
        kernels.matmul(x, w, out=x)
    out = floats(5, 32, seed=1)
    with pytest.raises(ValueError, match="out shares memory with residual"):
        kernels.matmul(x, w, activation="gelu", residual=out, out=out)
    with pytest.raises(ValueError, match="out shares memory with multiply"):
        kernels.matmul(x, w, multiply=out, residual=x.copy(), out=out)
    out.flags.writeable = False
    with pytest.raises(ValueError, match="out is read-only; pass a writable array"):
        kernels.matmul(x, w, out=out)


def test_unaligned_arrays() -> None:
    """Rows that start anywhere are taken as they are; only items that do not lie at their own size are refused."""
    x, w = floats(5, 32), kernels.pack(floats(16, 32))
    memory = np.empty(5 * 32 * 4 + 8, np.uint8)
    shifted = memory[4:-4].view(np.float32).reshape(5, 32)
    shifted[...] = x
    same_bits(kernels.matmul(shifted, w), kernels.matmul(x, w))
    odd = memory[1:-7].view(np.float32).reshape(5, 32)
    with pytest.raises(ValueError, match="x does not start at a multiple of its item size; pass a copy"):
        kernels.matmul(odd, w)
    with pytest.raises(ValueError, match="weight does not start at a multiple of its item size; pass a copy"):
        kernels.pack(odd)


# --- instruction sets and threads -------------------------------------------------------------------------------------


def test_using_is_of_one_thread() -> None:
    assert kernels.isas() == _core.isas()
    seen: list[str] = []

    def other() -> None:
        seen.append(kernels.KeyValueCache(1, 16, 16).isa)

    with kernels.using("scalar"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        with kernels.using(kernels.isas()[0]):
            assert kernels.KeyValueCache(1, 16, 16).isa == kernels.isas()[0]
        assert kernels.KeyValueCache(1, 16, 16).isa == "scalar"
    assert seen == [kernels.isas()[0]] == [kernels.KeyValueCache(1, 16, 16).isa]
    with pytest.raises(ValueError, match="'mmx' is unknown; this build has"), kernels.using("mmx"):
        pass


def test_the_gil_is_released() -> None:
    x, w = floats(400, 1024), kernels.pack(floats(1024, 1024, seed=1))
    stop, ticks = threading.Event(), 0

    def product() -> None:
        with kernels.using("scalar"):
            kernels.matmul(x, w, threads=1)
        stop.set()

    thread = threading.Thread(target=product)
    thread.start()
    while not stop.is_set():
        ticks += 1
        time.sleep(0.001)
    thread.join()
    assert ticks > 5


def test_calls_leak_nothing() -> None:
    def resident() -> int:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * 4096

    x, weight = floats(64, 512), floats(512, 512, seed=1)

    def calls() -> None:
        for _ in range(50):
            w = kernels.pack(weight)
            kernels.matmul(x, w)
            kernels.matmul_int8(kernels.quantize(x, like=w)[0], w)

    calls()
    before = resident()
    calls()
    assert resident() - before < 4e6

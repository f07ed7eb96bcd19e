"""The compiled loops of compression against their twins in numpy: the same bits."""

from __future__ import annotations

import sys
import threading

import numpy as np
import pytest

from helpers import rounding as twin
from helpers.rounding import dequantize
from pocketformer.compression import _rounding
from pocketformer.compression.gptq import BLOCK, DAMPING, error_shares, round_with_feedback
from pocketformer.compression.quantize import quantize_rows
from pocketformer.graph import Array
from pocketformer.hadamard import hadamard

SHAPES = [(1, 1), (3, 7), (16, 128), (5, 129), (40, 300)]


def ties(shape: tuple[int, int], seed: int) -> tuple[Array, Array]:
    """Weights many of which lie exactly between two steps or beyond the last, and steps that are powers of two."""
    rng = np.random.default_rng(seed)
    step = 2.0 ** rng.integers(-9, 3, shape[0])
    return rng.integers(-270, 271, shape) / 2 * step[:, None], step


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(3))
def test_round_to_nearest(shape: tuple[int, int], seed: int) -> None:
    weight, step = ties(shape, seed)
    if seed:
        weight = np.random.default_rng(seed).standard_normal(shape)
        step = np.abs(weight).max(axis=1) / 100
    values, errors = np.empty(shape, np.int8), np.empty(shape[0])
    _rounding.round_to_nearest(weight, step, values)
    np.testing.assert_array_equal(values, twin.round_to_nearest(weight, step))
    _rounding.squared_errors(weight, step, values, errors)
    np.testing.assert_array_equal(errors, twin.squared_errors(weight, step, values))


@pytest.mark.parametrize(("width", "block"), [(1, 1), (6, 2), (48, 16), (128, 128), (384, 128), (1024, 512)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rotate(width: int, block: int, dtype: type) -> None:
    x = np.random.default_rng(width).standard_normal((5, width)).astype(dtype)
    expected = hadamard(x, block)
    _rounding.rotate(x, block)
    np.testing.assert_array_equal(x, expected)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("part", [(0.0, 1.0), (0.0, 0.5), (0.4, 1.0), (0.3, 0.6)])
def test_feed_back(shape: tuple[int, int], part: tuple[float, float]) -> None:
    n, k = shape
    rng = np.random.default_rng(n * k)
    weight, errors = rng.standard_normal(shape), rng.standard_normal(shape) * 0.1
    shares = rng.standard_normal((k, k)) * 0.3
    step = rng.uniform(0.01, 0.1, n)
    begin = int(part[0] * k)
    end = max(int(part[1] * k), begin + 1)
    expected, after = twin.feed_back(weight, errors, shares, step, begin, end)
    values = np.full(shape, 99, np.int8)
    _rounding.feed_back(weight, errors, shares, step, values, begin, end)
    np.testing.assert_array_equal(values[:, begin:end], expected)
    np.testing.assert_array_equal(errors, after)
    untouched = np.ones(k, bool)
    untouched[begin:end] = False
    assert (values[:, untouched] == 99).all()


@pytest.mark.parametrize("rows", [0, 1, 2, 65])
@pytest.mark.parametrize("width", [1, 15, 384])
def test_observe(rows: int, width: int) -> None:
    rng = np.random.default_rng(rows + width)
    x = rng.standard_normal((rows, width)).astype(np.float32) * 10
    so_far = rng.uniform(0, 20, width).astype(np.float32), rng.uniform(0, 9, width), rng.uniform(0, 9, width)
    expected = twin.observe(x, *so_far)
    _rounding.observe(x, *so_far)
    for seen, wanted in zip(so_far, expected, strict=True):
        np.testing.assert_array_equal(seen, wanted)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: _rounding.rotate(np.zeros((2, 8)), 3), "block is 3; it must be a power of two"),
        (lambda: _rounding.rotate(np.zeros((2, 8)), 16), "divides the last axis, 8"),
        (lambda: _rounding.rotate(np.zeros((2, 8)), 0), "block is 0"),
        (
            lambda: _rounding.round_to_nearest(np.zeros((2, 3)), np.ones(3), np.zeros((2, 3), np.int8)),
            "step's length is 3; it must be 2",
        ),
        (
            lambda: _rounding.squared_errors(np.zeros((2, 3)), np.ones(2), np.zeros((2, 4), np.int8), np.zeros(2)),
            "values' last axis is 4; it must be 3",
        ),
        (
            lambda: _rounding.feed_back(
                np.zeros((2, 3)), np.zeros((2, 3)), np.zeros((3, 3)), np.ones(2), np.zeros((2, 3), np.int8), 1, 4
            ),
            "begin and end are 1 and 4; they must be 0 ≤ begin < end ≤ 3",
        ),
        (
            lambda: _rounding.feed_back(
                np.zeros((2, 3)), np.zeros((2, 3)), np.zeros((2, 3)), np.ones(2), np.zeros((2, 3), np.int8), 0, 3
            ),
            "shares' first axis is 2; it must be 3",
        ),
        (
            lambda: _rounding.observe(np.zeros((1, 3), np.float32), np.zeros(2, np.float32), np.zeros(3), np.zeros(3)),
            "highest's length is 2; it must be 3",
        ),
        (
            lambda: _rounding.round_to_nearest(np.zeros((2, 3), np.float32), np.ones(2), np.zeros((2, 3), np.int8)),
            "dtype",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call: object, message: str) -> None:
    assert callable(call)
    with pytest.raises(ValueError, match=message):
        call()


def test_the_lock_of_the_interpreter_is_free_meanwhile() -> None:
    """Another thread gets on during the calls; a switch interval of an hour lets it in at no other moment."""
    weight, step = np.ones((200, 5000)), np.ones(200)
    values = np.empty(weight.shape, np.int8)
    begin, entered = threading.Event(), threading.Event()

    def enter() -> None:
        begin.wait()
        entered.set()

    thread = threading.Thread(target=enter)
    thread.start()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(3600)
    try:
        begin.set()
        for _ in range(1000):
            _rounding.round_to_nearest(weight, step, values)
            if entered.is_set():
                break
        assert entered.is_set()
    finally:
        sys.setswitchinterval(interval)
        thread.join()


def correlated(rows: int, k: int, seed: int) -> Array:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((rows, 40)) @ rng.standard_normal((40, k)) + 0.1 * rng.standard_normal((rows, k))


@pytest.mark.parametrize("k", [1, 31, BLOCK, BLOCK + 1, 300])
def test_feedback_is_that_of_the_inverse(k: int) -> None:
    """Both orders of computing it round alike but where one lands within a rounding error of a tie."""
    x = correlated(2000, k, k)
    weight = np.random.default_rng(k).standard_normal((48, k))
    _, scale = quantize_rows(weight)
    moments = x.T @ x
    values = round_with_feedback(weight, scale, error_shares(moments.copy()))
    expected = twin.gptq(weight, scale.astype(np.float64), moments, DAMPING)
    assert (values == expected).all(axis=1).mean() >= 0.95


def test_feedback_keeps_products_better_than_rounding_to_nearest() -> None:
    weight = np.random.default_rng(5).standard_normal((48, 300))
    x = correlated(2000, 300, 5)
    nearest, scale = quantize_rows(weight)
    fed_back = round_with_feedback(weight, scale, error_shares(x.T @ x))

    def error(values: Array) -> float:
        return float(np.linalg.norm(x @ (dequantize(values, scale, 0) - weight).T))

    assert fed_back.dtype == np.int8
    assert error(fed_back) < 0.5 * error(nearest)


def test_rows_of_zeros_and_dead_inputs_are_rounded() -> None:
    weight = np.random.default_rng(7).standard_normal((4, 20))
    weight[1] = 0
    x = correlated(100, 20, 7)
    x[:, 3] = 0
    _, scale = quantize_rows(weight)
    values = round_with_feedback(weight, scale, error_shares(x.T @ x))
    assert not values[1].any()
    assert values[0, 3] == round(float(weight[0, 3] / scale[0]))

"""The compiled loops of compression against their twins in numpy: the same bits."""

from __future__ import annotations

import sys
import threading

import numpy as np
import pytest

from helpers import rounding as twin
from helpers.rounding import dequantize
from pocketformer.compression import _rounding
from pocketformer.compression.codebook import Codebook, learn, search, uniform
from pocketformer.compression.gptq import (
    BLOCK,
    DAMPING,
    Costs,
    damping_of_int8,
    error_shares,
    fit_scales,
    improve,
    round_to_codes_with_feedback,
    round_with_feedback,
)
from pocketformer.compression.rounding import quantize_rows
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


@pytest.mark.parametrize("rows", [200, 480, 1600])
@pytest.mark.parametrize("related", [0.0, 0.3])
def test_feedback_from_few_rows_loses_nothing_on_others(rows: int, related: float) -> None:
    """What the rows that were seen have in common by chance is not made use of: products with other rows are nearly as
    good as those of rounding to the nearest where inputs have nothing to do with each other, else better."""
    k, rng = 160, np.random.default_rng(rows)
    mixing = np.eye(k) + related * rng.standard_normal((k, k)) * 0.97 ** np.arange(k)[:, None]
    x, others = (rng.standard_normal((count, k)) @ mixing for count in (rows, 2000))
    weight = rng.standard_normal((64, k))
    nearest, scale = quantize_rows(weight)

    def error(damping: float | None) -> float:
        shares = None if damping is None else error_shares(x.T @ x, damping)
        values = nearest if shares is None else round_with_feedback(weight, scale, shares)
        return float(np.square(others @ (dequantize(values, scale, 0) - weight).T).sum())

    assert error(damping_of_int8(k, rows)) < (0.9 if related else 1.04) * error(None)
    if not related:  # damped as those of 4 bits are
        assert error(DAMPING) > 1.04 * error(None)


def test_rows_of_zeros_and_dead_inputs_are_rounded() -> None:
    weight = np.random.default_rng(7).standard_normal((4, 20))
    weight[1] = 0
    x = correlated(100, 20, 7)
    x[:, 3] = 0
    _, scale = quantize_rows(weight)
    values = round_with_feedback(weight, scale, error_shares(x.T @ x))
    assert not values[1].any()
    assert values[0, 3] == round(float(weight[0, 3] / scale[0]))


def codebook(bits: int, seed: int) -> Codebook:
    rng = np.random.default_rng(seed)
    return Codebook(np.sort(rng.choice(np.arange(-127, 128), 1 << bits, replace=False)).astype(np.int8))


@pytest.mark.parametrize("bits", [3, 4, 7])
@pytest.mark.parametrize(("shape", "groups"), [((1, 1), 1), ((3, 8), 2), ((5, 128), 4), ((40, 300), 1)])
def test_codes(bits: int, shape: tuple[int, int], groups: int) -> None:
    """Halves, which are the borders between entries, and numbers beyond the last entry among them."""
    rng = np.random.default_rng(bits)
    book = codebook(bits, bits)
    step = 2.0 ** rng.integers(-4, 3, (shape[0], groups))
    wide = np.repeat(step, shape[1] // groups, axis=1)
    weight = rng.integers(-300, 301, shape) / 2 * wide
    codes = np.empty(shape, np.uint8)
    _rounding.round_to_codes(weight, step, book.index, codes)
    np.testing.assert_array_equal(codes, twin.nearest_codes(weight, step, book.entries))
    products, squares = np.empty((2, shape[0], groups))
    _rounding.match_codes(weight, step, book.index, book.values, products, squares)
    values = book.entries[codes].astype(np.float64)
    parts = (shape[0], groups, -1)
    np.testing.assert_array_equal(squares, np.square(values).reshape(parts).sum(axis=2))
    np.testing.assert_allclose(products, (weight * values).reshape(parts).sum(axis=2), rtol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("part", [(0.0, 1.0), (0.3, 0.6)])
def test_feed_back_codes(shape: tuple[int, int], part: tuple[float, float]) -> None:
    n, k = shape
    rng = np.random.default_rng(n * k)
    weight, errors = rng.standard_normal(shape), rng.standard_normal(shape) * 0.1
    shares, book = rng.standard_normal((k, k)) * 0.3, codebook(4, k)
    groups = 4 if k % 4 == 0 else 1
    step = rng.uniform(0.01, 0.03, (n, groups))
    begin = int(part[0] * k)
    end = max(int(part[1] * k), begin + 1)
    expected, after = twin.feed_back_codes(weight, errors, shares, step, book.entries, begin, end)
    codes = np.full(shape, 99, np.uint8)
    _rounding.feed_back_codes(weight, errors, shares, step, book.index, book.values, codes, begin, end)
    np.testing.assert_array_equal(codes[:, begin:end], expected)
    np.testing.assert_array_equal(errors, after)


def real(codes: Array, scale: Array, book: Codebook) -> Array:
    return book.entries[codes] * np.repeat(scale.astype(np.float64), codes.shape[1] // scale.shape[1], axis=1)


def nearest(weight: Array, book: Codebook, group: int) -> Array:
    scale = search(weight, book, group)
    codes = np.empty(weight.shape, np.uint8)
    _rounding.round_to_codes(weight, np.where(scale > 0, scale, 1).astype(np.float64), book.index, codes)
    return real(codes, scale, book)


@pytest.mark.parametrize(("bits", "worst"), [(3, 0.187), (4, 0.0975), (5, 0.05), (6, 0.0255)])
def test_learned_codebooks_are_lloyds(bits: int, worst: float) -> None:
    """Max (1960): the least error of normal numbers is 0.186, 0.0974, 0.0500 and 0.0252 at 3 to 6 bits."""
    weight = np.random.default_rng(1).standard_normal((120, 384))
    book = learn(weight, bits, 0)
    assert (np.diff(book.entries.astype(int)) > 0).all()
    assert np.abs(book.entries.astype(int)).max() == 127
    even = uniform(bits)
    norm = np.linalg.norm(weight)
    errors = [np.linalg.norm(nearest(weight, entries, 0) - weight) / norm for entries in (book, even)]
    assert errors[0] < worst
    assert errors[0] < 0.97 * errors[1]


def test_a_scale_a_group_is_better_than_one_a_channel() -> None:
    rng = np.random.default_rng(2)
    weight = rng.standard_normal((32, 256)) * np.repeat(rng.uniform(0.3, 3, 8), 32)
    book = learn(weight, 4, 32)
    errors = [float(np.square(nearest(weight, book, group) - weight).sum()) for group in (32, 128, 0)]
    assert errors[0] < 0.8 * errors[1] < 0.8 * errors[2]
    assert search(weight, book, 32).shape == (32, 8)
    assert not search(np.zeros((2, 32)), book, 16).any()


def test_feedback_on_codes_keeps_products_better() -> None:
    weight = np.random.default_rng(5).standard_normal((48, 256))
    weight[3] = 0
    x = correlated(2000, 256, 5)
    book = learn(weight, 4, 64)
    scale = search(weight, book, 64)
    codes = round_to_codes_with_feedback(weight, scale, book, error_shares(x.T @ x))
    fed_back, plain = real(codes, scale, book), nearest(weight, book, 64)
    assert np.linalg.norm(x @ (fed_back - weight).T) < 0.5 * np.linalg.norm(x @ (plain - weight).T)
    assert not fed_back[3].any()


def test_improve_codes() -> None:
    rng = np.random.default_rng(8)
    weight, book = rng.standard_normal((9, 32)), uniform(4)
    weight[2] = weight[4, 16:] = 0
    scale = np.array(search(weight, book, 16), np.float64)
    scale[6, 1] = 0  # too small to be stored
    moments = (x := correlated(200, 32, 8)).T @ x + 5 * np.eye(32)
    codes = rng.integers(0, 16, weight.shape).astype(np.uint8)
    gradient = (weight - book.entries[codes] * np.repeat(scale, 16, axis=1)) @ moments
    expected = twin.improve_codes(gradient, moments, scale, book.entries, codes)
    before = codes.copy()
    changed = _rounding.improve_codes(gradient, moments, scale, book.index, book.values, codes)
    np.testing.assert_array_equal(codes, expected[0])
    np.testing.assert_array_equal(gradient, expected[1])
    assert changed == expected[2] == (codes != before).sum() > 100
    assert (codes[6, 16:] == before[6, 16:]).all()
    assert (codes[2] == before[2]).all()
    with pytest.raises(ValueError, match="moments' last axis is 31; it must be 32"):
        _rounding.improve_codes(gradient, np.ones((32, 31)), scale, book.index, book.values, codes)


@pytest.mark.parametrize("group", [0, 32])
def test_codes_that_know_all_errors_cost_less(group: int) -> None:
    weight = np.random.default_rng(9).standard_normal((48, 192))
    book = learn(weight, 4, group)
    scale = search(weight, book, group)
    seen = correlated(2000, 192, 9)
    costs = Costs.of(seen.T @ seen, DAMPING, True)
    assert costs.moments is not None
    added = DAMPING * np.square(seen).sum() / 192
    np.testing.assert_allclose(costs.moments - seen.T @ seen, added * np.eye(192), atol=1e-6)
    assert Costs.of(seen.T @ seen, DAMPING, False).moments is None
    codes = round_to_codes_with_feedback(weight, scale, book, costs.shares)

    def cost() -> Array:
        errors = real(codes, scale, book) - weight
        result: Array = np.einsum("ij,jk,ik->i", errors, costs.moments, errors)
        return result

    before = cost()
    improve(weight, codes, scale, book, costs.moments)
    assert (cost() <= before * (1 + 1e-9)).all()
    assert cost().sum() < 0.97 * before.sum()


@pytest.mark.parametrize("group", [0, 16, 64])
def test_fitted_scales_keep_products_better(group: int) -> None:
    weight = np.random.default_rng(6).standard_normal((48, 192))
    weight[3] = weight[5, :64] = 0
    x = correlated(2000, 192, 6)
    book = learn(weight, 4, group)
    scale = search(weight, book, group)
    shares = error_shares(x.T @ x)
    codes = round_to_codes_with_feedback(weight, scale, book, shares)
    values = book.values[codes]
    fitted = fit_scales(weight, values, scale, shares)
    moments = x.T @ x
    moments[np.diag_indices(192)] += DAMPING * np.trace(moments) / 192

    def cost(scale: Array) -> Array:
        errors = np.repeat(scale.astype(np.float64), 192 // scale.shape[1], axis=1) * values - weight
        result: Array = np.einsum("ij,jk,ik->i", errors, moments, errors)
        return result

    before, after = cost(scale), cost(fitted)
    assert (after <= before * (1 + 1e-5)).all()
    assert after.sum() < 0.995 * before.sum()
    assert fitted.dtype == np.float32
    assert (fitted[3] == scale[3]).all()  # a row of zeros
    for row in (0, 7):  # within what two rounds leave of the least squares' solution
        parts = (values[row] * np.eye(scale.shape[1]).repeat(192 // scale.shape[1], axis=1)).T
        best = np.linalg.solve(parts.T @ moments @ parts, parts.T @ moments @ weight[row])
        least = cost(np.tile(best, (48, 1)))[row]
        assert after[row] - least < 0.5 * (before[row] - least) + 1e-9

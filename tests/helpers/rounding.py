"""Rounding and profiling in plain numpy: the twins of the compiled loops, in their order of operations."""

from __future__ import annotations

import numpy as np

from pocketformer.graph import Array
from pocketformer.hadamard import hadamard


def dequantize(weight: Array, scale: Array, rotate: int) -> Array:
    """The real weights float64 [N, K] that int8 ``weight`` [N, K] and ``scale`` [N] stand for, rotated back."""
    return hadamard(weight * scale.astype(np.float64)[:, None], rotate)


def round_to_nearest(weight: Array, step: Array) -> Array:
    return np.clip(np.rint(weight / step[:, None]), -127, 127).astype(np.int8)


def squared_errors(weight: Array, step: Array, values: Array) -> Array:
    """``cumsum`` adds in order, where ``sum`` adds pairwise."""
    return np.cumsum(np.square(weight - values * step[:, None]), axis=1)[:, -1]


def feed_back(weight: Array, errors: Array, shares: Array, step: Array, begin: int, end: int) -> tuple[Array, Array]:
    """The inputs ``begin`` … ``end`` − 1 rounded, int8 [N, end − begin], and what ``errors`` then is."""
    errors = errors.copy()
    values = np.empty((len(weight), end - begin), np.int8)
    for i in range(begin, end):
        values[:, i - begin] = round_to_nearest((weight[:, i] + errors[:, i])[:, None], step)[:, 0]
        errors[:, i] = weight[:, i] - values[:, i - begin] * step
        errors[:, i + 1 : end] += errors[:, i, None] * shares[i, i + 1 : end]
    return values, errors


def pair_to_nearest(weight: Array, step: Array) -> Array:
    """As ``round_to_nearest``, a pair of inputs that would have more than 128 becoming the nearest that has as much:
    all of these are tried."""
    values = round_to_nearest(weight, step)
    for row, i in np.ndindex(len(weight), weight.shape[1] // 2):
        pair = slice(2 * i, 2 * i + 2)
        if np.abs(values[row, pair].astype(int)).sum() > 128:
            sign = np.where(weight[row, pair] < 0, -1, 1)
            on_border = np.array([[first, 128 - first] for first in range(1, 128)]) * sign
            distances = np.square(on_border - weight[row, pair] / step[row]).sum(axis=1)
            values[row, pair] = on_border[distances.argmin()]
    return values


def feed_back_pairs(weight: Array, errors: Array, shares: Array, step: Array, begin: int, end: int) -> Array:
    """As ``feed_back`` with bounded pairs: the first of a pair that would have more than 128 takes what costs least,
    of all that it may."""
    errors = errors.copy()
    values = np.zeros(weight.shape, np.int8)
    for row, i in np.ndindex(len(weight), end - begin):
        i, each = i + begin, step[row]
        rounded = float(np.clip(np.rint((weight[row, i] + errors[row, i]) / each), -127, 127))
        if i % 2:
            most = 128 - abs(int(values[row, i - 1]))
            rounded = min(max(rounded, -most), most)
        elif i + 1 < end:
            second = weight[row, i + 1] + errors[row, i + 1]

            def left(first: float, row: int = row, i: int = i, second: float = second, each: float = each) -> float:
                return float(second + (weight[row, i] - first * each) * shares[i, i + 1]) / each

            if abs(rounded) + abs(np.clip(np.rint(left(rounded)), -127, 127)) > 128:
                wanted = (weight[row, i] + errors[row, i]) / each
                sign, other = (-1 if wanted < 0 else 1), (-1 if left(wanted) < 0 else 1)
                first = np.arange(1, 128.0)
                cost = shares[i, i] * np.square(wanted - sign * first) + shares[i + 1, i + 1] * np.square(
                    np.array([left(sign * size) for size in first]) - other * (128 - first)
                )
                rounded = sign * float(first[cost.argmin()])
        values[row, i] = rounded
        errors[row, i] = weight[row, i] - rounded * each
        errors[row, i + 1 : end] += errors[row, i] * shares[i, i + 1 : end]
    return values[:, begin:end]


def nearest_codes(weight: Array, step: Array, entries: Array) -> Array:
    """uint8 [N, K]: the index of the nearest of the ascending ``entries``, the higher one of a tie."""
    x = np.clip(weight / np.repeat(step, weight.shape[1] // step.shape[1], axis=1), -127, 127)
    order = np.abs(x[:, :, None] - entries[::-1].astype(np.float64)).argmin(axis=2)
    return (len(entries) - 1 - order).astype(np.uint8)


def feed_back_codes(
    weight: Array, errors: Array, shares: Array, step: Array, entries: Array, begin: int, end: int
) -> tuple[Array, Array]:
    """As ``feed_back``, with indices into ``entries`` and ``step`` [N, groups]."""
    errors, size = errors.copy(), weight.shape[1] // step.shape[1]
    codes = np.empty((len(weight), end - begin), np.uint8)
    for i in range(begin, end):
        own = step[:, i // size]
        codes[:, i - begin] = nearest_codes((weight[:, i] + errors[:, i])[:, None], own[:, None], entries)[:, 0]
        errors[:, i] = weight[:, i] - entries[codes[:, i - begin]] * own
        errors[:, i + 1 : end] += errors[:, i, None] * shares[i, i + 1 : end]
    return codes, errors


def improve_codes(
    gradient: Array, moments: Array, scale: Array, entries: Array, codes: Array
) -> tuple[Array, Array, int]:
    """The codes, the gradient and how many have changed, after each code was looked at once."""
    gradient, codes, size = gradient.copy(), codes.copy(), codes.shape[1] // scale.shape[1]
    changed = 0
    for row, i in np.ndindex(codes.shape):
        step = scale[row, i // size]
        if step <= 0:
            continue
        value = entries[codes[row, i]] * step
        found = nearest_codes(np.array([[value + gradient[row, i] / moments[i, i]]]), np.array([[step]]), entries)[0, 0]
        if found != codes[row, i]:
            gradient[row] -= (entries[found] * step - value) * moments[i]
            codes[row, i], changed = found, changed + 1
    return codes, gradient, changed


def observe(x: Array, highest: Array, total: Array, squares: Array) -> tuple[Array, Array, Array]:
    size = np.abs(x)
    square = size.astype(np.float64) * size
    return (
        np.maximum(highest, size.max(axis=0, initial=0)),
        np.cumsum(np.concatenate([total[None], size]), axis=0, dtype=np.float64)[-1],
        np.cumsum(np.concatenate([squares[None], square]), axis=0)[-1],
    )


def gptq(weight: Array, scale: Array, moments: Array, damping: float) -> Array:
    """Algorithm 1 of arXiv 2210.17323 without its blocks: the rows of the inverse's factor spread each error."""
    k = len(moments)
    damped = moments + np.eye(k) * (damping * np.trace(moments) / k)
    factor = np.linalg.cholesky(np.linalg.inv(damped)).T
    rest, values = weight.copy(), np.empty(weight.shape, np.int8)
    for i in range(k):
        values[:, i] = round_to_nearest(rest[:, i, None], scale)[:, 0]
        error = (rest[:, i] - values[:, i] * scale) / factor[i, i]
        rest[:, i + 1 :] -= np.outer(error, factor[i, i + 1 :])
    return values

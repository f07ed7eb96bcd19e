"""Rounds weights input by input and lets the inputs still to come absorb each error (GPTQ, arXiv 2210.17323).

For moments H = Σ xᵀx and an error E = W − Ŵ the products change by tr(E·H·Eᵀ). With H = R·Rᵀ, R upper triangular, that
is ‖E·R‖², and column j of E·R depends on the inputs up to j alone: each is rounded after what the earlier errors left
there, E[:, :j]·R[:j, j] / R[j, j], was added to it. GPTQ computes the same from the inverse of H (arXiv 2307.13304).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..graph import Array
from ..layout import LANES
from ._rounding import feed_back, feed_back_codes, improve_codes
from .codebook import Codebook

DAMPING = 0.01
"""Share of the mean second moment that is added to all, so that the factorization is stable."""
DAMPING_BY_SAMPLE = 4.0
"""The same for int8, times inputs / rows that were seen: few rows leave many directions in which an error seems to cost
nothing, and the errors of int8 are so small that what moves there is more than is gained (docs/compression.md)."""
MOST_IMPROVED = 4096
"""Inputs, at most, of a weight whose codes are looked at again."""
PASSES = 4
"""Times that all codes are looked at again: 1 to 2% move in the first, a fifth of a percent or so in the last."""
BLOCK = 128
"""Inputs whose errors reach the next ones in one product."""


@dataclass(frozen=True)
class Costs:
    """What errors of a weight cost, by the rows that it is multiplied by.

    ``shares`` are those of :func:`error_shares`; ``moments`` float64 [K, K] the damped moments themselves, or None.
    """

    shares: Array
    moments: Array | None = None

    @classmethod
    def of(cls, moments: Array, damping: float, both: bool) -> Costs:
        """Those of ``moments``, which become the shares in their place; ``both``: they are kept too, unless there are
        so many inputs that they would take more than 128 MB."""
        kept = None
        if both and len(moments) <= MOST_IMPROVED:
            kept = moments.copy()
            kept[np.diag_indices(len(kept))] += damping * np.trace(kept) / len(kept)
        return cls(error_shares(moments, damping), kept)


def damping_of_int8(inputs: int, rows: int) -> float:
    """For moments [inputs, inputs] of so many ``rows``."""
    return max(DAMPING, DAMPING_BY_SAMPLE * inputs / max(rows, 1))


def error_shares(moments: Array, damping: float = DAMPING) -> Array:
    """Makes of ``moments`` float64 [K, K], in their place, what an error of input i asks of input j > i, at [i, j], and
    at [i, i] what one costs that nothing was asked for: with U, the same with ones there, errors E cost
    Σ (E·U)[:, i]² · [i, i].

    What lies below the diagonal is of no use. In blocks from the last inputs on, which takes little more memory.
    """
    k = len(moments)
    shares = moments
    shares[np.diag_indices(k)] += damping * np.trace(moments) / k
    for end in range(k, 0, -BLOCK):
        begin = max(end - BLOCK, 0)
        corner = np.linalg.cholesky(shares[begin:end, begin:end][::-1, ::-1])[::-1, ::-1]
        side = shares[:begin, begin:end] @ np.linalg.inv(corner).T
        for left in range(0, begin, 4 * BLOCK):
            right = min(left + 4 * BLOCK, begin)
            shares[:right, left:right] -= side[:right] @ side[left:right].T
        shares[:begin, begin:end] = side / corner.diagonal()
        shares[begin:end, begin:end] = corner / corner.diagonal()
        shares[np.arange(begin, end), np.arange(begin, end)] = np.square(corner.diagonal())
    return shares


def refit(moments: Array, cross: Array, damping: float) -> Array:
    """[K, K]: what weights W change by, W · this, so that their products with the rows x of a rounded model are those
    with the exact rows z, in the least squares' sense: (Σ zᵀx − Σ xᵀx) · (Σ xᵀx + ``damping`` · mean · I)⁻¹.

    Undamped it hurts: it follows what the samples happen to have in common.
    """
    k = len(moments)
    damped = moments + np.eye(k) * (damping * np.trace(moments) / k)
    # In float32, which takes half as long: the damping leaves no small eigenvalues.
    solved = np.linalg.solve(damped.astype(np.float32), (cross - moments).T.astype(np.float32))
    change: Array = solved.T.astype(np.float64)
    return change


def round_with_feedback(weight: Array, scale: Array, shares: Array, pairs: bool = False) -> Array:
    """``weight`` float64 [N, K] → int8 [N, K] in steps of ``scale`` [N] that keep ``weight · x`` for typical ``x``.

    ``pairs``: of inputs 2j and 2j + 1 the magnitudes are 128 together at most.
    """
    n, k = weight.shape
    step = steps(scale)
    errors = np.zeros((n, k))  # of inputs still to come: what the earlier ones ask of them
    values = np.empty((n, k), np.int8)
    for begin in range(0, k, BLOCK):
        end = min(begin + BLOCK, k)
        if begin:
            errors[:, begin:end] = errors[:, :begin] @ shares[:begin, begin:end]
        feed_back(weight, errors, shares, step, values, begin, end, pairs)
    return values


def round_to_codes_with_feedback(weight: Array, scale: Array, codebook: Codebook, shares: Array) -> Array:
    """``weight`` float64 [N, K] → uint8 [N, K], indices into ``codebook``, with a ``scale`` [N, groups]."""
    n, k = weight.shape
    step, index, entries = steps(scale), codebook.index, codebook.values
    errors = np.zeros((n, k))
    codes = np.empty((n, k), np.uint8)
    for begin in range(0, k, BLOCK):
        end = min(begin + BLOCK, k)
        if begin:
            errors[:, begin:end] = errors[:, :begin] @ shares[:begin, begin:end]
        feed_back_codes(weight, errors, shares, step, index, entries, codes, begin, end)
    return codes


def improve(weight: Array, codes: Array, scale: Array, codebook: Codebook, moments: Array) -> None:
    """Moves ``codes`` [N, K] of ``weight`` float64 [N, K] to where the products with rows of these ``moments`` float64
    [K, K] change less, one code at a time, a few times over.

    Feedback rounds an input for the errors before it, but knows nothing of those after it; here each knows all others.
    """
    step = scale.astype(np.float64)
    size = weight.shape[1] // step.shape[1]
    errors = weight - codebook.values[codes] * np.repeat(step, size, axis=1)
    gradient = np.empty(weight.shape)
    for begin in range(0, len(weight), LANES):  # a product of more rows would have other bits: parts are multiples
        gradient[begin : begin + LANES] = errors[begin : begin + LANES] @ moments
    for _ in range(PASSES):  # as many whatever the rows: parts of a weight become what they are in the whole
        improve_codes(gradient, moments, step, codebook.index, codebook.values, codes)


def fit_scales(weight: Array, values: Array, scale: Array, shares: Array) -> Array:
    """The ``scale`` float32 [N, groups] of ``values`` [N, K], one group after the other, at which the products with
    ``weight`` float64 [N, K] change least: no more than they did before."""
    groups = scale.shape[1]
    size = weight.shape[1] // groups
    fitted = scale.astype(np.float64)
    weighted = np.triu(shares, 1)
    weighted[np.diag_indices(len(weighted))] = 1
    weighted *= np.sqrt(np.diag(shares))

    def moved(part: Array, group: int) -> Array:
        """What the columns of ``group`` do to the errors, from their own on."""
        begin, end = group * size, (group + 1) * size
        result: Array = part[:, begin:end] @ weighted[begin:end, begin:]
        return result

    left = np.repeat(fitted, size, axis=1) * values - weight
    errors = np.zeros(weight.shape)
    for group in range(groups):
        errors[:, group * size :] += moved(left, group)
    for group in (*range(groups), *range(groups)):
        part, behind = moved(values, group), errors[:, group * size :]
        squares = np.einsum("ij,ij->i", part, part)
        step = -np.einsum("ij,ij->i", part, behind) / np.where(squares > 0, squares, 1)
        step[fitted[:, group] + step <= 0] = 0
        fitted[:, group] += step
        part *= step[:, None]
        behind += part
    return fitted.astype(np.float32)


def steps(scale: Array) -> Array:
    """``scale`` in float64, 1 where all is zero."""
    return np.where(scale > 0, scale, 1).astype(np.float64)

"""What remains takes over what is removed: least squares on the second moments of the inputs.

A product W·x that loses the inputs R keeps S. With H = Σ xxᵀ the weights V over S that change the products least are
V = W·H[:, S]·H[S, S]⁻¹: what x[R] has in common with x[S] is still there to be used.
"""

from __future__ import annotations

import numpy as np

from ..graph import Array

DAMPING = 1e-3
"""Share of the mean second moment that is added to all, which keeps the solution small where inputs nearly agree."""


def damped(moments: Array, damping: float = DAMPING) -> Array:
    """A copy of ``moments`` [K, K] in float64 with ``damping`` times their mean diagonal added to the diagonal."""
    result = np.array(moments, np.float64)
    result[np.diag_indices(len(result))] += damping * np.trace(result) / len(result) or 1.0
    return result


def refit(weight: Array, moments: Array, kept: Array, damping: float = DAMPING) -> Array:
    """``weight`` [N, K] for the inputs ``kept`` alone: float64 [N, len(kept)].

    The damping pulls towards the plain columns, not towards zero, so that the result is never worse than those on
    inputs with these ``moments``.
    """
    weight = np.asarray(weight, np.float64)
    removed = np.setdiff1d(np.arange(weight.shape[1]), kept)
    inner = damped(moments[np.ix_(kept, kept)], damping)
    moved = np.linalg.solve(inner, np.asarray(moments[np.ix_(kept, removed)], np.float64))
    result: Array = weight[:, kept] + weight[:, removed] @ moved.T
    return result


def error(weight: Array, fitted: Array, moments: Array, kept: Array) -> float:
    """Σ ‖W·x − V·x[kept]‖² over the rows that ``moments`` were taken of."""
    change = np.array(weight, np.float64)
    change[:, kept] -= fitted
    return float(np.einsum("ij,jk,ik->", change, np.asarray(moments, np.float64), change, optimize=True))

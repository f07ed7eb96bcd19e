"""Rows of a weight, rotated already, to int8 or to indices into a codebook."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..graph import Array
from ._rounding import rotate, round_to_codes, round_to_nearest, squared_errors
from .codebook import SAMPLE, Codebook, search
from .gptq import Costs, fit_scales, improve, round_to_codes_with_feedback, round_with_feedback, steps

PAIR_SHARES = (1.0, 0.95, 0.9)
"""Of the scale at which no pair is out of bounds, candidates for that of bounded pairs: normal numbers are rounded best
with the first where inputs are few, with the last where they are thousands."""


@dataclass(frozen=True)
class Rounded:
    """Consecutive rows of a quantized weight: ``values`` int8 [rows, K] in steps of ``scale`` float32 [rows], or uint8
    indices into ``codebook``, with a scale a row or [rows, groups].

    ``begin`` is the first of them, a multiple of 16. ``error`` and ``norm`` are the sums of squares of what rounding
    changed and of the weights, both rotated. ``peak`` is the Observer's of what the weight is multiplied by, or 0.
    """

    name: str
    begin: int
    values: Array
    scale: Array
    error: float
    norm: float
    peak: float
    codebook: Array | None = None

    def real(self, block: int) -> Array:
        """The weights that these stand for, float64 [rows, K], rotated back by ``block``."""
        values = self.values if self.codebook is None else self.codebook[self.values]
        scale = self.scale.reshape(len(self.scale), -1, 1).astype(np.float64)
        weight: Array = (values.reshape(*scale.shape[:2], -1) * scale).reshape(values.shape)
        if block:
            rotate(weight, block)
        return weight


def quantize_rows(weight: Array, clip: tuple[float, ...] = (1.0,), pairs: bool = False) -> tuple[Array, Array]:
    """``weight`` [N, K] → int8 [N, K] in −127…127 and scales float32 [N], nearest even; zero rows get scale 0.

    ``clip``: shares of a row's range, of which that with the least squared error is taken. ``pairs``: of inputs 2j and
    2j + 1 the magnitudes are 128 together at most, and the range is that of a row's pairs.
    """
    weight = np.ascontiguousarray(weight, np.float64)
    amax = np.maximum(weight.max(axis=1), -weight.min(axis=1)) + 0.0  # no −0 for a row of zeros
    if pairs:
        both = np.abs(weight[:, : weight.shape[1] // 2 * 2]).reshape(len(weight), -1, 2).sum(axis=2)
        amax = np.maximum(amax, both.max(axis=1, initial=0.0) * (127 / 128))
        clip = tuple(share * of_pairs for share in clip for of_pairs in PAIR_SHARES)
    best, best_scale = np.empty(weight.shape, np.int8), np.empty(len(weight), np.float32)
    best_error = np.full(len(weight), np.inf)
    values, error = np.empty_like(best), np.empty_like(best_error)
    for share in clip:
        scale = (amax * share / 127).astype(np.float32)
        round_to_nearest(weight, steps(scale), values, pairs)
        squared_errors(weight, steps(scale), values, error)
        better = error < best_error
        best[better], best_scale[better], best_error[better] = values[better], scale[better], error[better]
    return best, best_scale


def rotated(part: Array, block: int, change: Array | None) -> Array:
    """The rows ``part``, float64, as the runtime multiplies by them; ``change`` is that of ``refit``."""
    if change is not None:
        part = part + part @ change
    if block:
        rotate(part, block)
        part /= block
    return part


def sample_rows(weight: Array) -> Array:
    """Rows from all of ``weight``, float64."""
    rows = max(SAMPLE // weight.shape[1], 1)
    chosen = np.unique(np.linspace(0, len(weight) - 1, min(rows, len(weight))).astype(np.int64))
    return np.concatenate([np.array(weight[i : i + 1], np.float64) for i in chosen])


def as_int8(
    name: str, begin: int, part: Array, clip: tuple[float, ...], pairs: bool, costs: Costs | None, peak: float
) -> Rounded:
    values, scale = quantize_rows(part, clip, pairs)
    if costs is not None:
        values = round_with_feedback(part, scale, costs.shares, pairs)
    errors = np.empty(len(part))
    squared_errors(part, steps(scale), values, errors)
    norm = float(np.vdot(part, part))
    return Rounded(name, begin, values, scale, float(errors.sum()), norm, peak)


def as_codes(
    name: str,
    begin: int,
    part: Array,
    codebook: Codebook,
    group: int,
    costs: Costs | None,
    peak: float,
    stored: Any = np.float32,
) -> Rounded:
    scale = _stored(search(part, codebook, group), stored)
    if costs is not None:
        codes = round_to_codes_with_feedback(part, scale, codebook, costs.shares)
        if costs.moments is not None:
            improve(part, codes, scale, codebook, costs.moments)
        scale = _stored(fit_scales(part, codebook.values[codes], scale, costs.shares), stored)
    else:
        codes = np.empty(part.shape, np.uint8)
        round_to_codes(part, steps(scale), codebook.index, codes)
    real = codebook.values[codes].reshape(*scale.shape, -1) * scale[:, :, None].astype(np.float64)
    error = float(np.square(real.reshape(part.shape) - part).sum())
    norm = float(np.vdot(part, part))
    scale = scale if group else scale[:, 0]
    return Rounded(name, begin, codes, scale, error, norm, peak, codebook.entries)


def _stored(scale: Array, dtype: Any) -> Array:
    """``scale`` as ``dtype``, no number of which is infinite."""
    stored: Array = np.minimum(scale, np.finfo(dtype).max).astype(dtype)
    return stored

"""Indices into a learned codebook: what the entries are, and the scale of each group of weights.

The entries are int8 and as many as the bits allow, learned for each weight by Lloyd's algorithm (1982): every number
goes to its nearest entry, every entry to the mean of its numbers, in units of their groups' scales. A scale is the
least squares' for the entries that its numbers go to: what lies far out is clipped where that costs less than it gives.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from ..graph import Array
from ._rounding import match_codes, round_to_codes

SAMPLE = 1 << 18
"""Weights of a tensor, at most, that its codebook is learned from."""
ROUNDS = 12
SHARES = (1.0, 0.92, 0.85, 0.78, 0.7, 0.62)
"""Of a group's range, from which the search for its scale begins."""


@dataclass(frozen=True)
class Codebook:
    """``entries`` int8 [2^bits], ascending."""

    entries: Array

    @property
    def bits(self) -> int:
        return (len(self.entries) - 1).bit_length()

    @property
    def values(self) -> Array:
        """``entries`` as the loops take them: float64 [256]."""
        values = np.zeros(256)
        values[: len(self.entries)] = self.entries
        return values

    @property
    def index(self) -> Array:
        """uint8 [512]: of numbers from i/2 − 128 on, up to the next half, the nearest entry."""
        borders = (self.entries[1:].astype(np.float64) + self.entries[:-1]) / 2
        return np.searchsorted(borders, np.arange(512) / 2 - 128, side="right").astype(np.uint8)


def learn(sample: Array, bits: int, group: int) -> Codebook:
    """The codebook of weights like ``sample`` float64 [N, K], in groups of ``group`` inputs (0: all of a row)."""
    grouped = sample.reshape(-1, group or sample.shape[1])
    grouped = grouped[np.abs(grouped).max(axis=1) > 0]
    codebook = _normal(bits)
    if not len(grouped):
        return codebook
    for _ in range(ROUNDS):
        scale = search(grouped, codebook, 0)[:, 0].astype(np.float64)
        x = grouped / scale[:, None]
        codes = np.empty(x.shape, np.uint8)
        round_to_codes(grouped, scale[:, None], codebook.index, codes)
        weights = np.broadcast_to(np.square(scale)[:, None], x.shape)
        total = np.bincount(codes.reshape(-1), (weights * x).reshape(-1), len(codebook.entries))
        count = np.bincount(codes.reshape(-1), weights.reshape(-1), len(codebook.entries))
        means = np.where(count > 0, total / np.where(count > 0, count, 1), codebook.entries)
        means *= 127 / max(np.abs(means).max(), 1)  # the scales make up for it
        entries = np.unique(np.rint(means).astype(np.int8))
        learned = np.concatenate([entries, np.full(len(codebook.entries) - len(entries), entries[-1], np.int8)])
        if (learned == codebook.entries).all():
            break
        codebook = Codebook(learned)
    return codebook


def uniform(bits: int) -> Codebook:
    """Evenly spaced entries."""
    return Codebook(np.rint(np.linspace(-127, 127, 1 << bits)).astype(np.int8))


def consecutive(bits: int) -> Codebook:
    """Whole numbers, as the products of 5 and 6 bits know them."""
    return Codebook(np.arange(-(1 << bits) // 2, (1 << bits) // 2, dtype=np.int8))


def _normal(bits: int) -> Codebook:
    """Where Lloyd's algorithm begins: for many entries, their density is the cube root of that of the numbers (Panter
    and Dite, 1951), which are nearly normal once they are rotated."""
    count = 1 << bits
    places = np.array([NormalDist().inv_cdf((i + 0.5) / count) for i in range(count)])
    return Codebook(np.rint(places * (127 / places[-1])).astype(np.int8))


def search(weight: Array, codebook: Codebook, group: int) -> Array:
    """The scales float32 [N, groups] of ``weight`` float64 [N, K] with the least squared error that was found."""
    n, k = weight.shape
    size = group or k
    grouped = weight.reshape(n * (k // size), size)
    highest = np.maximum(grouped.max(axis=1), -grouped.min(axis=1))[:, None]
    index, values, largest = codebook.index, codebook.values, float(np.abs(codebook.values).max())
    products, squares = np.empty((2, len(grouped), 1))
    best, best_gain = np.zeros((len(grouped), 1)), np.full((len(grouped), 1), -1.0)

    def fit(step: Array) -> Array:
        """The least squares' scale where ``step`` says which entries the weights go to."""
        nonlocal best, best_gain
        match_codes(grouped, np.where(step > 0, step, 1), index, values, products, squares)
        scale = np.where(squares > 0, products / np.where(squares > 0, squares, 1), 0)
        gain = scale * products  # Σw² less the squared error
        best, best_gain = np.where(gain > best_gain, scale, best), np.maximum(gain, best_gain)
        return scale

    for share in SHARES:
        fit(highest * share / largest)
    for _ in range(3):
        fit(best)
    return best.reshape(n, k // size).astype(np.float32)

"""Quartiles, and ratios of two series that were measured in turn."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import quantiles


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile; a single value stands for all three."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = quantiles(values, n=4, method="inclusive")
    return low, middle, high


def ratios(theirs: Sequence[float], ours: Sequence[float]) -> tuple[float, float, float]:
    """Quartiles of their time divided by ours, paired by round: above 1 we are faster."""
    return quartiles([their / our for their, our in zip(theirs, ours, strict=True)])


def ratio_text(theirs: Sequence[float], ours: Sequence[float]) -> str:
    low, middle, high = ratios(theirs, ours)
    return f"**{middle:.2f}** ({low:.2f}–{high:.2f})"

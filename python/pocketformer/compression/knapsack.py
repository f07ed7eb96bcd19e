"""Chooses one setting of each knob so that together they fit and lose the least: the multiple-choice knapsack."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

BINS = 1 << 15
"""Sizes that are told apart, from the least that there is to the limit: a knob wastes one of them at most."""

Choice = tuple[float, float]
"""Bytes and error of one setting."""


def cheapest(knobs: Sequence[Sequence[Choice]], limit: float) -> list[int] | None:
    """The setting of each of ``knobs`` with the least sum of errors whose bytes are at most ``limit`` together; None
    where even the smallest are more.

    By dynamic programming over bytes in ``BINS`` steps, rounded up: what it finds fits, and nothing that is smaller by
    a step a knob loses less.
    """
    least = [min(size for size, _ in knob) for knob in knobs]
    room = limit - sum(least)
    if room < 0:
        return None
    step = max(room / BINS, 1e-9)
    errors = np.zeros(BINS + 1)  # the least with so many bins
    taken: list[tuple[np.ndarray, list[int]]] = []
    for knob, smallest in zip(knobs, least, strict=True):
        best = np.full(BINS + 1, np.inf)
        chosen = np.zeros(BINS + 1, np.int32)
        sizes = [int(np.ceil((size - smallest) / step - 1e-6)) for size, _ in knob]
        for index in _worth(sizes, [error for _, error in knob]):
            size, error = sizes[index], knob[index][1]
            if size > BINS:
                continue
            sums = errors[: BINS + 1 - size] + error
            better = sums < best[size:]
            best[size:][better] = sums[better]
            chosen[size:][better] = index
        taken.append((chosen, sizes))
        errors = best
    at, found = int(np.argmin(errors)), []
    for chosen, sizes in reversed(taken):
        found.append(int(chosen[at]))
        at -= sizes[found[-1]]
    return found[::-1]


def _worth(sizes: Sequence[int], errors: Sequence[float]) -> list[int]:
    """The settings than which none is both smaller and better."""
    found: list[int] = []
    for index in sorted(range(len(sizes)), key=lambda i: (sizes[i], errors[i])):
        if not found or errors[index] < errors[found[-1]]:
            found.append(index)
    return found

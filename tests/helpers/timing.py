"""Limits on time, on machines that others use as well."""

from __future__ import annotations

from collections.abc import Callable


def best_of(measure: Callable[[], float], limit: float, most: int = 30) -> float:
    """The least of up to ``most`` measurements; the first within ``limit`` is the last.

    A neighbour makes some of them slow, a regression all of them: a busy machine takes longer to say yes, no other
    takes longer than ``most`` to say no.
    """
    least = measure()
    for _ in range(most - 1):
        if least <= limit:
            break
        least = min(least, measure())
    return least

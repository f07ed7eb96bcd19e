"""Which keys the queries of ``pocketformer.kernels.attention`` see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

Reach: TypeAlias = int | tuple[int | None, int | None] | None


@dataclass(frozen=True)
class Window:
    """A query sees positions at most ``before`` before and ``after`` after its own; None is any distance.

    ``inclusive=False`` says less than so many. With ``dilation`` d it sees only every d-th position, counted from its
    own, and the distances count these (Longformer, arXiv 2004.05150); without bounds that is the strided pattern of
    Sparse Transformers (arXiv 1904.10509). The first ``globals`` positions are seen by all, once, and see all.

    Raises ValueError for a number that says nothing, and for ``globals`` beside a ``dilation``.
    """

    before: int | None = None
    after: int | None = None
    inclusive: bool = True
    dilation: int = 1
    globals: int = 0

    def __post_init__(self) -> None:
        least = 0 if self.inclusive else 1
        for name, low in (("before", least), ("after", least), ("dilation", 1), ("globals", 0)):
            value = getattr(self, name)
            if value is None and name in ("before", "after"):
                continue
            if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < low:
                raise ValueError(f"{name} is {value!r}; it must be an integer of at least {low}")
        if self.globals and self.dilation != 1:
            raise ValueError(f"globals is {self.globals} beside a dilation of {self.dilation}; one of them is possible")


@dataclass(frozen=True)
class Blocks:
    """Queries in block b of ``size`` positions see the key blocks ``keys[b]``; one named twice counts twice.

    ``keys`` has a sequence of block numbers for each ⌈keys / size⌉ blocks (BigBird, arXiv 2007.14062). With ``causal``
    a query sees of these no later position. A query that sees no key gets zeros.
    """

    size: int
    keys: Sequence[Sequence[int]]

    def __post_init__(self) -> None:
        if not isinstance(self.size, (int, np.integer)) or isinstance(self.size, bool) or self.size < 1:
            raise ValueError(f"size is {self.size!r}; it must be an integer of at least 1")


def reach(causal: bool, window: Reach) -> tuple[int, int]:
    """Positions that a query sees before and after its own; −1 is all."""
    before, after = window if isinstance(window, tuple) else (window, window)
    for bound in (before, after):
        if bound is not None and (not isinstance(bound, (int, np.integer)) or bound < 0):
            raise ValueError(f"window is {window!r}; pass a distance of 0 or more, a pair (before, after), or None")
    return -1 if before is None else int(before), 0 if causal else -1 if after is None else int(after)

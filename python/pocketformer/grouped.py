"""Matrices of integers in groups, as GGUF files hold them, so that they can be stored without being rounded anew."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .layout import BITS, BLOCK, LONGEST_JOINED, MOST_GROUPS

Array = NDArray[Any]
GROUP_PARTS = ("scale", "subscale", "minimum", "subminimum")
"""What each group of inputs of a channel may have a number of."""
_FORMATS = tuple(BITS[name] for name in ("i4", "i5", "i6"))


@dataclass(frozen=True)
class Rows:
    """Consecutive rows: ``values`` int8 [rows, k] times scale plus minimum of their group.

    ``scale`` and ``minimum`` are float32 or float16 [rows, groups]; with ``subscale`` and ``subminimum``, int8 of that
    shape, they are float16 [rows, k / 256] that those multiply.
    """

    values: Array
    scale: Array
    subscale: Array | None = None
    minimum: Array | None = None
    subminimum: Array | None = None

    def factors(self) -> dict[str, Array]:
        """All but the values, by name."""
        given = {name: getattr(self, name) for name in GROUP_PARTS}
        return {name: array for name, array in given.items() if array is not None}


@dataclass(frozen=True)
class Grouped:
    """A matrix of ``shape`` [n, k] whose values lie in ``low`` … ``high``; ``group`` inputs share a scale.

    ``scales`` says how those are stored: ``f32``, ``f16`` or ``two_level``, as docs/format.md names it; ``minimum``
    whether there are minima. ``read`` gives the rows from one to another.
    """

    shape: tuple[int, int]
    low: int
    high: int
    group: int
    scales: str
    minimum: bool
    read: Callable[[int, int], Rows]

    @property
    def bits(self) -> int:
        """Of a stored value; those of long rows have no bits between 4 and 8."""
        count = self.high - self.low + 1
        fits = (bits for bits in _FORMATS if count <= 1 << bits and (bits == 4 or self.shape[1] <= LONGEST_JOINED))
        return next(fits, 8)

    def facts(self) -> dict[str, Any]:
        """Those of the weight in a graph, without its extent. Of its inputs 16 share a scale."""
        scales = {} if self._stored == "f32" else {"scales": self._stored}
        inputs = "half_group" if self.group == 32 else "group"
        return {"format": f"i{self.bits}", "group": self.group, "inputs": inputs, **scales}

    def codebook(self) -> Array | None:
        """What the indices of :meth:`stored` stand for."""
        if self.bits == 8:
            return None
        return np.arange(self.low, self.low + (1 << self.bits)).clip(-127, 127).astype(np.int8)

    def stored(self, begin: int, end: int) -> dict[str, Array]:
        """Plain arrays of the rows, by the part of a weight that they are."""
        rows = self._as(self.read(begin, end), self.group, self._stored)
        values = rows.values if self.bits == 8 else (rows.values - np.int8(self.low)).view(np.uint8)
        return {"weight": values, **rows.factors()}

    def part(self, begin: int, end: int) -> Grouped:
        """Rows ``[begin, end)``."""
        shape = (end - begin, self.shape[1])
        return replace(self, shape=shape, read=lambda low, high: self.read(begin + low, begin + high))

    @property
    def _stored(self) -> str:
        return self.scales if self.shape[1] // self.group <= MOST_GROUPS else "f32"

    def _as(self, rows: Rows, group: int, scales: str) -> Rows:
        """``rows`` with scales of smaller groups, as floats where ``scales`` says so, and minima where there are none
        and this has them."""
        n, k = rows.values.shape
        given = rows.factors()
        if scales == "f32":
            for name in ("scale", "minimum"):
                if name in given:
                    given[name] = widened(given[name], given.pop(f"sub{name}", None))
        two = scales == "two_level"
        if self.minimum and "minimum" not in given:
            given["minimum"] = np.zeros((n, k // BLOCK if two else k // group), given["scale"].dtype)
            if two:
                given["subminimum"] = np.zeros((n, k // group), np.int8)
        for name, array in given.items():
            if not (two and name in ("scale", "minimum")):
                given[name] = array.repeat(k // group // array.shape[1], axis=1)
        return Rows(rows.values, **given)


def below(parts: Sequence[Grouped]) -> Grouped:
    """``parts`` below each other, in the smallest groups and the widest range of theirs, with minima if one has."""
    shape = (sum(part.shape[0] for part in parts), parts[0].shape[1])
    kinds = {part.scales for part in parts}
    whole = replace(
        parts[0],
        shape=shape,
        low=min(part.low for part in parts),
        high=max(part.high for part in parts),
        group=min(part.group for part in parts),
        scales=kinds.pop() if len(kinds) == 1 else "f32",
        minimum=any(part.minimum for part in parts),
    )

    def read(begin: int, end: int) -> Rows:
        first, pieces = 0, []
        for part in parts:
            low, high = max(begin - first, 0), min(end - first, part.shape[0])
            if low < high:
                pieces.append(whole._as(part.read(low, high), whole.group, whole.scales))
            first += part.shape[0]
        factors = [piece.factors() for piece in pieces]
        joined = {name: np.concatenate([each[name] for each in factors]) for name in factors[0]}
        return Rows(np.concatenate([piece.values for piece in pieces]), **joined)

    return replace(whole, read=read)


def widened(stored: Array, multiples: Array | None) -> Array:
    """float32 [n] or [n, groups]: scales or minima as ``stored``, times the ``multiples`` of groups that share one."""
    wide: Array = stored.astype(np.float32)
    if multiples is None:
        return wide
    return wide.repeat(multiples.shape[1] // wide.shape[1], axis=1) * multiples.astype(np.float32)

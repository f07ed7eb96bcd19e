"""Arrays that are read when they are used, so that a model larger than memory passes through one tensor at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from .grouped import Grouped, below

Float32 = NDArray[np.float32]
Rows = Callable[[int, int], Float32]
"""Rows ``[begin, end)`` of a matrix, read anew in each call."""


class LazyArray:
    """A float32 array whose shape is known and whose values are read in each use; it holds none of them.

    ``load()``, ``np.asarray`` and any attribute of an ndarray read the whole array, ``array[begin:end]`` only those
    rows. What a caller keeps, it keeps itself. ``grouped`` are the integers that it stands for, where a file has such.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, shape: Sequence[int], rows: Rows, grouped: Grouped | None = None) -> None:
        self.shape = tuple(shape)
        self.grouped = grouped
        self._rows = rows

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        size = 1
        for extent in self.shape:
            size *= extent
        return size

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def load(self) -> Float32:
        return self._rows(0, self.shape[0])

    def rows(self, begin: int, end: int) -> Float32:
        return self._rows(begin, end)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self.load(), dtype, copy=copy)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice) and index.step in (None, 1):
            begin, end, _ = index.indices(len(self))
            return self._rows(begin, max(begin, end))
        return self.load()[index]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # protocols that numpy and copy look for are not to read the array
            raise AttributeError(name)
        return getattr(self.load(), name)

    def __deepcopy__(self, memo: object) -> LazyArray:
        return self  # nobody can change it

    def __repr__(self) -> str:
        return f"LazyArray(shape={self.shape})"


def lazy(shape: Sequence[int], rows: Rows, grouped: Grouped | None = None) -> Float32:
    """A :class:`LazyArray`, typed as the array that it stands for in ``Graph.params``."""
    return cast(Float32, LazyArray(shape, rows, grouped))


def grouped_of(array: Float32) -> Grouped | None:
    """The integers that ``array`` stands for, where it is lazy and a file has such."""
    return array.grouped if isinstance(array, LazyArray) else None


def concatenate(parts: Sequence[Float32]) -> Float32:
    """The parts below each other; nothing is read until the result is."""

    def rows(begin: int, end: int) -> Float32:
        first, pieces = 0, []
        for part in parts:
            low, high = max(begin - first, 0), min(end - first, len(part))
            if low < high:
                pieces.append(np.asarray(part[low:high]))
            first += len(part)
        return np.concatenate(pieces)

    grouped = [found for found in map(grouped_of, parts) if found is not None]
    whole = below(grouped) if len(grouped) == len(parts) else None
    return lazy((sum(len(part) for part in parts), *parts[0].shape[1:]), rows, whole)


def row_slice(array: Float32, begin: int, end: int) -> Float32:
    """Rows ``[begin, end)`` of a matrix; nothing is read until the result is."""
    grouped = grouped_of(array)
    return lazy(
        (end - begin, *array.shape[1:]),
        lambda low, high: np.asarray(array[begin + low : begin + high]),
        None if grouped is None else grouped.part(begin, end),
    )


def take_rows(array: Float32, rows: NDArray[np.int64]) -> Float32:
    """The ``rows`` of a matrix, which rise; nothing is read until the result is."""

    def chosen(begin: int, end: int) -> Float32:
        wanted = rows[begin:end]
        if not len(wanted):
            return np.empty((0, *array.shape[1:]), np.float32)
        first = int(wanted[0])
        return np.ascontiguousarray(np.asarray(array[first : int(wanted[-1]) + 1])[wanted - first])

    return lazy((len(rows), *array.shape[1:]), chosen)


def same_values(a: Float32, b: Float32, rows_at_once: int = 4096) -> bool:
    """Whether two matrices are equal, compared in blocks of rows."""
    if a is b or a.shape != b.shape:
        return a is b
    return all(
        np.array_equal(a[begin : begin + rows_at_once], b[begin : begin + rows_at_once])
        for begin in range(0, len(a), rows_at_once)
    )

"""A matrix that is read by rows, as a source gives it, and that remembers how many were asked for at once."""

from __future__ import annotations

from typing import Any

import numpy as np

from pocketformer.graph import Array


class ByRows:
    """Stands in ``Graph.params`` for ``array``; ``most`` is the largest number of rows that were read at once."""

    def __init__(self, array: Array) -> None:
        self._array = array
        self.shape, self.dtype, self.nbytes = array.shape, array.dtype, array.nbytes
        self.most = 0

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> Array:
        part = self._array[rows]
        self.most = max(self.most, len(part))
        return part.copy()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return np.array(self[:], dtype)

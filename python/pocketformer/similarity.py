"""How alike two sets of rows are: what comparing files and measuring losses share."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def row_cosines(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    """float64 [rows]: the cosine of each row of ``a`` [rows, width] to that of ``b``; 0 where either is all zero."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    lengths = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    result: NDArray[np.float64] = (x * y).sum(axis=1) / np.where(lengths > 0, lengths, 1)
    return result

"""Tables of positions at another size than they were trained for, as PyTorch interpolates them (bicubic)."""

from __future__ import annotations

import math

import numpy as np

from ..graph import Array


def resized(table: Array, size: tuple[int, int], antialias: bool = False) -> Array:
    """``table`` [rows, columns, width] at ``size``; pixels' middles lie at half integers.

    ``antialias`` takes the mean of a wider neighbourhood where it becomes smaller, and Catmull-Rom's cubic.
    """
    down, across = (weights(n, to, antialias) for n, to in zip(table.shape, size, strict=False))
    result: Array = np.einsum("yi,xj,ijc->yxc", down, across, table.astype(np.float64), optimize=True)
    return result.astype(np.float32)


def weights(n: int, to: int, antialias: bool) -> Array:
    """float64 [to, n]: the share of each old entry in each new one."""
    result, scale = np.zeros((to, n)), n / to
    for i in range(to):
        if antialias:
            wide = max(scale, 1.0)
            middle = scale * (i + 0.5)
            begin, end = max(int(middle - 2 * wide + 0.5), 0), min(int(middle + 2 * wide + 0.5), n)
            shares = [cubic((j - middle + 0.5) / wide, -0.5) for j in range(begin, end)]
            result[i, begin:end] = np.array(shares) / sum(shares)
        else:
            middle = scale * (i + 0.5) - 0.5
            first = math.floor(middle)
            for j in range(first - 1, first + 3):  # beyond the border the border counts again
                result[i, min(max(j, 0), n - 1)] += cubic(middle - j, -0.75)
    return result


def cubic(x: float, a: float) -> float:
    """Keys' convolution kernel."""
    x = abs(x)
    if x < 1:
        return ((a + 2) * x - (a + 3)) * x * x + 1
    return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a if x < 2 else 0.0

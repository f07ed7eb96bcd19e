"""Block Walsh–Hadamard transform in natural (Sylvester) order, unnormalised: H·H = B·I."""

from __future__ import annotations

import numpy as np

from .graph import Array


def hadamard(x: Array, block: int) -> Array:
    """``x`` [..., K] with each ``block`` consecutive elements of the last axis multiplied by H.

    Keeps a floating dtype and rounds after each butterfly, like the kernels. ``block`` 0 returns ``x`` itself.
    Raises ValueError unless ``block`` is a power of two that divides K.
    """
    if not block:
        return x
    if block & (block - 1) or x.shape[-1] % block:
        raise ValueError(f"block is {block}; it must be a power of two that divides the last axis, {x.shape[-1]}")
    result = x
    half = 1
    while half < block:
        pairs = result.reshape(*x.shape[:-1], x.shape[-1] // (2 * half), 2, half)
        low, high = pairs[..., 0, :], pairs[..., 1, :]
        result = np.stack((low + high, low - high), axis=-2)
        half *= 2
    return result.reshape(x.shape)

"""Rotary positions as data: how fast each pair of channels turns (Su et al., arXiv 2104.09864)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..graph import Array


@dataclass(frozen=True)
class Rope:
    """Channels i and i + len(frequencies) of each head turn by the position times ``frequencies[i]``.

    ``name`` is that of the frequencies in the graph, where layers that share them store them once. ``factor``
    multiplies sine and cosine.
    """

    frequencies: tuple[float, ...]
    name: str = "rope"
    factor: float = 1.0

    @property
    def array(self) -> Array:
        return np.array(self.frequencies, np.float32)


def frequencies(theta: float, rotated: int) -> tuple[float, ...]:
    """θ^(−2i/rotated) for the first ``rotated`` channels of a head, in float32 steps as models are trained with."""
    exponents = np.arange(0, rotated, 2, dtype=np.float32) / np.float32(rotated)
    return tuple((np.float32(1) / np.float32(theta) ** exponents).tolist())

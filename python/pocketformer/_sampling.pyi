"""The choice of a token. Arrays must be C-contiguous and have exactly the dtype and shape given here."""

import numpy as np
from numpy.typing import NDArray

_F32 = NDArray[np.float32]

def uniform(seed: int, step: int) -> float:
    """The number ``step`` in 0 … 1 of a sequence that ``seed``, an unsigned 64-bit number, names (SplitMix64)."""

def penalize(logits: _F32, marks: NDArray[np.uint8], repetition: float, presence: float) -> None:
    """In place: logits of tokens with bit 0 in ``marks`` [V] are divided by ``repetition``, negative ones multiplied;
    from those with bit 1 ``presence`` is taken.
    """

def best(logits: _F32) -> int:
    """The first of the largest."""

def divide(logits: _F32, temperature: float) -> None:
    """In place."""

def draw(p: _F32, order: NDArray[np.int32], top_k: int, top_p: float, min_p: float, u: float) -> int:
    """A token drawn from probabilities ``p`` [V] by ``u``, uniform in 0 … 1.

    Kept are the ``top_k`` likeliest (0: all), of these the fewest that together have ``top_p``, and of these those with
    at least ``min_p`` times the likeliest's probability; equal ones by number. ``order`` [V] is working memory.
    """

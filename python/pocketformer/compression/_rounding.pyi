"""The loops of rounding and profiling. Arrays must be C-contiguous and have exactly the dtype and shape given here."""

import numpy as np
from numpy.typing import NDArray

_F64 = NDArray[np.float64]

def rotate(x: NDArray[np.float32] | _F64, block: int) -> None:
    """``hadamard(x, block)`` of a 2-D array in place, with the same bits.

    Raises ValueError unless ``block`` is a power of two that divides the last axis.
    """

def round_to_nearest(weight: _F64, step: _F64, values: NDArray[np.int8], pairs: bool = False) -> None:
    """``values`` [N, K] become ``weight`` [N, K] / ``step`` [N], nearest even, within ±127.

    ``pairs``: of inputs 2j and 2j + 1 the magnitudes are 128 together at most; those that would have more become the
    nearest that have as many.
    """

def squared_errors(weight: _F64, step: _F64, values: NDArray[np.int8], errors: _F64) -> None:
    """``errors`` [N] become Σ_k (weight − step · values)², summed in the order of k."""

def feed_back(
    weight: _F64,
    errors: _F64,
    shares: _F64,
    step: _F64,
    values: NDArray[np.int8],
    begin: int,
    end: int,
    pairs: bool = False,
) -> None:
    """Rounds the inputs ``begin`` … ``end`` − 1 of ``weight`` + ``errors`` [N, K] to nearest, one after the other.

    Each input's entry of ``errors``, where earlier ones left what they ask of it, becomes its own error, ``weight`` −
    ``step`` · ``values``. That, times ``shares`` [K, K] at [i, j], is added to the entries of inputs j between i and
    ``end``. ``pairs``: see ``round_to_nearest``; the first of two that would have more than 128 gets what costs least,
    what the second is left with included, an input's error costing its square times ``shares`` [i, i].
    """

def match_codes(
    weight: _F64, step: _F64, index: NDArray[np.uint8], codebook: _F64, products: _F64, squares: _F64
) -> None:
    """``products`` and ``squares`` [N, groups] become Σ w·c and Σ c² of each group, c being nearest to w / ``step``.

    ``step`` is [N, groups], ``codebook`` [256] whole numbers within ±127, and ``index`` [512] the nearest entry of the
    numbers from i/2 − 128 on, up to the next half.
    """

def round_to_codes(weight: _F64, step: _F64, index: NDArray[np.uint8], codes: NDArray[np.uint8]) -> None:
    """``codes`` [N, K] become the indices of what is nearest to ``weight`` / ``step`` [N, groups]."""

def feed_back_codes(
    weight: _F64,
    errors: _F64,
    shares: _F64,
    step: _F64,
    index: NDArray[np.uint8],
    codebook: _F64,
    codes: NDArray[np.uint8],
    begin: int,
    end: int,
) -> None:
    """``feed_back`` with a codebook, a step for each group of inputs, and indices for values."""

def improve_codes(
    gradient: _F64, moments: _F64, scale: _F64, index: NDArray[np.uint8], codebook: _F64, codes: NDArray[np.uint8]
) -> int:
    """Gives each of the ``codes`` [N, K], one after the other, the entry at which the errors E cost least,
    tr(E · ``moments`` · Eᵀ), and returns how many have changed.

    ``gradient`` [N, K] is E · ``moments`` [K, K] (symmetric) and stays so; ``scale`` is [N, groups], and the codes of
    groups with scale 0 stay.
    """

def observe(x: NDArray[np.float32], highest: NDArray[np.float32], total: _F64, squares: _F64) -> None:
    """Takes the rows of ``x`` [rows, K] into the max |x|, Σ|x| and Σx² [K] of each column so far."""

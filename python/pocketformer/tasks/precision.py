"""Embeddings in fewer bits, named and computed as sentence-transformers' ``quantize_embeddings`` does."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..engine import Outputs

Precision: TypeAlias = Literal["float32", "float16", "int8", "uint8", "binary", "ubinary"]


def check_precision(precision: str) -> None:
    """Raises ValueError for a name that is not a :data:`Precision`."""
    if precision not in get_args(Precision):
        raise ValueError(f"precision is {precision!r}; it must be one of {', '.join(get_args(Precision))}")


def quantized(rows: Outputs, precision: Precision, ranges: ArrayLike | None = None) -> NDArray[Any]:
    """``rows`` float32 [n, width] as ``precision``: [n, width], or [n, width / 8 rounded up] for signs.

    ``ranges`` [2, width] are the lowest and highest value of each dimension, for int8 and uint8; None takes those of
    ``rows``, of which there must then be two. Raises ValueError for ranges of another shape.
    """
    if precision == "float32":
        return rows
    if precision == "float16":
        return rows.astype(np.float16)
    if precision in ("binary", "ubinary"):
        signs = np.packbits(rows > 0, axis=-1)
        return signs if precision == "ubinary" else (signs - 128).astype(np.int8)
    low, high = _ranges(rows, precision, ranges)
    steps = (high - low) / 255
    values = np.clip(np.floor((rows - low) / np.where(steps == 0, 1, steps)), 0, 255)
    result: NDArray[Any] = values.astype(np.uint8) if precision == "uint8" else (values - 128).astype(np.int8)
    return result


def _ranges(rows: Outputs, precision: str, ranges: ArrayLike | None) -> Outputs:
    if ranges is None:
        if len(rows) == 1:
            raise ValueError(
                f"precision is {precision!r} and there is one text, which has no range; pass ranges: the lowest and "
                "highest value of each dimension in a sample, float32 [2, width]"
            )
        return np.stack([rows.min(axis=0), rows.max(axis=0)]) if len(rows) else np.zeros((2, rows.shape[1]), np.float32)
    given: Outputs = np.asarray(ranges, np.float32)
    if given.shape != (2, rows.shape[1]):
        raise ValueError(f"ranges has shape {list(given.shape)}; it must be [2, {rows.shape[1]}]")
    return given

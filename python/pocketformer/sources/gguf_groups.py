"""The integers of GGUF's quantized types, apart from the factors of their groups (gguf_types.py has the layouts)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError
from ..grouped import Grouped, Rows
from .gguf_reader import TensorInfo
from .gguf_types import Blocks, fields, fifth_bits, halves, sixes

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class GroupType:
    """Values of ``low`` … ``high``, of which ``group`` share a scale; ``split`` takes blocks [blocks, bytes] apart.

    The rows that it gives are blocks, with a column for each group, or each block where scales have two levels.
    """

    low: int
    high: int
    group: int
    minimum: bool
    two_level: bool
    split: Callable[[Blocks], Rows]


def _signed(values: Blocks, offset: int) -> NDArray[np.int8]:
    return (values - np.uint8(offset)).view(np.int8)


def _q8_0(blocks: Blocks) -> Rows:
    return Rows(np.ascontiguousarray(blocks[:, 2:]).view(np.int8), halves(blocks, 0))


def _q4_0(blocks: Blocks) -> Rows:
    return Rows(_signed(fields(blocks[:, 2:], 16, 4), 8), halves(blocks, 0))


def _q4_1(blocks: Blocks) -> Rows:
    return Rows(_signed(fields(blocks[:, 4:], 16, 4), 0), halves(blocks, 0), minimum=halves(blocks, 2))


def _q5_0(blocks: Blocks) -> Rows:
    return Rows(_signed(fields(blocks[:, 6:], 16, 4) | fifth_bits(blocks, 2), 16), halves(blocks, 0))


def _q5_1(blocks: Blocks) -> Rows:
    values = fields(blocks[:, 8:], 16, 4) | fifth_bits(blocks, 4)
    return Rows(_signed(values, 0), halves(blocks, 0), minimum=halves(blocks, 2))


def _k_quant(blocks: Blocks, values: Blocks) -> Rows:
    """Q4_K and Q5_K: d · scale · value − dmin · minimum."""
    scales, minima = sixes(blocks[:, 4:16])
    return Rows(_signed(values, 0), halves(blocks, 0), scales.view(np.int8), -halves(blocks, 2), minima.view(np.int8))


def _q4_k(blocks: Blocks) -> Rows:
    return _k_quant(blocks, fields(blocks[:, 16:], 32, 4))


def _q5_k(blocks: Blocks) -> Rows:
    return _k_quant(blocks, fields(blocks[:, 48:], 32, 4) | fields(blocks[:, 16:48], 32, 1) << np.uint8(4))


def _q6_k(blocks: Blocks) -> Rows:
    values = fields(blocks[:, :128], 64, 4) | fields(blocks[:, 128:192], 32, 2) << np.uint8(4)
    return Rows(_signed(values, 32), halves(blocks, 208), np.ascontiguousarray(blocks[:, 192:208]).view(np.int8))


GROUP_TYPES: dict[str, GroupType] = {
    "Q8_0": GroupType(-127, 127, 32, False, False, _q8_0),
    "Q4_0": GroupType(-8, 7, 32, False, False, _q4_0),
    "Q4_1": GroupType(0, 15, 32, True, False, _q4_1),
    "Q5_0": GroupType(-16, 15, 32, False, False, _q5_0),
    "Q5_1": GroupType(0, 31, 32, True, False, _q5_1),
    "Q4_K": GroupType(0, 15, 32, True, True, _q4_k),
    "Q5_K": GroupType(0, 31, 32, True, True, _q5_k),
    "Q6_K": GroupType(-32, 31, 16, False, True, _q6_k),
}
"""The types whose integers a pocket file holds as they are."""


def grouped(info: TensorInfo, rows: Callable[[int, int], Bytes], where: str) -> Grouped | None:
    """The matrix ``info``, of whose bytes ``rows`` gives those of some rows; None where its type holds no integers.

    Reading rows raises CheckpointError for factors that are not finite, and for −128, which int8 here is without.
    """
    kind = GROUP_TYPES.get(info.type.name)
    if kind is None or len(info.shape) != 2:
        return None
    n, k = info.shape

    def read(begin: int, end: int) -> Rows:
        raw = np.ascontiguousarray(rows(begin, end))
        blocks = kind.split(raw.reshape(-1, info.type.bytes))
        if kind.low == -127 and blocks.values.size and blocks.values.min() == -128:
            raise CheckpointError(f"{where} holds -128, which cannot be kept; pass weights='int8' to round it anew")
        for name, factor in blocks.factors().items():
            if not np.isfinite(factor).all():
                raise CheckpointError(f"{where} holds a {name} that is NaN or infinity; the file is damaged")
        by_row = {name: factor.reshape(len(raw), -1) for name, factor in blocks.factors().items()}
        return Rows(blocks.values.reshape(len(raw), k), **by_row)

    scales = "two_level" if kind.two_level else "f16"
    return Grouped((n, k), kind.low, kind.high, kind.group, scales, kind.minimum, read)

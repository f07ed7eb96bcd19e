"""Where each tensor of a packed graph lies, known from shapes alone, and the parts that are packed one by one.

A graph packed as a whole by ``packing.pack_graph`` holds the same tensors in the same order.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import numpy as np

from ..graph import Array, Graph
from ..layout import (
    BITS,
    BLOCK,
    LANES,
    codebook_size,
    fp16_panels,
    fp32_panels,
    group_panels,
    high_panels,
    int4_panels,
    int8_panels,
    round_up,
    table_columns,
    table_rows,
)
from ..packing import pack_bits, pack_high, pack_nibbles, pack_panels, pack_scales, pad, vectors

LEAST_INFINITE = 65520.0
"""Half-way between the largest fp16 and what would follow it, to which it rounds."""
ELEMENTS_AT_ONCE = 1 << 20
"""Of a weight that is copied: 8 MB in float64. A vocabulary of 250,000 rows is never held as a whole."""


@dataclass(frozen=True)
class Slot:
    """Room for a tensor. ``plain`` is the shape that padding is added to; ``bits`` those of a number, where that is not
    the dtype's: several share a byte."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    plain: tuple[int, ...]
    bits: int = 0

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    @property
    def panels(self) -> bool:
        return len(self.shape) > 2

    @property
    def by_rows(self) -> bool:
        """Whether its rows [n, K] can be packed one by one: it is a weight, no vector and no attention bias."""
        return len(self.plain) == 2 and (self.panels or bool(self.bits) or self.shape[1] == self.plain[1])


class Sink(Protocol):
    """What takes the parts of tensors: memory or a file. What is never written stays zero."""

    def write(self, name: str, begin: int, part: Array) -> None:
        """``part`` are the entries from ``begin`` on of the first axis of the tensor ``name``."""


def layout(target: Graph, minima: Collection[str] = ()) -> dict[str, Slot]:
    """The tensors of ``target`` in file order, from its facts alone: it needs no parameters.

    Its ``weights`` are those that ``packing.stored_weights`` gives; ``minima`` names those that have minima.
    """
    slots: dict[str, Slot] = {}
    for name, facts in target.weights.items():
        n, k, bits, rows = facts["n"], facts["k"], BITS[facts["format"]], facts.get("layout") == "rows"
        dtype = np.dtype({32: np.float32, 16: np.float16, 8: np.int8}.get(bits, np.uint8))
        shape: tuple[int, ...]
        if rows:
            columns = table_columns(k, bits) if bits < 8 else k
            shape = (table_rows(n, columns, dtype.itemsize), columns)
        else:
            shape = {32: fp32_panels, 16: fp16_panels, 8: int8_panels}.get(bits, int4_panels)(n, k)
        slots[f"{name}.weight"] = Slot(dtype, shape, (n, k), bits if bits < 8 else 0)
        if bits >= 16:
            continue
        if bits in (5, 6) and not rows:
            slots[f"{name}.high"] = Slot(np.dtype(np.uint8), high_panels(n, k, bits), (n, k), bits - 4)
        group, channels = facts.get("group", 0), round_up(n, LANES)
        if group:
            slots |= _group_slots(name, facts, name in minima)
        else:
            slots[f"{name}.scale"] = Slot(np.dtype(np.float32), (channels,), (n,))
        if bits == 8 and not rows and not group:
            slots[f"{name}.colsum"] = Slot(np.dtype(np.int32), (channels,), (n,))
        if bits < 8:
            slots[f"{name}.codebook"] = Slot(np.dtype(np.int8), (codebook_size(bits),), (1 << bits,))
    for name, plain, shape in vectors(target):
        slots.setdefault(name, Slot(np.dtype(np.float32), shape, plain))
    return slots


def _group_slots(name: str, facts: dict[str, Any], minima: bool) -> dict[str, Slot]:
    """Of scales and minima of groups."""
    n, k, group, stored = facts["n"], facts["k"], facts["group"], facts.get("scales", "f32")
    two = stored == "two_level"

    def slot(dtype: Any, groups: int) -> Slot:
        return Slot(np.dtype(dtype), group_panels(n, groups, np.dtype(dtype).itemsize), (n, groups))

    slots = {}
    for part in ("scale", "minimum")[: 1 + minima]:
        slots[f"{name}.{part}"] = slot(np.float32 if stored == "f32" else np.float16, k // (BLOCK if two else group))
        if two:
            slots[f"{name}.sub{part}"] = slot(np.int8, k // group)
    return slots


def write_rows(sink: Sink, name: str, slot: Slot, begin: int, rows: Array) -> None:
    """Packs ``rows`` [rows, K] of a weight, the first of which is ``begin``, a multiple of 16."""
    if slot.panels:
        sink.write(name, begin // LANES, pack_nibbles(rows & np.uint8(15)) if slot.bits else pack_panels(rows))
    else:
        sink.write(name, begin, pack_bits(rows, slot.bits) if slot.bits else rows)


def write_part(sink: Sink, name: str, part: str, slots: Mapping[str, Slot], begin: int, rows: Array) -> None:
    """Packs ``rows`` of the ``part`` of the weight ``name`` in groups, the first of which is ``begin``."""
    slot = slots[f"{name}.{part}"]
    if part != "weight":
        packed = pack_scales(rows)  # of a last part its panels may be more than those of its rows
        sink.write(f"{name}.{part}", begin // LANES, packed[: slot.shape[0] - begin // LANES])
        return
    write_rows(sink, f"{name}.weight", slot, begin, rows)
    high = slots.get(f"{name}.high")
    if high is not None:
        sink.write(f"{name}.high", begin // LANES, pack_high(rows >> np.uint8(4), 4 + high.bits))


def write_plain(sink: Sink, name: str, slot: Slot, tensor: Array) -> tuple[float, float]:
    """Packs a parameter that is stored as floats.

    Returns the sums of squares of what fp16 changed and of the parameter; 0 and 1 where it is float32. Raises
    ValueError for a number that fp16 does not reach.
    """
    if not slot.by_rows:
        sink.write(name, 0, pad(np.asarray(tensor, np.float32), *slot.shape))
        return 0.0, 1.0
    changed, whole = 0.0, 0.0
    for begin, end in row_parts(slot.plain):
        rows = np.asarray(tensor[begin:end], np.float32)
        stored = rows if slot.dtype == np.float32 else as_halves(name.removesuffix(".weight"), rows)
        write_rows(sink, name, slot, begin, stored)
        if stored is not rows:
            changed += float(np.square(rows - stored.astype(np.float64)).sum())
            whole += float(np.square(rows, dtype=np.float64).sum())
    return (changed, whole) if slot.dtype == np.float16 else (0.0, 1.0)


def as_halves(name: str, rows: Array) -> Array:
    """``rows`` float32 of the weight ``name`` as float16, to the nearest, of two equally near ones the even.

    Raises ValueError where that does not reach.
    """
    highest = float(np.abs(rows).max(initial=0.0))
    if highest >= LEAST_INFINITE:
        raise ValueError(
            f"the weight {name!r} holds {highest:g}, more than the 65504 of fp16; give it 32 bits: "
            f"precision={{{name!r}: Precision(32)}}, or --precision '{name}=32'"
        )
    return rows.astype(np.float16)


def row_parts(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """First row and end of the parts in which a matrix of ``shape`` is copied, by multiples of 16 rows."""
    rows = max(ELEMENTS_AT_ONCE // shape[1] // LANES, 1) * LANES
    for begin in range(0, shape[0], rows):
        yield begin, min(begin + rows, shape[0])

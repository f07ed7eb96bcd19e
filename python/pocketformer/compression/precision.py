"""How many bits each weight gets: the choice of the options, and what is said of single weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from ..graph import Graph
from ..layout import LONGEST_JOINED, MAX_INT8_K
from .dataflow import Dataflow

GROUPS = (16, 32, 64, 128)
FP32, FP16, INT8, INT4 = 32, 16, 8, 4
ROTATED_TABLE = 5
"""Bits up to which the rows of a table gain by being rotated."""


@dataclass(frozen=True)
class Precision:
    """``bits`` of a stored number: 32 (fp32), 16 (fp16), 8 (int8), 6 or 5 (evenly spaced), or 4 (indices into a learned
    codebook of 16); of a table that is only looked up also 3, 5, 6 or 7, all of a learned codebook.

    ``group``: how many inputs of a linear of 4 to 6 bits share a scale, 16, 32, 64 or 128; 0, for 4 bits alone: all of
    an output channel.

    ``bounded_pairs``: of int8 linears, that the weights of inputs 2j and 2j + 1 are 128 together at most, which
    AVX2 without VNNI multiplies faster and which doubles the squared error.

    Raises ValueError for bounded pairs of other bits.
    """

    bits: int = INT8
    group: int = 0
    bounded_pairs: bool = False

    def __post_init__(self) -> None:
        if self.bounded_pairs and self.bits != INT8:
            raise ValueError(f"bounded_pairs is of 8 bits, and bits is {self.bits}; leave one of them out")

    @property
    def format(self) -> str:
        """As docs/format.md names it."""
        return f"{'f' if self.bits >= FP16 else 'i'}{self.bits}"


def choose_precisions(
    graph: Graph,
    linear_bits: int,
    table_bits: int,
    group: int,
    fp32_rows: int,
    overrides: Mapping[str, Precision] | None = None,
    bounded_pairs: bool = False,
) -> dict[str, Precision]:
    """The precision of every weight that an operator reads, tables first.

    Tables and final linears of at most ``fp32_rows`` rows stay fp32; ``table_bits`` is of the first table of a lookup
    alone, as the others are small and part of every token; where linears are fp16, these are too. ``overrides`` names
    weights, or patterns of their names (``layers.5.*``), of which the last that matches counts. ``bounded_pairs``: of
    all linears that are int8 and no tables.

    Raises ValueError when an override matches nothing, or asks for what the weight cannot be.
    """
    flow = Dataflow(graph)
    chosen: dict[str, Precision] = {}
    floats = linear_bits == FP16
    for name in {**flow.tables, **flow.linears}:
        linears, place = flow.linears.get(name, []), flow.tables.get(name)
        rows, k = graph.weights[name]["n"], graph.weights[name]["k"]
        final = any(op["out"] == graph.output for op in linears)
        if (linears and k > MAX_INT8_K and not floats) or (rows <= fp32_rows and (final or place is not None)):
            chosen[name] = Precision(FP32)
        elif place is not None:
            chosen[name] = Precision(table_bits if place == 0 and not linears else FP16 if floats else INT8)
        else:
            chosen[name] = Precision(linear_bits, _divisor(group, k) if linear_bits == INT4 else 0)
    for pattern, precision in (overrides or {}).items():
        names = [pattern] if pattern in chosen else [name for name in chosen if fnmatchcase(name, pattern)]
        if not names:
            raise ValueError(f"precision names {pattern!r}, which is no weight; weights are {', '.join(chosen)}")
        for name in names:
            _check(name, precision, graph.weights[name]["k"], name in flow.linears, name in flow.tables)
            chosen[name] = precision
    for name, precision in chosen.items() if bounded_pairs else ():
        if precision.bits == INT8 and name not in flow.tables:
            chosen[name] = replace(precision, bounded_pairs=True)
    return chosen


def _divisor(group: int, k: int) -> int:
    """``group``, or the largest below it that divides ``k``; 0, a scale a channel, where none does."""
    return next((size for size in reversed(GROUPS) if size <= group and k % size == 0), 0)


def _check(name: str, precision: Precision, k: int, linear: bool, table: bool) -> None:
    grouped_bits = {INT4, 5, 6} if k <= LONGEST_JOINED else {INT4}
    allowed = {FP32, FP16, INT8} | (grouped_bits if not table else set()) | ({3, 4, 5, 6, 7} if not linear else set())
    if linear and k > MAX_INT8_K:
        allowed = {FP32, FP16}
    if precision.bits not in allowed:
        kind = "a table that a product reads too" if table and linear else "a table" if table else "a linear"
        known = ", ".join(map(str, sorted(allowed)))
        raise ValueError(f"precision of {name!r} is {precision.bits} bits; {kind} has one of {known}")
    if precision.bounded_pairs and table:
        raise ValueError(f"precision of {name!r} has bounded pairs, which a table has no use for; leave them out")
    grouped = linear and precision.bits < INT8
    fits = ", ".join(str(size) for size in GROUPS if k % size == 0) if grouped else ""
    if precision.group and not (grouped and precision.group in GROUPS and k % precision.group == 0):
        remedy = f"one of {fits} divides its {k} inputs" if fits else "leave it 0"
        raise ValueError(f"precision of {name!r} has groups of {precision.group}; {remedy}")
    if grouped and not precision.group and precision.bits > INT4:
        remedy = f"give it groups: one of {fits} divides its {k} inputs" if fits else "use 8 or 4 bits"
        raise ValueError(f"precision of {name!r} is {precision.bits} bits without groups; {remedy}")


def choose_block(bits: int, k: int, largest: int, linear: bool, place: int | None, averages: bool) -> int:
    """The Hadamard block of a weight. A lookup undoes the rotation of its first table only; ``averages`` are rows that
    attention produces, free of outliers."""
    if bits >= FP16 or place:
        return 0
    rotated = (bits < INT8 or not averages) if linear else bits <= ROTATED_TABLE
    block = min(k & -k, largest) if rotated else 0
    return block if block > 1 else 0

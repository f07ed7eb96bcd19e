"""What may be said of how weights are rounded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..graph import Graph
from ..layout import MAX_HADAMARD
from .precision import INT8, Precision, choose_precisions
from .scaling import METHODS


@dataclass(frozen=True)
class QuantizeOptions:
    """``table_bits``: of the table of words, 3 to 8, 16 or 32; None: 4 where linears have 4, 16 where they are fp16,
    else 8. ``group``: inputs of a 4-bit linear that share a scale, 16, 32, 64 or 128, or 0 for a scale a channel; where
    it does not divide the inputs, the largest of these below it that does. ``precision``: of single weights, by name or
    by a pattern such as ``layers.5.*``; the last that matches counts.

    ``block``: largest rotation block. ``rotate_attention_output``: also rotate what attention produces for int8
    linears; its rows are averages, free of outliers. ``clip``: candidates for the share of a channel's range that int8
    keeps; the one with the least squared error wins. ``fp32_rows``: a table or a final linear with at most so many
    rows stays fp32: it costs nothing, while the error of MiniLM's two token types, part of every token, is that of all
    other tables together ten times over. ``random_tokens``: how many the model is run on to round with feedback (see
    gptq) where no calibration is given and our own texts are strange to it; 0 rounds each weight to the nearest.
    ``refit``: the damping with which linears are fitted to what the rounding before them has made of their inputs, or
    0: where some become less than int8, or with ``refit_int8``, which takes about twice as long and spares a
    seventh of what int8 loses. ``learned``: whether codebooks are learned or evenly spaced. ``scaling``: what is done
    to the channels of inputs before weights are rounded, ``smooth`` (SmoothQuant), ``awq`` or ``none``; ``auto``
    smooths those that no rotation spreads, as their number is odd or nearly so, where the model can be run (see
    scaling). ``skip_zeros``: the share of groups of four zeros in what ReLU leaves an int8 linear, seen of a
    calibration that the model is run on, from which the linear passes over them (see zeros): its input is then not
    rotated; 1: never. ``bounded_pairs``: all int8 linears but those that are tables too have bounded pairs (see
    Precision).

    Raises ValueError for a block that is no power of two, for bits, groups or a scaling that there are not, and for
    shares outside 0…1.
    """

    table_bits: int | None = None
    group: int = 64
    precision: Mapping[str, Precision] = field(default_factory=dict)
    block: int = MAX_HADAMARD
    rotate_attention_output: bool = False
    clip: tuple[float, ...] = (1.0,)
    fp32_rows: int = 64
    random_tokens: int = 2048
    refit: float = 1.0
    refit_int8: bool = False
    learned: bool = True
    scaling: str = "auto"
    skip_zeros: float = 0.4
    bounded_pairs: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.skip_zeros <= 1:
            raise ValueError(f"skip_zeros is {self.skip_zeros}; it must lie in 0…1")
        if self.scaling not in METHODS:
            raise ValueError(f"scaling is {self.scaling!r}; it must be one of {', '.join(METHODS)}")
        if self.block < 0 or self.block & (self.block - 1):
            raise ValueError(f"block is {self.block}; it must be 0 or a power of two")
        if self.table_bits not in (None, 3, 4, 5, 6, 7, 8, 16, 32):
            raise ValueError(f"table_bits is {self.table_bits}; it must lie in 3…8, or be 16 or 32")
        if self.group not in (0, 16, 32, 64, 128):
            raise ValueError(f"group is {self.group}; it must be 16, 32, 64 or 128, or 0 for a scale a channel")

    def precisions(self, graph: Graph, linear_bits: int = INT8) -> dict[str, Precision]:
        """What each weight of ``graph`` becomes. Raises ValueError when ``precision`` does not fit the graph."""
        table_bits = self.table_bits or linear_bits
        given = self.fp32_rows, self.precision, self.bounded_pairs
        return choose_precisions(graph, linear_bits, table_bits, self.group, *given)

    def thorough(self, graph: Graph, linear_bits: int = INT8) -> bool:
        """Whether all that there is of a calibration is run, and linears are fitted to what it shows: where some linear
        of ``graph`` becomes less than int8, or that is asked for."""
        if self.refit_int8:
            return True
        linears = {op["weight"] for op in graph.ops if op["op"] == "linear"}
        chosen = self.precisions(graph, linear_bits)
        return any(chosen[name].bits < INT8 for name in linears)

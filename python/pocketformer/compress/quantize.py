"""Int8 weights without calibration data: rotate, then round to one scale per output channel.

The rotation is QuaRot's (arXiv 2404.00456) in blocks: it spreads outlier channels of the *activations* over a block, so
that one scale per row suffices for them. The operator rotates its input, the weights absorb the inverse.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from ..graph import Array, Graph, Op
from ..layout import MAX_HADAMARD, MAX_INT8_K
from .hadamard import hadamard

Progress = Callable[[str, float], None]
"""Called with what is being done and the share, 0…1, that is done."""

ROWS_AT_ONCE = 4096
"""Bounds the float64 copies: a vocabulary of 250,000 rows is never held in double precision as a whole."""


@dataclass(frozen=True)
class QuantizeOptions:
    """``block``: largest rotation block. ``rotate_attention_output``: also rotate what attention produces; its rows are
    averages, free of outliers. ``clip``: candidates for the share of a channel's range that is kept; the one
    with the least squared error wins. ``fp32_outputs``: a final linear with at most so many channels stays fp32.
    """

    block: int = MAX_HADAMARD
    rotate_attention_output: bool = False
    clip: tuple[float, ...] = (1.0,)
    fp32_outputs: int = 64


def quantize_rows(weight: Array, clip: tuple[float, ...] = (1.0,)) -> tuple[Array, Array]:
    """``weight`` [N, K] → int8 [N, K] in −127…127 and scales float32 [N], nearest even; zero rows get scale 0."""
    amax = np.abs(weight).max(axis=1).astype(np.float64)
    best = np.zeros(weight.shape, np.int8)
    best_scale = np.zeros(len(weight), np.float32)
    best_error = np.full(len(weight), np.inf)
    for share in clip:
        scale = (amax * share / 127).astype(np.float32)
        step = np.where(scale > 0, scale, 1).astype(np.float64)[:, None]
        rounded = np.clip(np.rint(weight / step), -127, 127)
        error = np.square(rounded * step - weight).sum(axis=1)
        better = error < best_error
        best[better], best_scale[better], best_error[better] = rounded[better], scale[better], error[better]
    return best, best_scale


def quantize_graph(graph: Graph, options: QuantizeOptions | None = None, progress: Progress | None = None) -> Graph:
    """A plain fp32 graph → a plain int8 graph: linears, embedding tables and attention. The input is left as it is.

    Raises ValueError when the options name a block that is no power of two.
    """
    options = options or QuantizeOptions()
    if options.block < 0 or options.block & (options.block - 1):
        raise ValueError(f"block is {options.block}; it must be 0 or a power of two")
    rotations = _rotations(graph, options)
    params = dict(graph.params)
    for done, (name, rotate) in enumerate(rotations.items()):
        if progress:
            progress(name, done / len(rotations))
        params[f"{name}.weight"], params[f"{name}.scale"] = _quantize(params[f"{name}.weight"], rotate, options.clip)
    return replace(graph, ops=[_quantized(op, rotations) for op in graph.ops], params=params)


def _rotations(graph: Graph, options: QuantizeOptions) -> dict[str, int]:
    """The weights to quantize and the rotation block of each; a weight that several operators share has one block."""
    written = {op["out"]: op for op in graph.ops}
    tables = [[table["weight"] for table in op["tables"]] for op in graph.ops if op["op"] == "embed"]
    rotations = {name: 0 for names in tables for name in names}
    unrotated = {name for names in tables for name in names[1:]}  # a lookup undoes the rotation of its first table only
    excluded: set[str] = set()
    for op in graph.ops:
        if op["op"] != "linear":
            continue
        name, k = op["weight"], op["k"]
        rotations[name] = min(k & -k, options.block)
        if k > MAX_INT8_K or (op["out"] == graph.output and op["n"] <= options.fp32_outputs):
            excluded.add(name)
        if written[op["in"]]["op"] == "attention" and not options.rotate_attention_output:
            unrotated.add(name)
    return {
        name: 0 if name in unrotated or block == 1 else block
        for name, block in rotations.items()
        if name not in excluded
    }


def _quantize(weight: Array, rotate: int, clip: tuple[float, ...]) -> tuple[Array, Array]:
    parts = [quantize_rows(part, clip) for part in _rotated(weight, rotate)]
    return np.concatenate([values for values, _ in parts]), np.concatenate([scale for _, scale in parts])


def _rotated(weight: Array, rotate: int) -> Iterator[Array]:
    for begin in range(0, len(weight), ROWS_AT_ONCE):
        part = weight[begin : begin + ROWS_AT_ONCE].astype(np.float64)
        yield hadamard(part, rotate) / max(rotate, 1)


def _quantized(op: Op, rotations: dict[str, int]) -> Op:
    if op["op"] == "linear":
        return {**op, "rotate": rotations.get(op["weight"], 0)}
    if op["op"] == "embed":
        return {**op, "tables": [{**table, "rotate": rotations.get(table["weight"], 0)} for table in op["tables"]]}
    if op["op"] == "attention":
        return {**op, "dtype": "int8"}
    return op


def dequantize(weight: Array, scale: Array, rotate: int) -> Array:
    """The real weights float64 [N, K] that int8 ``weight`` [N, K] and ``scale`` [N] stand for, rotated back."""
    return hadamard(weight * scale.astype(np.float64)[:, None], rotate)

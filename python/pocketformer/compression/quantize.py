"""Int8 weights without calibration data: rotate, then round to one scale per output channel, with feedback.

The rotation is QuaRot's (arXiv 2404.00456) in blocks: it spreads outlier channels of the *activations* over a block, so
that one scale per row suffices for them. The operator rotates its input, the weights absorb the inverse.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from ..graph import Array, Graph, Op
from ..hadamard import hadamard
from ..layout import MAX_HADAMARD, MAX_INT8_K
from .gptq import round_with_feedback, visit_moments

Progress = Callable[[str, float], None]
"""Called with what is being done and the share, 0…1, that is done."""

ROWS_AT_ONCE = 4096
"""Bounds the float64 copies: a vocabulary of 250,000 rows is never held in double precision as a whole."""


@dataclass(frozen=True)
class QuantizeOptions:
    """``block``: largest rotation block. ``rotate_attention_output``: also rotate what attention produces; its rows are
    averages, free of outliers. ``clip``: candidates for the share of a channel's range that is kept; the one
    with the least squared error wins. ``fp32_rows``: a table or a final linear with at most so many rows stays
    fp32: it costs nothing, while the error of MiniLM's two token types, part of every token, is that of all
    other tables together ten times over. ``random_tokens``: how many the model is run on to round with feedback
    (see gptq); 0 rounds each weight to the nearest.
    """

    block: int = MAX_HADAMARD
    rotate_attention_output: bool = False
    clip: tuple[float, ...] = (1.0,)
    fp32_rows: int = 64
    random_tokens: int = 2048


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
    remaining = set(rotations)

    def quantize(name: str, moments: Array | None = None) -> None:
        if progress:
            progress(name, 1 - len(remaining) / len(rotations))
        remaining.remove(name)
        weight = graph.params[f"{name}.weight"]
        params[f"{name}.weight"], params[f"{name}.scale"] = _quantize(weight, rotations[name], options.clip, moments)

    tables = {table["weight"] for op in graph.ops if op["op"] == "embed" for table in op["tables"]}
    for name in rotations:
        if name in tables or not options.random_tokens:
            quantize(name)
    if remaining:
        visit_moments(graph, {name: rotations[name] for name in remaining}, options.random_tokens, quantize)
    weights = {
        name: {**facts, "format": "i8", **({"rotate": rotations[name]} if rotations[name] else {})}
        if name in rotations
        else facts
        for name, facts in graph.weights.items()
    }
    states = [{**state, "dtype": "int8"} for state in graph.states]
    return replace(graph, weights=weights, states=states, ops=_with_int8_queries(graph), params=params)


def _rotations(graph: Graph, options: QuantizeOptions) -> dict[str, int]:
    """The weights to quantize and the rotation block of each; a weight that several operators share has one block."""
    written = {op["out"]: op for op in graph.ops if "out" in op}
    tables = [[table["weight"] for table in op["tables"]] for op in graph.ops if op["op"] == "embed"]
    rotations = {name: 0 for names in tables for name in names}
    unrotated = {name for names in tables for name in names[1:]}  # a lookup undoes the rotation of its first table only
    excluded = {name for name in rotations if len(graph.params[f"{name}.weight"]) <= options.fp32_rows}
    for op in graph.ops:
        if op["op"] != "linear":
            continue
        name = op["weight"]
        n, k = graph.weights[name]["n"], graph.weights[name]["k"]
        rotations[name] = min(k & -k, options.block)
        if k > MAX_INT8_K or (op["out"] == graph.output and n <= options.fp32_rows):
            excluded.add(name)
        if written[op["in"]]["op"] == "attention" and not options.rotate_attention_output:
            unrotated.add(name)
    return {
        name: 0 if name in unrotated or block == 1 else block
        for name, block in rotations.items()
        if name not in excluded
    }


def _quantize(weight: Array, rotate: int, clip: tuple[float, ...], moments: Array | None) -> tuple[Array, Array]:
    """``moments`` of the rotated input, or None (or zeros) to round to the nearest."""
    values, scales = [], []
    for part in _rotated(weight, rotate):
        rounded, scale = quantize_rows(part, clip)
        if moments is not None and moments.any():
            rounded = round_with_feedback(part, scale, moments)
        values.append(rounded)
        scales.append(scale)
    return np.concatenate(values), np.concatenate(scales)


def _rotated(weight: Array, rotate: int) -> Iterator[Array]:
    for begin in range(0, len(weight), ROWS_AT_ONCE):
        part = weight[begin : begin + ROWS_AT_ONCE].astype(np.float64)
        yield hadamard(part, rotate) / max(rotate, 1)


def _with_int8_queries(graph: Graph) -> list[Op]:
    """The operators with the queries of every attention rounded by head."""
    head_dims = {state["name"]: state["head_dim"] for state in graph.states}
    ops: list[Op] = []
    for op in graph.ops:
        if op["op"] == "attention":
            rounded = f"{op['q']}.int8.{op['state']}"
            ops.append({"op": "quantize_heads", "in": op["q"], "out": rounded, "head_dim": head_dims[op["state"]]})
            op = {**op, "q": rounded}
        ops.append(op)
    return ops


def dequantize(weight: Array, scale: Array, rotate: int) -> Array:
    """The real weights float64 [N, K] that int8 ``weight`` [N, K] and ``scale`` [N] stand for, rotated back."""
    return hadamard(weight * scale.astype(np.float64)[:, None], rotate)

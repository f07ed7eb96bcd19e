"""Int8 weights without calibration data: rotate, then round to one scale per output channel, with feedback.

The rotation is QuaRot's (arXiv 2404.00456) in blocks: it spreads outlier channels of the *activations* over a block, so
that one scale per row suffices for them. The operator rotates its input, the weights absorb the inverse.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from ..graph import Array, Graph, Op
from ..layout import MAX_HADAMARD, MAX_INT8_K
from ._rounding import rotate, round_to_nearest, squared_errors
from .dataflow import Dataflow
from .gptq import error_shares, round_with_feedback, steps
from .packed import row_parts
from .profile import can_profile, profile

Progress = Callable[[str, float], None]
"""Called with what is being done and the share, 0…1, that is done."""


@dataclass(frozen=True)
class QuantizeOptions:
    """``block``: largest rotation block. ``rotate_attention_output``: also rotate what attention produces; its rows are
    averages, free of outliers. ``clip``: candidates for the share of a channel's range that is kept; the one
    with the least squared error wins. ``fp32_rows``: a table or a final linear with at most so many rows stays
    fp32: it costs nothing, while the error of MiniLM's two token types, part of every token, is that of all
    other tables together ten times over. ``random_tokens``: how many the model is run on to round with feedback
    (see gptq); 0 rounds each weight to the nearest.

    Raises ValueError for a block that is no power of two.
    """

    block: int = MAX_HADAMARD
    rotate_attention_output: bool = False
    clip: tuple[float, ...] = (1.0,)
    fp32_rows: int = 64
    random_tokens: int = 2048

    def __post_init__(self) -> None:
        if self.block < 0 or self.block & (self.block - 1):
            raise ValueError(f"block is {self.block}; it must be 0 or a power of two")


@dataclass(frozen=True)
class Rounded:
    """Consecutive rows of a quantized weight: ``values`` int8 [rows, K] in steps of ``scale`` float32 [rows].

    ``begin`` is the first of them, a multiple of 16. ``error`` and ``norm`` are the sums of squares of what rounding
    changed and of the weights, both rotated. ``peak`` is the Observer's of what the weight is multiplied by, or 0.
    """

    name: str
    begin: int
    values: Array
    scale: Array
    error: float
    norm: float
    peak: float


def quantize_rows(weight: Array, clip: tuple[float, ...] = (1.0,)) -> tuple[Array, Array]:
    """``weight`` [N, K] → int8 [N, K] in −127…127 and scales float32 [N], nearest even; zero rows get scale 0."""
    weight = np.ascontiguousarray(weight, np.float64)
    amax = np.maximum(weight.max(axis=1), -weight.min(axis=1)) + 0.0  # no −0 for a row of zeros
    best, best_scale = np.empty(weight.shape, np.int8), np.empty(len(weight), np.float32)
    best_error = np.full(len(weight), np.inf)
    values, error = np.empty_like(best), np.empty_like(best_error)
    for share in clip:
        scale = (amax * share / 127).astype(np.float32)
        round_to_nearest(weight, steps(scale), values)
        squared_errors(weight, steps(scale), values, error)
        better = error < best_error
        best[better], best_scale[better], best_error[better] = values[better], scale[better], error[better]
    return best, best_scale


def quantize_graph(graph: Graph, options: QuantizeOptions | None = None, progress: Progress | None = None) -> Graph:
    """A plain fp32 graph → a plain int8 graph: linears, embedding tables and attention. The input is left as it is."""
    options = options or QuantizeOptions()
    rotations = choose_rotations(graph, options)
    params = dict(graph.params)
    for name in rotations:
        shape = graph.params[f"{name}.weight"].shape
        params[f"{name}.weight"], params[f"{name}.scale"] = np.empty(shape, np.int8), np.empty(shape[0], np.float32)
    for part in round_weights(graph, rotations, options, progress):
        rows = slice(part.begin, part.begin + len(part.values))
        params[f"{part.name}.weight"][rows], params[f"{part.name}.scale"][rows] = part.values, part.scale
    return replace(as_quantized(graph, rotations), params=params)


def choose_rotations(graph: Graph, options: QuantizeOptions) -> dict[str, int]:
    """The weights to quantize and the rotation block of each; a weight that several operators share has one block."""
    flow = Dataflow(graph)
    rotations = {}
    for name in {**flow.tables, **flow.linears}:
        linears, place = flow.linears.get(name, []), flow.tables.get(name)
        rows, k = graph.weights[name]["n"], graph.weights[name]["k"]
        final = any(op["out"] == graph.output for op in linears)
        if (linears and k > MAX_INT8_K) or (rows <= options.fp32_rows and (final or place is not None)):
            continue
        averages = any(flow.writer.get(op["in"], {}).get("op") == "attention" for op in linears)
        # A lookup undoes the rotation of its first table only; a table that nothing multiplies gains nothing by one.
        rotated = linears and not place and (options.rotate_attention_output or not averages)
        block = min(k & -k, options.block) if rotated else 0
        rotations[name] = block if block > 1 else 0
    return rotations


def round_weights(
    graph: Graph, rotations: Mapping[str, int], options: QuantizeOptions, progress: Progress | None = None
) -> Iterator[Rounded]:
    """The weights that ``rotations`` names, part by part: tables, then linears as soon as their inputs were seen."""
    flow = Dataflow(graph)
    seen = options.random_tokens > 0 and can_profile(graph)
    nearest = [name for name in rotations if name in flow.tables or not seen]
    watched = {name: block for name, block in rotations.items() if name not in nearest}
    count = 0

    def parts(name: str, shares: Array | None, peak: float) -> Iterator[Rounded]:
        nonlocal count
        if progress:
            progress(name, count / len(rotations))
        count += 1
        for begin, part in _rotated(graph.params[f"{name}.weight"], rotations[name]):
            yield _rounded(name, begin, part, options.clip, shares, peak)

    for name in nearest:
        yield from parts(name, None, 0.0)
    if watched:
        for observer in profile(graph, watched, options.random_tokens):
            shares = error_shares(observer.moments) if observer.squares.any() else None
            for name in observer.weights:
                yield from parts(name, shares, observer.peak)


def _rotated(weight: Array, block: int) -> Iterator[tuple[int, Array]]:
    """The first row and the rows, float64, of parts that are as the runtime multiplies by them."""
    for begin, end in row_parts(weight.shape):
        part = np.array(weight[begin:end], np.float64, order="C")
        if block:
            rotate(part, block)
            part /= block
        yield begin, part


def _rounded(name: str, begin: int, part: Array, clip: tuple[float, ...], shares: Array | None, peak: float) -> Rounded:
    values, scale = quantize_rows(part, clip)
    if shares is not None:
        values = round_with_feedback(part, scale, shares)
    errors = np.empty(len(part))
    squared_errors(part, steps(scale), values, errors)
    norm = float(np.vdot(part, part))
    return Rounded(name, begin, values, scale, float(errors.sum()), norm, peak)


def as_quantized(graph: Graph, rotations: Mapping[str, int]) -> Graph:
    """``graph`` without parameters, the weights that ``rotations`` names and its attention being int8."""
    weights = dict(graph.weights)
    for name, block in rotations.items():
        weights[name] = {**weights[name], "format": "i8", **({"rotate": block} if block else {})}
    states = [{**state, "dtype": "int8"} for state in graph.states]
    return replace(graph, weights=weights, states=states, ops=_with_int8_queries(graph), params={})


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

"""Rounded weights: rotate, then round with feedback, to int8 or to indices into a learned codebook.

The rotation is QuaRot's (arXiv 2404.00456) in blocks: it spreads outlier channels of the *activations* over a block, so
that one scale per row suffices for them. The operator rotates its input, the weights absorb the inverse.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..graph import Array, Graph, Op
from ..grouped import Grouped
from ..layout import MAX_HADAMARD, MOST_GROUPS, hadamard_block
from ._rounding import rotate, round_to_codes, round_to_nearest, squared_errors
from .calibration import Calibration, random_tokens, takes_tokens
from .codebook import SAMPLE, Codebook, consecutive, learn, search, uniform
from .dataflow import Dataflow
from .gptq import (
    DAMPING,
    Costs,
    damping_of_int8,
    fit_scales,
    improve,
    refit,
    round_to_codes_with_feedback,
    round_with_feedback,
    steps,
)
from .packed import as_halves, row_parts
from .precision import FP16, INT4, INT8, Precision, choose_block, choose_precisions
from .profile import Observer, Progress, profile
from .scaling import METHODS, SMALL_BLOCK, scaled
from .zeros import after_relu, zero_groups

SEEN = 1 << 24
"""Numbers of the largest table whose rounding is seen by what comes after it: 64 MB that wait in memory."""

FEW_ROWS = 16
"""Of a weight, whose size tells that of its scales."""
RANGE, LEAST_SCALE = 3.0, 2.0**-18
"""The range of a group over the mean square's root, and the least scale that float16, whose smallest step is 2^-24,
holds to within a hundredth: less than a tenth of what 4 bits lose."""


@dataclass(frozen=True)
class Profiler:
    """``observe`` gives the observers of the linears that are named, in any order: ``profile`` with its graph and
    ``calibration``, say, and what that calls ``rounded``. Those of a profile that was kept have no calibration."""

    observe: Callable[[Collection[str], dict[str, Array] | None], Iterator[Observer]]
    calibration: Calibration | None = None

    def __call__(self, names: Collection[str], rounded: dict[str, Array] | None = None) -> Iterator[Observer]:
        return self.observe(names, rounded)


@dataclass(frozen=True)
class QuantizeOptions:
    """``table_bits``: of the table of words, 3 to 8, 16 or 32; None: 4 where linears have 4, 16 where they are fp16,
    else 8. ``group``: inputs of a 4-bit linear that share a scale, 16, 32, 64 or 128, or 0 for a scale a channel; where
    it does not divide the inputs, the largest of these below it that does. ``precision``: of single weights, by name or
    by a pattern such as ``layers.5.*``; the last that matches counts.

    ``block``: largest rotation block. ``rotate_attention_output``: also rotate what attention produces for int8
    linears; its rows are averages, free of outliers. ``clip``: candidates for the share of a channel's range that int8
    keeps; the one with the least squared error wins. ``fp32_rows``: a table or a final linear with at most so many rows
    stays fp32: it costs nothing, while the error of MiniLM's two token types, part of every token, is that of all other
    tables together ten times over. ``random_tokens``: how many the model is run on to round with feedback (see gptq)
    where no calibration is given and our own texts are strange to it; 0 rounds each weight to the nearest. ``refit``:
    the damping with which 4-bit linears are fitted to what the rounding before them has made of their inputs, or 0.
    ``learned``: whether codebooks are learned or evenly spaced. ``scaling``: what is done to the channels of inputs
    before weights are rounded, ``smooth`` (SmoothQuant), ``awq`` or ``none``; ``auto`` smooths those that no rotation
    spreads, as their number is odd or nearly so, where the model can be run (see scaling). ``skip_zeros``: the share of
    groups of four zeros in what ReLU leaves an int8 linear, seen of a calibration that the model is run on, from which
    the linear passes over them (see zeros): its input is then not rotated; 1: never.

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
    learned: bool = True
    scaling: str = "auto"
    skip_zeros: float = 0.4

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
        return choose_precisions(graph, linear_bits, table_bits, self.group, self.fp32_rows, self.precision)

    def few_bits(self, graph: Graph, linear_bits: int = INT8) -> bool:
        """Whether some linear of ``graph`` becomes less than int8."""
        linears = {op["weight"] for op in graph.ops if op["op"] == "linear"}
        chosen = self.precisions(graph, linear_bits)
        return any(chosen[name].bits < INT8 for name in linears)


@dataclass(frozen=True)
class Rounded:
    """Consecutive rows of a quantized weight: ``values`` int8 [rows, K] in steps of ``scale`` float32 [rows], or uint8
    indices into ``codebook``, with a scale a row or [rows, groups].

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
    codebook: Array | None = None

    def real(self, block: int) -> Array:
        """The weights that these stand for, float64 [rows, K], rotated back by ``block``."""
        values = self.values if self.codebook is None else self.codebook[self.values]
        scale = self.scale.reshape(len(self.scale), -1, 1).astype(np.float64)
        weight: Array = (values.reshape(*scale.shape[:2], -1) * scale).reshape(values.shape)
        if block:
            rotate(weight, block)
        return weight


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


def quantize_graph(
    graph: Graph,
    options: QuantizeOptions | None = None,
    progress: Progress | None = None,
    linear_bits: int = INT8,
    profiler: Profiler | None = None,
) -> Graph:
    """A plain fp32 graph → a plain rounded graph: linears, embedding tables and attention; the input stays as it is."""
    quantization = Quantization(graph, options or QuantizeOptions(), linear_bits, profiler)
    parts: dict[str, list[Rounded]] = {}
    for part in quantization.round(progress):
        parts.setdefault(part.name, []).append(part)
    params = dict(quantization.graph.params)
    for name, precision in quantization.precisions.items():
        if precision.bits == FP16:
            params[f"{name}.weight"] = as_halves(name, np.asarray(params[f"{name}.weight"], np.float32))
    for name, rounded in parts.items():
        params[f"{name}.weight"] = np.concatenate([part.values for part in rounded])
        params[f"{name}.scale"] = np.concatenate([part.scale for part in rounded])
        if rounded[0].codebook is not None:
            params[f"{name}.codebook"] = rounded[0].codebook
    return replace(quantization.target, params=params)


class Quantization:
    """What each weight of ``graph`` becomes: ``precisions`` of all, linears having ``linear_bits`` where the options
    name no other, and of those that are rounded the ``rotations``, the blocks that they are rotated by. ``target`` is
    the graph that comes of it, without parameters; ``zeros``, of the linears that skip them, the share of their inputs'
    groups that were seen to be. Once the rounding has begun, ``graph`` is what is rounded, its
    channels scaled, and ``unscaled`` says of each linear whose channels were to be why they are not.

    ``kept`` are weights that are stored as the integers that they are. ``profiler`` runs the model for those that are
    rounded with feedback: on random tokens where it is None and the options ask for them.
    """

    def __init__(
        self,
        graph: Graph,
        options: QuantizeOptions,
        linear_bits: int = INT8,
        profiler: Profiler | None = None,
        kept: Mapping[str, Grouped] | None = None,
    ) -> None:
        kept = self.kept = kept or {}
        self.graph, self.options = graph, options
        self.flow = Dataflow(graph)
        self.precisions = options.precisions(graph, linear_bits)
        self.rotations = {
            name: self._block(name, precision)
            for name, precision in self.precisions.items()
            if precision.bits < FP16 and name not in kept
        }
        if profiler is None and options.random_tokens > 0 and takes_tokens(graph):
            profiler = random_profiler(graph, options.random_tokens)
        self.profiler = profiler
        self.zeros = self._skipping()
        self.rotations |= dict.fromkeys(self.zeros, 0)
        self.rounded: dict[str, Array] | None = {} if options.refit and options.few_bits(graph, linear_bits) else None
        attention = linear_bits < FP16
        self.target = as_quantized(graph, self.rotations, self.precisions, self.zeros, attention)
        self.unscaled: dict[str, str] = {}
        for name, grouped in kept.items():
            self.target.weights[name] = {**self.target.weights[name], **grouped.facts()}

    def _skipping(self) -> dict[str, float]:
        calibration = self.profiler.calibration if self.profiler else None
        names = after_relu(self.graph, [name for name in self.rotations if self.precisions[name].bits == INT8])
        if calibration is None or not names or self.options.skip_zeros == 1:
            return {}
        shares = zero_groups(self.graph, names, calibration)
        return {name: share for name, share in shares.items() if max(self.options.skip_zeros, 1e-9) <= share < 1}

    def _block(self, name: str, precision: Precision) -> int:
        linears, place = self.flow.linears.get(name, []), self.flow.tables.get(name)
        averages = any(self.flow.writer.get(op["in"], {}).get("op") == "attention" for op in linears)
        averages = averages and not self.options.rotate_attention_output
        k = self.graph.weights[name]["k"]
        return choose_block(precision.bits, k, self.options.block, bool(linears), place, averages)

    def round(self, progress: Progress | None = None) -> Iterator[Rounded]:
        """The rounded weights, part by part: tables, then linears as soon as their inputs were seen.

        Raises ValueError where a scaling was asked for that no input can have.
        """
        self._scale()
        nearest = [name for name in self.rotations if name in self.flow.tables or self.profiler is None]
        watched = [name for name in self.rotations if name not in nearest]
        count = 0

        def parts(name: str, costs: Costs | None, peak: float, change: Array | None = None) -> Iterator[Rounded]:
            nonlocal count
            if progress:
                progress(name, count / len(self.rotations))
            count += 1
            yield from self._rounded(name, costs, peak, change)

        for name in nearest:
            yield from parts(name, None, 0.0)
        if watched and self.profiler:
            for observer in self.profiler(watched, self.rounded):
                change = None
                if observer.cross is not None:
                    change = refit(observer.moments, observer.cross, self.options.refit)
                kinds: dict[tuple[int, float], list[str]] = {}
                for name in observer.weights:
                    few = self.precisions[name].bits < INT8
                    damping = DAMPING if few else damping_of_int8(observer.width, observer.rows)
                    kinds.setdefault((self.rotations[name], damping), []).append(name)
                for (block, damping), names in kinds.items():
                    few = any(self.precisions[name].bits < INT8 for name in names)
                    costs = Costs.of(observer.rotated(block), damping, few) if observer.squares.any() else None
                    for name in names:
                        yield from parts(name, costs, observer.peak, change)

    def _scale(self) -> None:
        method, calibration = self.options.scaling, self.profiler.calibration if self.profiler else None
        names = [name for name in self.rotations if name in self.flow.linears]
        if method == "auto":
            names = [name for name in names if self.graph.weights[name]["k"] % SMALL_BLOCK] if calibration else []
        if self.kept and method != "none":  # what shares their inputs would have to be scaled too
            if method != "auto":
                raise ValueError(f"scaling is {method!r}, but integers of a GGUF file are kept; pass weights='int8'")
            return
        if method == "none" or not names:
            return
        if calibration is None:
            raise ValueError(f"scaling is {method!r}, which the model is run for; give texts, not a kept profile")
        known = self.graph
        chosen = "smooth" if method == "auto" else method
        self.graph, self.unscaled = scaled(known, names, chosen, calibrated_profiler(known, calibration))
        if method != "auto" and len(self.unscaled) == len(names):
            reason = next(iter(self.unscaled.values()))
            raise ValueError(f"scaling is {method!r}, which folds into nothing here: {reason}; use none")
        if self.graph is not known:
            self.profiler = calibrated_profiler(self.graph, calibration)

    def _rounded(self, name: str, costs: Costs | None, peak: float, change: Array | None) -> Iterator[Rounded]:
        weight, precision, block = self.graph.params[f"{name}.weight"], self.precisions[name], self.rotations[name]
        codebook = None
        if precision.bits < INT8:
            planes = precision.group and precision.bits > INT4
            codebook = consecutive(precision.bits) if planes else uniform(precision.bits)
            if self.options.learned and not planes:
                codebook = learn(_rotated(_sample(weight), block, change), precision.bits, precision.group)
        seen = self.rounded is not None and (name in self.flow.linears or weight.shape[0] * weight.shape[1] <= SEEN)
        real = np.empty(weight.shape, np.float32) if seen else None
        for begin, end in row_parts(weight.shape):
            part = _rotated(np.array(weight[begin:end], np.float64, order="C"), block, change)
            if codebook is None:
                rounded = _as_int8(name, begin, part, self.options.clip, costs, peak)
            else:
                stored = np.float16 if self.target.weights[name].get("scales") == "f16" else np.float32
                rounded = _as_codes(name, begin, part, codebook, precision.group, costs, peak, stored)
            if real is not None:
                real[begin:end] = rounded.real(block)
            yield rounded
        if real is not None and self.rounded is not None:
            self.rounded[f"{name}.weight"] = real


def random_profiler(graph: Graph, tokens: int) -> Profiler:
    """Runs ``graph`` on about ``tokens`` random tokens."""
    return calibrated_profiler(graph, random_tokens(graph, tokens))


def calibrated_profiler(graph: Graph, calibration: Calibration) -> Profiler:
    """Runs ``graph`` on ``calibration``."""
    return Profiler(lambda names, rounded: profile(graph, names, calibration, rounded=rounded), calibration)


def choose_rotations(graph: Graph, options: QuantizeOptions) -> dict[str, int]:
    """The weights to quantize and the rotation block of each; a weight that several operators share has one block."""
    return Quantization(graph, options).rotations


def _rotated(part: Array, block: int, change: Array | None) -> Array:
    """The rows ``part``, float64, as the runtime multiplies by them; ``change`` is that of ``refit``."""
    if change is not None:
        part = part + part @ change
    if block:
        rotate(part, block)
        part /= block
    return part


def _sample(weight: Array) -> Array:
    """Rows from all of ``weight``, float64."""
    rows = max(SAMPLE // weight.shape[1], 1)
    chosen = np.unique(np.linspace(0, len(weight) - 1, min(rows, len(weight))).astype(np.int64))
    return np.concatenate([np.array(weight[i : i + 1], np.float64) for i in chosen])


def _as_int8(name: str, begin: int, part: Array, clip: tuple[float, ...], costs: Costs | None, peak: float) -> Rounded:
    values, scale = quantize_rows(part, clip)
    if costs is not None:
        values = round_with_feedback(part, scale, costs.shares)
    errors = np.empty(len(part))
    squared_errors(part, steps(scale), values, errors)
    norm = float(np.vdot(part, part))
    return Rounded(name, begin, values, scale, float(errors.sum()), norm, peak)


def _as_codes(
    name: str,
    begin: int,
    part: Array,
    codebook: Codebook,
    group: int,
    costs: Costs | None,
    peak: float,
    stored: Any = np.float32,
) -> Rounded:
    scale = _stored(search(part, codebook, group), stored)
    if costs is not None:
        codes = round_to_codes_with_feedback(part, scale, codebook, costs.shares)
        if costs.moments is not None:
            improve(part, codes, scale, codebook, costs.moments)
        scale = _stored(fit_scales(part, codebook.values[codes], scale, costs.shares), stored)
    else:
        codes = np.empty(part.shape, np.uint8)
        round_to_codes(part, steps(scale), codebook.index, codes)
    real = codebook.values[codes].reshape(*scale.shape, -1) * scale[:, :, None].astype(np.float64)
    error = float(np.square(real.reshape(part.shape) - part).sum())
    norm = float(np.vdot(part, part))
    scale = scale if group else scale[:, 0]
    return Rounded(name, begin, codes, scale, error, norm, peak, codebook.entries)


def _stored(scale: Array, dtype: Any) -> Array:
    """``scale`` as ``dtype``, no number of which is infinite."""
    stored: Array = np.minimum(scale, np.finfo(dtype).max).astype(dtype)
    return stored


def as_quantized(
    graph: Graph,
    rotations: Mapping[str, int],
    precisions: Mapping[str, Precision] | None = None,
    zeros: Mapping[str, float] | None = None,
    attention: bool = True,
) -> Graph:
    """``graph`` without parameters, with ``attention`` that being int8, and the weights that ``rotations`` names being
    rounded, to int8 where ``precisions`` says nothing else; those that become fp16 need no rotation. Linears of the
    weights of ``zeros`` skip these.
    """
    weights = dict(graph.weights)
    for name, precision in (precisions or {}).items():
        if precision.bits == FP16:
            weights[name] = {**weights[name], "format": precision.format}
    for name, block in rotations.items():
        precision = (precisions or {}).get(name, Precision())
        half = precision.group and _scales_fit(graph, name, precision.group, block)
        rounded = {
            "format": precision.format,
            "group": precision.group,
            "rotate": block,
            "scales": "f16" if half else "",
        }
        weights[name] = {**weights[name], **{key: value for key, value in rounded.items() if value}}
    states, ops = graph.states, graph.ops
    if attention:
        states = _int8_states(graph)
        ops = _with_int8_queries(graph, {state["name"]: state for state in states})
    seen = zeros or {}
    ops = [{**op, "zeros": round(seen[op["weight"]], 4)} if op.get("weight") in seen else op for op in ops]
    return replace(graph, weights=weights, states=states, ops=ops, params={})


def _scales_fit(graph: Graph, name: str, group: int, block: int) -> bool:
    """Whether the scales of groups can be float16: those of weights so small that they would lose digits cannot."""
    weight = graph.params[f"{name}.weight"]
    rows = np.asarray(weight[: min(len(weight), FEW_ROWS)], np.float64)
    scale = RANGE * np.sqrt(np.mean(np.square(rows)) / max(block, 1)) / 127  # a rotated weight is divided by its block
    return bool(scale >= LEAST_SCALE) and rows.shape[1] // group <= MOST_GROUPS


def _int8_states(graph: Graph) -> list[dict[str, Any]]:
    """Queries and keys of decoders are rotated: without, their outliers cost five to eight times as much.

    So are those of encoders that are decoders in all but their mask: their heads are normalised.
    """
    normed = any(op["op"] == "norm" and op.get("heads", 1) > 1 for op in graph.ops)
    inverted = {op["out"] for op in graph.ops if op["op"] == "nystrom"}  # large numbers whose sums are small
    precise = {op["state"] for op in graph.ops if op["op"] == "store" and op["v"] in inverted}
    states = []
    for state in graph.states:
        if state["name"] in precise:
            states.append(state)
            continue
        block = hadamard_block(state["head_dim"]) if normed or state.get("kept") else 0
        states.append({**state, "dtype": "int8", **({"rotate": block} if block else {})})
    return states


def _with_int8_queries(graph: Graph, states: Mapping[str, dict[str, Any]]) -> list[Op]:
    """The operators with the queries of every attention rounded by head, and a finer softmax where texts are generated.

    There the steps of 7 bits cost as much as all other roundings of attention together.
    """
    ops: list[Op] = []
    for op in graph.ops:
        if op["op"] == "attention":
            for field, of in (("q", "state"), ("global_q", "global_state")):
                if field in op:
                    state = states[op[of] if of in op else op["state"]]
                    if state["dtype"] != "int8":
                        continue
                    rounded = f"{op[field]}.int8.{state['name']}"
                    facts = {name: state[name] for name in ("head_dim", "rotate") if name in state}
                    ops.append({"op": "quantize_heads", "in": op[field], "out": rounded, **facts})
                    op = {**op, field: rounded}
            if states[op["state"]].get("kept"):
                op = {**op, "fine": True}
        ops.append(op)
    return ops

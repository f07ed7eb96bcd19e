"""Rounded weights: rotate, then round with feedback, to int8 or to indices into a learned codebook.

The rotation is QuaRot's (arXiv 2404.00456) in blocks: it spreads outlier channels of the *activations* over a block, so
that one scale per row suffices for them. The operator rotates its input, the weights absorb the inverse.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from ..graph import Array, Graph
from ..grouped import Grouped
from .calibration import Calibration, random_tokens, takes_tokens
from .codebook import consecutive, learn, uniform
from .dataflow import Dataflow
from .gptq import DAMPING, Costs, damping_of_int8, refit
from .options import QuantizeOptions
from .packed import as_halves, row_parts
from .precision import FP16, INT4, INT8, Precision, choose_block
from .profile import Observer, Progress, profile
from .rounding import Rounded, as_codes, as_int8, rotated, sample_rows
from .scaling import SMALL_BLOCK, scaled
from .target import as_quantized
from .zeros import after_relu, zero_groups

SEEN = 1 << 24
"""Numbers of the largest table whose rounding is seen by what comes after it: 64 MB that wait in memory."""


@dataclass(frozen=True)
class Profiler:
    """``observe`` gives the observers of the linears that are named, in any order: ``profile`` with its graph and
    ``calibration``, say, and what that calls ``rounded``. Those of a profile that was kept have no calibration."""

    observe: Callable[[Collection[str], dict[str, Array] | None], Iterator[Observer]]
    calibration: Calibration | None = None

    def __call__(self, names: Collection[str], rounded: dict[str, Array] | None = None) -> Iterator[Observer]:
        return self.observe(names, rounded)


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
        self.rounded: dict[str, Array] | None = {} if options.refit and options.thorough(graph, linear_bits) else None
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
                codebook = learn(rotated(sample_rows(weight), block, change), precision.bits, precision.group)
        seen = self.rounded is not None and (name in self.flow.linears or weight.shape[0] * weight.shape[1] <= SEEN)
        real = np.empty(weight.shape, np.float32) if seen else None
        for begin, end in row_parts(weight.shape):
            part = rotated(np.array(weight[begin:end], np.float64, order="C"), block, change)
            if codebook is None:
                rounded = as_int8(name, begin, part, self.options.clip, precision.bounded_pairs, costs, peak)
            else:
                stored = np.float16 if self.target.weights[name].get("scales") == "f16" else np.float32
                rounded = as_codes(name, begin, part, codebook, precision.group, costs, peak, stored)
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

"""What each layer and weight loses when it alone is made smaller, measured at the output of the model.

Gradients, and the errors of a layer's own products, mislead: pooling adds up errors that the last layer makes alike for
all tokens, while norms take back much of what the first ones do.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from ..graph import Array, Graph
from ..layout import LONGEST_JOINED, MAX_INT8_K
from .channels import Channels, Space
from .dataflow import Dataflow
from .importance import Seen
from .options import QuantizeOptions
from .outputs import Outputs, distance
from .precision import FP16, FP32, GROUPS, INT8, Precision
from .prune import MULTIPLE, PruneOptions, at_widths
from .quantize import Profiler, Quantization

SHARES = (7 / 8, 3 / 4, 1 / 2, 1 / 4)
"""Of a layer's width: where its loss is measured. Widths between are interpolated."""
TABLE_BITS = (6, 5, 4, 3)
LINEAR_BITS = (6, 5, 4)
OF_FOUR_BITS = {
    Precision(8): 0.0092,
    Precision(8, bounded_pairs=True): 0.018,
    Precision(6, 64): 0.08,
    Precision(6, 128): 0.092,
    Precision(5, 64): 0.32,
    Precision(5, 128): 0.37,
    Precision(4, 64): 1.0,
    Precision(4, 128): 1.1,
    Precision(4): 1.24,
}
"""What linears lose, of what they lose with 4 bits in groups of 64: means of the products of the four linears of two
layers of all-MiniLM-L6-v2, of which none is further from it than a quarter (8 bits), a twentieth (4 bits) or less."""
FINER = {32: 0.89, 16: 0.79}
"""The same of finer groups, of those of 64."""


@dataclass(frozen=True)
class Curve:
    """The loss of one layer: ``errors`` at ``widths``, falling, from the full width with no error on."""

    widths: tuple[int, ...]
    errors: tuple[float, ...]

    def at(self, width: int) -> float:
        """Between two measured widths, and below the least of them by the last slope."""
        if width >= self.widths[-1] or len(self.widths) == 1:
            return float(np.interp(width, self.widths[::-1], self.errors[::-1]))
        run = self.widths[-2] - self.widths[-1]
        return self.errors[-1] + (self.widths[-1] - width) * (self.errors[-1] - self.errors[-2]) / run


def width_curve(
    graph: Graph,
    channels: Channels,
    space: Space,
    options: PruneOptions,
    seen: Mapping[str, Seen],
    outputs: Outputs,
    expected: Array,
) -> Curve:
    """The loss of ``space`` at several widths; ``expected`` is what ``outputs`` gives of ``graph``."""
    asked = {max(round(share * space.width / MULTIPLE), 1) * MULTIPLE for share in SHARES}
    widths, errors = sorted((width for width in asked if width < space.width), reverse=True), [0.0]
    if widths:
        for pruned in at_widths(graph, channels, space, widths, options, seen):
            errors.append(max(distance(expected, outputs(pruned)), errors[-1]))
    return Curve((space.width, *widths), tuple(errors))


def fewer_bits(
    graph: Graph,
    chosen: Mapping[str, Precision],
    group: int,
    narrowed: Collection[str] = (),
    bounded_pairs: bool = False,
) -> dict[str, list[Precision]]:
    """The precisions with fewer bits than ``chosen`` that each weight may have, most bits first: 8 for what is fp16, 6
    to 4 for linears in groups of ``group`` and more, 4 alone where they have no groups, and 6 to 3 for a table that is
    only looked up and is large enough to matter. Groups divide the inputs of those that are to be ``narrowed`` at any
    width. ``bounded_pairs``: linears that may have 8 bits may have them with bounded pairs too.
    """
    flow = Dataflow(graph)
    found: dict[str, list[Precision]] = {}
    for name, precision in chosen.items():
        k = graph.weights[name]["k"]
        if precision.bits == FP32:
            continue
        int8 = precision.bits == FP16 and not (name in flow.linears and k > MAX_INT8_K)
        levels = [Precision(INT8)] if int8 else []
        if name not in flow.tables:
            divide = [size for size in GROUPS if k % size == 0 and (name not in narrowed or MULTIPLE % size == 0)]
            finest = max((size for size in divide if size <= group), default=0)
            fits = [size for size in divide if 0 < finest <= size]
            bits = LINEAR_BITS if fits and k <= LONGEST_JOINED else LINEAR_BITS[-1:]
            few = [Precision(of, size) for of in bits for size in fits] + [Precision(LINEAR_BITS[-1])]
            few = few if int8 or precision.bits == INT8 else []
            bounded = bounded_pairs and few and not precision.bounded_pairs
            found[name] = [*levels, *([Precision(INT8, bounded_pairs=True)] if bounded else []), *few]
        elif name not in flow.linears and flow.tables[name] == 0:
            found[name] = [*levels, *(Precision(bits) for bits in TABLE_BITS if bits < precision.bits)]
        else:
            found[name] = levels
    return {name: levels for name, levels in found.items() if levels}


def bit_losses(
    graph: Graph,
    levels: Mapping[str, list[Precision]],
    options: QuantizeOptions,
    profiler: Profiler | None,
    outputs: Outputs,
    expected: Array,
) -> Iterator[tuple[str, Precision, float]]:
    """The loss of every weight at every one of its ``levels``, its activations being as they were.

    Linears are measured with the fewest bits alone; what they lose with more follows from that.
    """
    linears = Dataflow(graph).linears
    measured = {name: of[-1:] if name in linears else of for name, of in levels.items()}
    for place in range(max(map(len, measured.values()), default=0)):
        asked = {name: of[place] for name, of in measured.items() if place < len(of)}
        precision = {**dict.fromkeys(graph.weights, Precision(FP32)), **asked}
        known = options.precisions(graph)
        rounding = replace(options, precision={n: p for n, p in precision.items() if n in known})
        rounding = replace(rounding, refit=0.0, scaling="none")
        quantization = Quantization(graph, rounding, profiler=profiler)
        rows: dict[str, list[Array]] = {}
        for part in quantization.round():
            rows.setdefault(part.name, []).append(part.real(quantization.rotations[part.name]).astype(np.float32))
            if sum(map(len, rows[part.name])) == graph.weights[part.name]["n"]:
                params = {**graph.params, f"{part.name}.weight": np.concatenate(rows.pop(part.name))}
                rounded = outputs(replace(graph, params=params))
                loss = distance(expected, rounded)
                for level in levels[part.name] if part.name in linears else [asked[part.name]]:
                    share = _of_four_bits(level) / _of_four_bits(asked[part.name]) if part.name in linears else 1.0
                    yield part.name, level, loss * share


def _of_four_bits(precision: Precision) -> float:
    finer = FINER.get(precision.group)
    return OF_FOUR_BITS[replace(precision, group=64) if finer else precision] * (finer or 1)

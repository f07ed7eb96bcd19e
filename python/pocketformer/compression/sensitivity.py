"""What each layer and weight loses when it alone is made smaller, measured at the output of the model.

Gradients, and the errors of a layer's own products, mislead: pooling adds up errors that the last layer makes alike for
all tokens, while norms take back much of what the first ones do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from .._core import Program, Session
from ..graph import SELECTED, Array, Graph
from ..layout import LONGEST_JOINED, MAX_INT8_K
from ..packing import pack_graph
from ..segments import aligned
from ..similarity import row_cosines
from .calibration import Calibration
from .channels import Space
from .dataflow import Dataflow
from .importance import Seen
from .precision import FP16, FP32, GROUPS, INT8, Precision
from .prune import MULTIPLE, PruneOptions, at_widths
from .quantize import Profiler, Quantization, QuantizeOptions

SHARES = (7 / 8, 3 / 4, 1 / 2, 1 / 4)
"""Of a layer's width: where its loss is measured. Widths between are interpolated."""
TABLE_BITS = (6, 5, 4, 3)
LINEAR_BITS = (6, 5, 4)
OF_FOUR_BITS = {8: 0.005, 6: 0.08, 5: 0.32, 4: 1.0}
"""What linears lose with more bits, of what they lose with 4. Of the products of the four linears of a layer of
all-MiniLM-L6-v2 it is 0.077 to 0.079 with 6 bits and 0.314 to 0.321 with 5, all in groups of 64; 8 bits follow by a
quarter a bit."""


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
    graph: Graph, space: Space, options: PruneOptions, seen: Mapping[str, Seen], sample: Calibration, expected: Array
) -> Curve:
    """The loss of ``space`` at several widths; ``expected`` is the output of ``graph`` on ``sample``."""
    asked = {max(round(share * space.width / MULTIPLE), 1) * MULTIPLE for share in SHARES}
    widths, errors = sorted((width for width in asked if width < space.width), reverse=True), [0.0]
    if widths:
        for pruned in at_widths(graph, space, widths, options, seen):
            errors.append(max(distance(expected, outputs(pruned, sample)), errors[-1]))
    return Curve((space.width, *widths), tuple(errors))


def fewer_bits(graph: Graph, chosen: Mapping[str, Precision], group: int) -> dict[str, list[Precision]]:
    """The precisions with fewer bits than ``chosen`` that each weight may have, most bits first: 8 for what is fp16, 6
    to 4 for linears, 4 alone where they have no groups, and 6 to 3 for a table that is only looked up and is large
    enough to matter."""
    flow = Dataflow(graph)
    found: dict[str, list[Precision]] = {}
    for name, precision in chosen.items():
        k = graph.weights[name]["k"]
        if precision.bits == FP32:
            continue
        int8 = precision.bits == FP16 and not (name in flow.linears and k > MAX_INT8_K)
        levels = [Precision(INT8)] if int8 else []
        if name not in flow.tables:
            fits = next((size for size in reversed(GROUPS) if size <= group and k % size == 0), 0)
            bits = LINEAR_BITS if fits and k <= LONGEST_JOINED else LINEAR_BITS[-1:]
            few = [Precision(of, fits) for of in bits] if int8 or precision.bits == INT8 else []
            found[name] = [*levels, *few]
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
    sample: Calibration,
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
                rounded = outputs(replace(graph, params=params), sample)
                loss = distance(expected, rounded)
                for level in levels[part.name] if part.name in linears else [asked[part.name]]:
                    least = asked[part.name].bits
                    share = OF_FOUR_BITS[level.bits] / OF_FOUR_BITS[least] if part.name in linears else 1.0
                    yield part.name, level, loss * share


def outputs(graph: Graph, sample: Calibration) -> Array:
    """The output of the plain ``graph`` on ``sample``, in the runtime."""
    ragged = next(entry["name"] for entry in graph.domains if "of" not in entry)
    ends = np.concatenate([[0], np.cumsum(sample.lengths)]).astype(np.int64)
    feeds: dict[str, Array | None] = {**sample.inputs, ragged: ends}
    if any(domain["kind"] == "selected" for domain in graph.domains):
        feeds[SELECTED] = ends[:-1]
    packed = pack_graph(replace(graph, params={name: np.asarray(array) for name, array in graph.params.items()}))
    program = Program(packed.description(), {name: aligned(array) for name, array in packed.params.items()})
    result: Array = Session(program).run(feeds, 1)
    return result


def distance(expected: Array, actual: Array) -> float:
    """Mean of 1 − cosine over the rows."""
    return float(np.mean(1 - row_cosines(expected, actual)))

"""What can be turned to make a model smaller, and what each turn loses: measured one by one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

from ..graph import Array, Graph
from .calibration import Calibration
from .channels import Channels, Space
from .importance import Seen
from .options import QuantizeOptions
from .outputs import Outputs
from .precision import Precision
from .profile import Observer
from .prune import MULTIPLE, PruneOptions, collect, seen_by
from .quantize import Profiler
from .sensitivity import Curve, bit_losses, width_curve


@dataclass(frozen=True)
class Step:
    """One setting of a knob: a width or a precision, the ``bytes`` that are about saved by it, and its ``error``."""

    value: int | Precision
    bytes: float
    error: float


@dataclass(frozen=True)
class Knobs:
    """Of ``graph``: the ``levels`` of its weights, whose ``precisions`` are what they begin with, and the widths of its
    ``spaces``. ``plain`` is how many bytes a number of the rest has.

    ``profiler`` runs the model to fit what is left, and outputs are compared on ``sample``.
    """

    graph: Graph
    channels: Channels
    spaces: Mapping[str, Space]
    precisions: Mapping[str, Precision]
    levels: Mapping[str, list[Precision]]
    plain: int
    options: QuantizeOptions
    prune: PruneOptions
    profiler: Profiler | None
    sample: Calibration

    def measured(self, tell: Callable[[str], None]) -> dict[str, list[Step]]:
        """The steps of each knob, from what is there (no error) to the least; ``tell`` is told what is next."""
        graph, seen = self.graph, dict[str, Seen]()
        outputs = Outputs(graph, self.sample)
        expected = outputs(graph)
        found = {f"bits of {name}": [Step(self.precisions[name], 0, 0.0)] for name in self.levels}
        profiler = self.profiler and self._noting(self.profiler, seen)
        for name, precision, error in bit_losses(graph, self.levels, self.options, profiler, outputs, expected):
            tell(f"measure {name}")
            steps = found[f"bits of {name}"]
            saved = bytes_each(self.precisions[name]) - bytes_each(precision)
            steps.append(Step(precision, saved * graph.params[f"{name}.weight"].size, max(error, steps[-1].error)))
        seen = collect(graph, self.spaces.values(), self.prune, self.profiler, seen)
        for name, space in self.spaces.items():
            tell(f"measure {name}")
            curve = width_curve(graph, self.channels, space, self.prune, seen, outputs, expected)
            found[f"width of {name}"] = self._widths(name, curve)
        return found

    def _noting(self, profiler: Profiler, seen: dict[str, Seen]) -> Profiler:
        """``profiler``, which puts into ``seen`` what pruning asks of the rows that are observed."""
        readers = {name for space in self.spaces.values() for name in space.readers}

        def observe(names: Collection[str], rounded: dict[str, Array] | None) -> Iterator[Observer]:
            for observer in profiler(names, rounded):
                seen.update(dict.fromkeys(readers.intersection(observer.weights), seen_by(observer)))
                yield observer

        return Profiler(observe, profiler.calibration)

    def _widths(self, name: str, curve: Curve) -> list[Step]:
        width, each = self.spaces[name].width, self._column_bytes(name)
        below = range((width - 1) // MULTIPLE * MULTIPLE, MULTIPLE - 1, -MULTIPLE)
        return [Step(width, 0, 0.0), *(Step(w, (width - w) * each, curve.at(w)) for w in below)]

    def _column_bytes(self, name: str) -> float:
        """Bytes of the parameters that one channel of a layer has, before they get fewer bits."""
        label, total = self.spaces[name].units[0], 0.0
        for (parameter, axis), labels in self.channels.axes.items():
            shape = self.graph.params[parameter].shape
            total += float((labels == label).sum()) * self.graph.params[parameter].size / shape[axis]
        return total * self.plain


def bytes_each(precision: Precision) -> float:
    """Of a weight and its share of a float16 scale."""
    return precision.bits / 8 + (2 / precision.group if precision.group else 0)


def without_pairs(steps: list[Step]) -> list[Step]:
    """``steps`` without those that bound pairs, which save time on some machines and never bytes."""
    later = [step for step in steps[1:] if not (isinstance(step.value, Precision) and step.value.bounded_pairs)]
    return [*steps[:1], *later]

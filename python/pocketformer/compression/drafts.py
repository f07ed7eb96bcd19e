"""Plans of given widths and precisions, with what a file of them has and a run of it takes: nothing is measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ..graph import Graph
from .channels import Channels
from .knobs import Step
from .limits import Forecast
from .options import QuantizeOptions
from .pipeline import Compression, bytes_of
from .plan import Bits, Plan, bounded_bits, make_plan
from .precision import Precision
from .surgery import keep_units, remove_units

if TYPE_CHECKING:
    from ..sources.huggingface import Checkpoint


class Drafts:
    """Of ``loaded``, whose weights have ``precisions`` where a draft says nothing of them.

    ``forecast``: what tells memory and time of a run; None: a draft has its file's bytes alone.
    """

    def __init__(
        self,
        loaded: Checkpoint,
        weights: str,
        channels: Channels,
        options: QuantizeOptions,
        precisions: Mapping[str, Precision],
    ) -> None:
        self.loaded, self.weights, self.channels = loaded, weights, channels
        self.options, self.precisions = options, precisions
        self.forecast: Forecast | None = None
        self._last: tuple[tuple[tuple[str, int], ...], Graph] = ((), loaded.graph)

    def turned(self, knobs: Mapping[str, Step]) -> Plan:
        """The plan of ``knobs`` that are turned, by name (``width of …``, ``bits of …``), with what each of them
        loses."""
        widths = {n.removeprefix("width of "): s for n, s in knobs.items() if n.startswith("width of ")}
        bits = {n.removeprefix("bits of "): s for n, s in knobs.items() if n.startswith("bits of ")}
        plan = self.plan(
            {name: width_of(step) for name, step in widths.items()},
            {name: step.value for name, step in bits.items() if isinstance(step.value, Precision)},
        )
        layers = {
            name: replace(layer, error=widths[name].error if name in widths else 0.0)
            for name, layer in plan.layers.items()
        }
        losses = {
            name: replace(entry, error=bits[name].error if name in bits else 0.0) for name, entry in plan.bits.items()
        }
        total = sum((step.error for step in knobs.values()), 0.0)
        return replace(plan, layers=layers, bits=losses, error=total)

    def plan(self, widths: Mapping[str, int], bits: Mapping[str, Precision]) -> Plan:
        """A plan with its bytes: those of a graph of these shapes, whichever channels it keeps."""
        given = {name: Bits(of.bits, of.group, of.bounded_pairs) for name, of in bits.items()}
        plan = make_plan(self.channels, self.weights, widths)
        plan = replace(plan, bits={**bounded_bits(self.precisions), **given})
        graph = self._narrow(plan.widths)
        model = {**self.loaded.model, "params": sum(array.size for array in graph.params.values())}
        shaped = replace(self.loaded, graph=graph, model=model)
        options = plan.options(self.options)
        plan = replace(plan, file_bytes=bytes_of(shaped, self.weights, options))
        if self.forecast is None:
            return plan
        memory, seconds = self.forecast(Compression(graph, self.weights, options), int(figure(plan, "file_bytes")))
        return replace(plan, memory_bytes=memory, seconds=seconds)

    def _narrow(self, widths: Mapping[str, int]) -> Graph:
        """The graph with so many columns of each space, whichever they are."""
        key = tuple(widths.items())
        if self._last[0] != key:
            graph = self.loaded.graph
            removed = [
                keep_units(space, widths[name] // space.size, np.zeros(len(space.units)))
                for name, space in self.channels.spaces.items()
            ]
            if any(len(units) for units in removed):
                graph = remove_units(graph, self.channels, np.concatenate(removed))
            self._last = key, graph
        return self._last[1]


def width_of(step: Step) -> int:
    """Of a knob of a width."""
    assert isinstance(step.value, int)
    return step.value


def figure(plan: Plan, name: str) -> float:
    """What a plan says of ``file_bytes``, ``memory_bytes`` or ``seconds``, which a draft does."""
    value: float | None = getattr(plan, name)
    assert value is not None
    return value

"""The output of a model on a sample, again and again, with few of its parameters changed: what comes before them is
not run anew."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..graph import STATES, Array, Graph, Op
from ..similarity import row_cosines
from .calibration import Calibration
from .dataflow import Dataflow, inputs, parameters
from .operators import Rows, Run, Segment, alone


class Outputs:
    """The outputs on ``sample`` of graphs that are ``graph`` in all but a few parameters.

    The operators are cut into pieces wherever a single value goes from one to the next, such as the residual stream.
    What each piece of ``graph`` reads is kept; of a graph that differs, the first piece with other parameters and those
    after it are run.
    """

    def __init__(self, graph: Graph, sample: Calibration) -> None:
        self._graph = graph
        self._run = Run(Dataflow(graph), sample)
        self._reads: list[dict[str, Rows]] = []
        self._segments: list[Segment] = []
        values = {name: rows for name, rows in self._run.given().items() if rows is not None}
        for ops in pieces(graph):
            self._reads.append(values)
            self._segments.append(self._segment(self._run, ops, values))
            values = self._result(self._segments[-1], ops, values)
        self._output = _joined(values)

    def __call__(self, graph: Graph) -> Array:
        """Those of ``graph``, plain, whose operators are those of the first."""
        changed = {name for name, array in self._graph.params.items() if graph.params[name] is not array}
        run, values = Run(Dataflow(graph), self._run.calibration), dict[str, Rows]()
        for place, (ops, segment) in enumerate(zip(pieces(graph), self._segments, strict=True)):
            other = any(name in changed for op in ops for name in _read(op))
            if not (values or other):
                continue
            values = values or self._reads[place]
            values = self._result(self._segment(run, ops, values) if other else segment, ops, values)
        return _joined(values) if values else self._output

    def _segment(self, run: Run, ops: list[Op], values: dict[str, Rows]) -> Segment:
        domain = next((rows.domain for rows in values.values()), "") or run.domain_of_tables(ops[0])
        return Segment(run, ops, domain, values)

    def _result(self, segment: Segment, ops: list[Op], values: dict[str, Rows]) -> dict[str, Rows]:
        value = ops[-1]["out"]
        rows = Rows(self._run.memory, self._graph.domain_of(value))
        for index in range(len(self._run.chunks)):
            rows.append(segment.run(index, values))
        return {value: rows}


def pieces(graph: Graph) -> Iterator[list[Op]]:
    """The operators of ``graph``, cut wherever those that follow read the last value and none before it."""
    reads = [{*inputs(op), *(f"state {op[field]}" for field in STATES if field in op)} for op in graph.ops]
    last = {name: place for place, names in enumerate(reads) for name in names}
    waiting = {str(entry["name"]) for entry in graph.inputs if entry["dtype"] == "f32"}
    piece: list[Op] = []
    for place, op in enumerate(graph.ops):
        piece.append(alone(op))
        waiting.add(op.get("out") or f"state {op['state']}")
        waiting = {name for name in waiting if last.get(name, -1) > place}
        if waiting == {op.get("out")} or place + 1 == len(graph.ops):
            yield piece
            piece = []


def outputs(graph: Graph, sample: Calibration) -> Array:
    """The output of the plain ``graph`` on ``sample``, in the runtime."""
    return Outputs(graph, sample)(graph)


def distance(expected: Array, actual: Array) -> float:
    """Mean of 1 − cosine over the rows."""
    return float(np.mean(1 - row_cosines(expected, actual)))


def _read(op: Op) -> list[str]:
    return [*parameters(op), *(f"{table['weight']}.weight" for table in op.get("tables", []))]


def _joined(values: dict[str, Rows]) -> Array:
    (rows,) = values.values()
    return np.concatenate(list(rows))

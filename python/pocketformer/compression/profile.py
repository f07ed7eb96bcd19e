"""Runs a plain fp32 graph in the runtime, operator by operator, and watches the rows that its linears read.

The rows come from random tokens: what matters most (the scales of the norms, the channels that always fire) is a
property of the weights, and no text is needed. One operator's weights are in memory at a time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .._core import Program, Session, default_threads
from ..graph import Array, Graph, Op
from ..layout import ALIGNMENT
from ..packing import pack_graph
from ._rounding import observe, rotate
from .dataflow import Dataflow, parameters

SEQUENCE = 64
"""Tokens of one random sequence."""
ROW = "row of a value"
"""The input that looks up values."""


@dataclass
class Observer:
    """Streaming statistics of the rows that ``weights`` are multiplied by.

    ``highest`` float32, ``total`` and ``squares`` float64 [K] are max |x|, Σ|x| and Σx² of each channel; ``moments``
    float64 [K, K] is Σ xᵀx of the rows rotated by ``rotate``; ``rows`` is how many there were.
    """

    weights: tuple[str, ...]
    width: int
    rotate: int
    rows: int = 0
    highest: Array = field(init=False)
    total: Array = field(init=False)
    squares: Array = field(init=False)
    moments: Array = field(init=False)

    def __post_init__(self) -> None:
        self.highest = np.zeros(self.width, np.float32)
        self.total, self.squares = np.zeros(self.width), np.zeros(self.width)
        self.moments = np.zeros((self.width, self.width))

    def add(self, x: Array) -> None:
        """``x`` is float32 [rows, K]. Its products are too: their errors drown in the damping of the moments."""
        observe(x, self.highest, self.total, self.squares)
        if self.rotate:
            x = x.copy()
            rotate(x, self.rotate)
        self.moments += x.T @ x
        self.rows += len(x)

    @property
    def peak(self) -> float:
        """The largest |x| over the mean |x|: how much an outlier costs all others of its row when they are rounded."""
        mean = float(self.total.sum()) / max(self.rows * self.width, 1)
        return float(self.highest.max()) / mean if mean else 0.0


def profile(graph: Graph, rotations: Mapping[str, int], tokens: int) -> Iterator[Observer]:
    """Runs ``graph`` on about ``tokens`` random tokens; yields an observer for all weights that see the same rows.

    ``rotations`` names the linears to watch and the block by which the rows of each are rotated. An observer comes as
    soon as all its rows have been seen, and has seen none where the rows are chosen by a caller (``select``).
    """
    flow = Dataflow(graph)
    groups: dict[tuple[tuple[str, ...], int], tuple[str, ...]] = {}
    for name, block in rotations.items():
        key = (flow.rows_of(name), block)
        groups[key] = (*groups.get(key, ()), name)
    unfinished: dict[tuple[str, ...], Observer] = {}
    for value, rows in _values(flow, {value for values, _ in groups for value in values}, tokens):
        for (values, block), names in groups.items():
            if value not in values:
                continue
            observer = unfinished.pop(names, None) or Observer(names, graph.weights[names[0]]["k"], block)
            if rows is not None:
                observer.add(rows)
            if value != values[-1]:
                unfinished[names] = observer
                continue
            yield observer
            del observer  # its moments are the largest matrix here: none waits for the next


def can_profile(graph: Graph) -> bool:
    """Whether random inputs can be made up for ``graph``: it takes indices of tokens alone."""
    return len(graph.inputs) > 0 and all(entry["dtype"] == "i32" for entry in graph.inputs)


def _values(flow: Dataflow, wanted: Collection[str], tokens: int) -> Iterator[tuple[str, Array | None]]:
    """The rows of the ``wanted`` values in the order in which they are written; None where there are none."""
    length = min(SEQUENCE, flow.graph.max_length)
    batch = _Batch(flow, [length] * max(tokens // length, 1))
    ops = list(flow.needed(wanted))
    last_use = {value: index for index, op in enumerate(ops) for value in flow.reads(op)}
    live: dict[str, Array | None] = {}
    for index, op in enumerate(ops):
        live[op["out"]] = batch.run(op, {value: live[value] for value in flow.reads(op)})
        if op["out"] in wanted:
            yield op["out"], live[op["out"]]
        for value in (op["out"], *flow.reads(op)):
            if last_use.get(value, index) <= index:
                live.pop(value, None)


class _Batch:
    """Sequences of ``lengths`` random tokens, optional inputs being absent."""

    def __init__(self, flow: Dataflow, lengths: list[int]) -> None:
        self.flow, self.graph, self.lengths = flow, flow.graph, lengths
        self.domain = next(entry["name"] for entry in self.graph.domains if "of" not in entry)
        rng, rows = np.random.default_rng(0), sum(lengths)
        self.indices = {
            entry["name"]: np.zeros(rows, np.int64) if entry.get("optional") else rng.integers(0, entry["limit"], rows)
            for entry in self.graph.inputs
        }

    def run(self, op: Op, values: Mapping[str, Array | None]) -> Array | None:
        """The result of one operator on ``values``, which a graph of it alone looks up in tables, row by row."""
        if op["op"] == "select" or any(array is None for array in values.values()):
            return None  # which rows matter is known to callers only
        given = {value: array for value, array in values.items() if array is not None}
        if op["op"] == "columns":
            return np.ascontiguousarray(given[op["in"]][:, op["begin"] : op["begin"] + op["width"]])
        rows = next((len(array) for array in given.values()), sum(self.lengths))
        lengths = self.lengths if rows == sum(self.lengths) else [1] * rows  # pooled: one row a sequence
        weights, params = self._weights(op)
        lookups: list[Op] = []
        for value, array in given.items():
            table = f"rows of {value}"
            weights[table], params[f"{table}.weight"] = {"format": "f32", "n": rows, "k": array.shape[1]}, array
            lookups.append({"op": "embed", "out": value, "tables": [{"weight": table, "index": ROW}]})
        indices = {table["index"] for lookup in (*lookups, op) for table in lookup.get("tables", [])} - {"positions"}
        stores = [self.flow.stores[op["state"]]] if "state" in op else []
        segment = replace(
            self.graph,
            domains=[domain for domain in self.graph.domains if domain["name"] in (self.domain, op.get("domain"))],
            inputs=[{"name": name, "domain": self.domain, "dtype": "i32", "limit": rows} for name in indices],
            weights=weights,
            states=[state for state in self.graph.states if state["name"] == op.get("state")],
            ops=[*lookups, *stores, op],
            output=op["out"],
            params=params,
        )
        packed = pack_graph(segment)
        tensors = {name: _aligned(array) for name, array in packed.params.items()}
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        feeds = {self.domain: offsets, **dict.fromkeys(indices, np.arange(rows, dtype=np.int32))}
        return Session(Program(packed.description(), tensors)).run(feeds, default_threads())

    def _weights(self, op: Op) -> tuple[dict[str, dict[str, Any]], dict[str, Array]]:
        """The weights and parameters of ``op``; of a vocabulary the rows that are looked up, one for each token."""
        graph = self.graph
        params = {name: np.asarray(graph.params[name]) for name in parameters(op)}
        weights = {op["weight"]: graph.weights[op["weight"]]} if op["op"] == "linear" else {}
        for table in op.get("tables", []):
            name, indices = table["weight"], self.indices.get(table["index"])
            weight = graph.params[f"{name}.weight"]
            chosen = np.asarray(weight[:]) if indices is None else np.concatenate([weight[i : i + 1] for i in indices])
            params[f"{name}.weight"] = chosen
            weights[name] = {**graph.weights[name], "n": len(chosen)}
        return weights, params


def _aligned(array: Array) -> Array:
    """A copy that starts at a multiple of 64 bytes, as the runtime asks for."""
    memory = np.empty(array.nbytes + ALIGNMENT, np.uint8)
    begin = -memory.ctypes.data % ALIGNMENT
    copy = memory[begin : begin + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy

"""Runs a plain fp32 graph in the runtime, operator by operator, and watches the rows that its linears read.

The rows come from random tokens: what matters most (the scales of the norms, the channels that always fire) is a
property of the weights, and no text is needed. One operator's weights are in memory at a time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from .._core import Program, Session, default_threads
from ..graph import Array, Graph, Op
from ..layout import ALIGNMENT
from ..packing import pack_graph
from ._rounding import observe, rotate
from .dataflow import Dataflow, inputs, parameters

SEQUENCE = 64
"""Tokens of one random sequence."""


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
            observer = unfinished.pop(names, None) or Observer(names, flow.linears[names[0]][0]["k"], block)
            if rows is not None:
                observer.add(rows)
            if value != values[-1]:
                unfinished[names] = observer
                continue
            yield observer
            del observer  # its moments are the largest matrix here: none waits for the next


def _values(flow: Dataflow, wanted: Collection[str], tokens: int) -> Iterator[tuple[str, Array | None]]:
    """The rows of the ``wanted`` values in the order in which they are written; None where there are none."""
    graph = flow.graph
    length = min(SEQUENCE, graph.max_length)
    lengths = [length] * max(tokens // length, 1)
    ids = np.random.default_rng(0).integers(0, graph.vocab_size, sum(lengths))
    ops = list(flow.needed(wanted))
    last_use = {value: index for index, op in enumerate(ops) for value in inputs(op)}
    live: dict[str, Array | None] = {}
    for index, op in enumerate(ops):
        read = [live[value] for value in inputs(op)]
        live[op["out"]] = _run(op, graph, dict(zip(inputs(op), read, strict=True)), ids, lengths)
        if op["out"] in wanted:
            yield op["out"], live[op["out"]]
        for value in (op["out"], *inputs(op)):
            if last_use.get(value, index) <= index:
                live.pop(value, None)


def _run(op: Op, graph: Graph, values: Mapping[str, Array | None], ids: Array, lengths: list[int]) -> Array | None:
    """The result of one operator on ``values``, which the runtime looks up in tables whose ids are the rows."""
    if op["op"] == "select":  # which rows matter is known to callers only
        return None
    if op["op"] == "embed":
        op, params = _with_used_rows(op, graph, ids)
    else:
        params = {name: np.asarray(graph.params[name]) for name in parameters(op) if name in graph.params}
    feeds, rows = [], len(ids)
    for value, array in values.items():
        if array is None:
            return None
        rows, width = array.shape
        table = {"weight": f"value:{value}", "rows": rows, "index": "ids", "offset": 0, "rotate": 0}
        params[f"value:{value}.weight"] = array
        feeds.append({"op": "embed", "out": value, "width": width, "tables": [table]})
    if rows != len(ids):  # pooled: one row a sequence
        lengths = [1] * rows
    segment = replace(graph, ops=[*feeds, op], params=params, output=op["out"], vocab_size=rows)
    packed = {name: _aligned(array) for name, array in pack_graph(segment).params.items()}
    session = Session(Program(segment.description(), packed))
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return session.run(np.arange(rows, dtype=np.int32), offsets, threads=default_threads())


def _with_used_rows(op: Op, graph: Graph, ids: Array) -> tuple[Op, dict[str, Array]]:
    """A lookup whose vocabularies hold the rows of ``ids`` one by one: the whole ones need not be in memory."""
    params: dict[str, Array] = {}
    tables = []
    for table in op["tables"]:
        name, weight = table["weight"], graph.params[f"{table['weight']}.weight"]
        chosen = table["index"] == "ids"
        rows = [weight[i : i + 1] for i in ids] if chosen else [weight[:]]
        params[f"{name}.weight"] = np.concatenate(rows)
        tables.append({**table, "rows": len(ids)} if chosen else table)
    return {**op, "tables": tables}, params


def _aligned(array: Array) -> Array:
    """A copy that starts at a multiple of 64 bytes, as the runtime asks for."""
    memory = np.empty(array.nbytes + ALIGNMENT, np.uint8)
    begin = -memory.ctypes.data % ALIGNMENT
    copy = memory[begin : begin + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy

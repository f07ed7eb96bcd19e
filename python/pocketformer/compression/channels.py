"""Which channels of a graph can be removed, and what must go with each.

Every column of every value and every row and column of every parameter that must be removed together are one *unit*:
row j of a feed-forward's first weight (and of its gate) with its bias and column j of the second; all heads that share
a key-value head, with their rows of q, k and v and their columns of the output projection. Units follow from who reads
what alone. What a norm or the output reads stays: its width is the model's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..graph import Array, Graph, Op
from .dataflow import Dataflow

Axis = tuple[str, int]
"""A parameter and one of its axes."""


@dataclass(frozen=True)
class Space:
    """Units of one kind that the same parameters hold.

    ``name`` is that of the first weight in ``readers``, the weights [n, K] that are multiplied by the channels.
    ``units`` are their labels; ``columns`` [units, size] says which of the K columns belong to each. ``heads`` tells
    whether a unit is a group of attention heads or a single channel.
    """

    name: str
    readers: tuple[str, ...]
    units: Array
    columns: Array
    heads: bool

    @property
    def width(self) -> int:
        """Columns of all units."""
        return int(self.columns.size)

    @property
    def size(self) -> int:
        """Columns of one unit."""
        return int(self.columns.shape[1])


class Channels:
    """The units of a plain fp32 ``graph``.

    ``values`` and ``axes`` give the label of the unit for each column of a value and each entry of a parameter's axis;
    ``spaces`` are those that can be pruned, by name. Raises ValueError for a graph whose attention is quantized.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._count = 0
        self._ties: list[tuple[Array, Array]] = []
        self._fixed: list[Array] = []
        self._heads: list[Array] = []
        self._states: dict[str, Array] = {}
        self.values: dict[str, Array] = {}
        self.axes: dict[Axis, Array] = {}
        widths = graph.widths()
        for entry in graph.inputs:
            if entry["dtype"] == "f32":
                self._fixed.append(self._value(entry["name"], widths))
        for op in graph.ops:
            if "out" in op:
                self._value(op["out"], widths)
            getattr(self, f"_{op['op']}", self._other)(op)
        self._fixed.append(self.values[graph.output])
        labels = self._labels()
        self.values = {name: labels[ids] for name, ids in self.values.items()}
        self.axes = {axis: labels[ids] for axis, ids in self.axes.items()}
        self._fixed_labels = np.unique(np.concatenate([labels[ids] for ids in self._fixed]))
        self._head_labels = np.unique(np.concatenate([labels[ids] for ids in self._heads] or [self._fixed_labels[:0]]))
        self.spaces = {space.name: space for space in self._spaces()}

    def space(self, name: str) -> Space:
        """Raises ValueError for a name that no space has."""
        if name not in self.spaces:
            raise ValueError(
                f"{name!r} has no channels that can be pruned; those are of {', '.join(self.spaces) or 'no layer'}"
            )
        return self.spaces[name]

    # Ties of each operator: what is read column by column shares its units, what sums over columns fixes them.

    def _embed(self, op: Op) -> None:
        for table in op["tables"]:
            self._axis((f"{table['weight']}.weight", 1), self.values[op["out"]])
        self._alike(op, "in")

    def _norm(self, op: Op) -> None:
        self._alike(op, "in")
        self._fixed.append(self.values[op["in"]])
        for name in (op["weight"], op.get("bias")):
            if name:
                self._axis((name, 0), self.values[op["out"]])

    def _linear(self, op: Op) -> None:
        out = self.values[op["out"]]
        self._axis((f"{op['weight']}.weight", 0), out)
        self._axis((f"{op['weight']}.weight", 1), self.values[op["in"]])
        if "bias" in op:
            self._axis((op["bias"], 0), out)
        self._alike(op, "multiply", "residual")

    def _columns(self, op: Op) -> None:
        begin, width = op["begin"], op["width"]
        self._tie(self.values[op["out"]], self.values[op["in"]][begin : begin + width])

    def _rope(self, op: Op) -> None:
        self._alike(op, "in")

    def _store(self, op: Op) -> None:
        state = next(state for state in self.graph.states if state["name"] == op["state"])
        heads = self._new(state["heads"])
        for value in (op["k"], op["v"]):
            self._tie(np.repeat(heads, state["head_dim"]), self.values[value])
        self._states[op["state"]] = heads
        self._heads.append(heads)

    def _attention(self, op: Op) -> None:
        state = next(state for state in self.graph.states if state["name"] == op["state"])
        shared = self._states[op["state"]]
        q = self.values[op["q"]]
        heads = len(q) // state["head_dim"]
        of = np.repeat(shared, heads // len(shared))
        self._tie(np.repeat(of, state["head_dim"]), q)
        self._tie(self.values[op["out"]], q)
        if "global_q" in op:
            self._tie(self.values[op["global_q"]], q)
        if "global_state" in op:
            self._tie(self._states[op["global_state"]], shared)
        if "bias" in op:
            self._axis((op["bias"], 0), of)

    def _quantize_heads(self, op: Op) -> None:
        raise ValueError("the graph is quantized; prune it as it was imported, and quantize afterwards")

    def _pool(self, op: Op) -> None:
        self._alike(op, "in")

    _select = _pool

    def _prepend(self, op: Op) -> None:
        self._alike(op, "in")
        self._axis((op["rows"], 1), self.values[op["out"]])

    def _other(self, op: Op) -> None:
        """Of an operator that sums over columns, or that is not known here, nothing is removed."""
        self._fixed.append(self.values[op["out"]])
        self._fixed += [self.values[op[field]] for field in ("in", "with", "q", "k", "v") if field in op]

    def _alike(self, op: Op, *fields: str) -> None:
        for field in fields:
            if op.get(field) is not None:
                self._tie(self.values[op["out"]], self.values[op[field]])

    def _value(self, name: str, widths: dict[str, int]) -> Array:
        self.values[name] = self._new(widths[name])
        return self.values[name]

    def _axis(self, axis: Axis, ids: Array) -> None:
        """Says that the entries of ``axis`` go with ``ids``; a parameter that several operators read ties them."""
        known = self.axes.setdefault(axis, ids)
        if known is not ids:
            self._tie(known, ids)

    def _tie(self, a: Array, b: Array) -> None:
        self._ties.append((a, b))

    def _new(self, count: int) -> Array:
        self._count += count
        return np.arange(self._count - count, self._count)

    def _labels(self) -> Array:
        """The lowest id that each id is tied to."""
        labels = np.arange(self._count)
        if not self._ties:
            return labels
        a = np.concatenate([tie[0] for tie in self._ties])
        b = np.concatenate([tie[1] for tie in self._ties])
        while True:
            before = labels.copy()
            lowest = np.minimum(labels[a], labels[b])
            for side in (a, b):
                np.minimum.at(labels, labels[side], lowest)
            labels = labels[labels]
            if np.array_equal(labels, before):
                return labels

    def _spaces(self) -> Sequence[Space]:
        """Units by the axes that hold them."""
        holders: dict[int, list[Axis]] = {}
        for axis, labels in self.axes.items():
            for label in np.unique(labels):
                holders.setdefault(int(label), []).append(axis)
        for label in self._fixed_labels:
            holders.pop(int(label), None)
        found: dict[tuple[Axis, ...], list[int]] = {}
        for label, held in holders.items():
            found.setdefault(tuple(held), []).append(label)
        linears = Dataflow(self.graph).linears
        few = self._rare()
        spaces = []
        for axes, units in found.items():
            readers = tuple(name for name in linears if (f"{name}.weight", 1) in axes)
            written = any(axis == 0 and name.removesuffix(".weight") in linears for name, axis in axes)
            if not readers or not written or any(op["in"] in few for name in readers for op in linears[name]):
                continue
            labels = self.axes[f"{readers[0]}.weight", 1]
            columns = [np.flatnonzero(labels == unit) for unit in units]
            if len({len(of) for of in columns}) > 1 or any(
                not np.array_equal(self.axes[f"{name}.weight", 1], labels) for name in readers
            ):
                continue  # one weight reads more of a unit than another does
            heads = bool(np.isin(units, self._head_labels).all())
            spaces.append(Space(readers[0], readers, np.array(units), np.array(columns), heads))
        return spaces

    def _rare(self) -> set[str]:
        """Values of one row a sequence, or of chosen rows: a profile sees too few of them to judge their channels."""
        kinds = {domain["name"]: domain["kind"] for domain in self.graph.domains}
        found: set[str] = set()
        for op in self.graph.ops:
            if kinds.get(op.get("domain", "")) in ("one", "selected") or op.get("in") in found:
                found.add(op.get("out", ""))
        return found

"""Who writes a value, who reads it, and which weights see the same rows: what passes ask of a graph."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from ..graph import READS, STATES, TENSORS, Graph, Op


def inputs(op: Op) -> list[str]:
    """The values that ``op`` reads."""
    return [op[field] for field in READS if op.get(field) is not None]


def parameters(op: Op) -> list[str]:
    """The plain parameters that ``op`` reads; tables apart."""
    plain = dict.fromkeys(("norm", "depthwise", "standardize", "average", "mix", "convolve", "summarize"), "{}")
    weight = {**plain, "linear": "{}.weight"}.get(op["op"]) if "weight" in op else None
    named = [op[field] for field in TENSORS if op.get(field) is not None]
    return ([weight.format(op["weight"])] if weight else []) + named


class Dataflow:
    """An index of ``graph``, made once for a pass.

    ``writer``: the operator that writes each value. ``stores``: the one that writes each state. ``linears``: those that
    multiply by each weight, in order. ``tables``: the last place at which each weight stands among what a lookup adds
    up: its tables, after the rows that it adds them to.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.writer: dict[str, Op] = {op["out"]: op for op in graph.ops if "out" in op}
        self.stores: dict[str, Op] = {op["state"]: op for op in graph.ops if op["op"] == "store"}
        self.linears: dict[str, list[Op]] = {}
        self.tables: dict[str, int] = {}
        for op in graph.ops:
            if op["op"] == "linear":
                self.linears.setdefault(op["weight"], []).append(op)
            elif op["op"] == "embed":
                for place, table in enumerate(op["tables"], int("in" in op)):
                    self.tables[table["weight"]] = max(place, self.tables.get(table["weight"], 0))

    def reads(self, op: Op) -> list[str]:
        """The values that ``op`` reads, itself or through a state."""
        stored = [] if op["op"] == "store" else [value for store in self.stored(op) for value in inputs(store)]
        return list(dict.fromkeys(inputs(op) + stored))

    def stored(self, op: Op) -> list[Op]:
        """The operators that write the states of ``op``."""
        return [self.stores[op[field]] for field in STATES if op.get(field) in self.stores]

    def rows_of(self, weight: str) -> tuple[str, ...]:
        """The values that are multiplied by ``weight``, as they are written: several where a weight is shared."""
        values = {op["in"] for op in self.linears[weight]}
        return tuple(value for value in self.writer if value in values)

    def needed(self, values: Collection[str]) -> Iterator[Op]:
        """The operators, in order, that ``values`` are computed by; stores go with who reads their state."""
        wanted = set(values)
        for op in reversed(self.graph.ops):
            if op.get("out") in wanted:
                wanted.update(self.reads(op))
        return (op for op in self.graph.ops if op.get("out") in wanted)

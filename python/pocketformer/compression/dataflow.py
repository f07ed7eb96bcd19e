"""Who writes a value, who reads it, and which weights see the same rows: what passes ask of a graph."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from ..graph import Graph, Op


def inputs(op: Op) -> list[str]:
    """The values that ``op`` reads."""
    return [op[field] for field in ("in", "residual") if op.get(field) is not None]


def parameters(op: Op) -> list[str]:
    """Names of the plain parameters that ``op`` may have; not all of them need exist."""
    if op["op"] == "embed":
        return [f"{table['weight']}.weight" for table in op["tables"]]
    if op["op"] == "attention":
        return [] if op["bias"] is None else [op["bias"]]
    return [f"{op['weight']}.weight", f"{op['weight']}.bias"] if "weight" in op else []


class Dataflow:
    """An index of ``graph``, made once for a pass.

    ``writer``: the operator that writes each value. ``linears``: those that multiply by each weight, in order.
    ``tables``: the last place among the tables of a lookup at which each weight stands.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.writer: dict[str, Op] = {op["out"]: op for op in graph.ops}
        self.linears: dict[str, list[Op]] = {}
        self.tables: dict[str, int] = {}
        for op in graph.ops:
            if op["op"] == "linear":
                self.linears.setdefault(op["weight"], []).append(op)
            elif op["op"] == "embed":
                for place, table in enumerate(op["tables"]):
                    self.tables[table["weight"]] = max(place, self.tables.get(table["weight"], 0))

    def rows_of(self, weight: str) -> tuple[str, ...]:
        """The values that are multiplied by ``weight``, as they are written: several where a weight is shared."""
        values = {op["in"] for op in self.linears[weight]}
        return tuple(value for value in self.writer if value in values)

    def needed(self, values: Collection[str]) -> Iterator[Op]:
        """The operators, in order, without which ``values`` cannot be computed."""
        wanted = set(values)
        for op in reversed(self.graph.ops):
            if op["out"] in wanted:
                wanted.update(inputs(op))
        return (op for op in self.graph.ops if op["out"] in wanted)

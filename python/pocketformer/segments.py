"""Parts of a packed graph as graphs of their own, which share its tensors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from .graph import STATES, TOKENS, Array, Graph, Op
from .layout import ALIGNMENT, table_rows

ROWS = "row of the first part"
"""The input that looks up the rows that the second part works on."""

_TABLE, _VALUE = "rows of the first part", "first part"
_SUFFIXES = ("weight", "scale", "colsum", "codebook", "minimum")
_MOST_ROWS = 1 << 20


def before_pool(graph: Graph) -> Graph:
    """What a graph of text does up to its pooling: float32 [tokens, width]."""
    place = _pool_of(graph)
    inputs = [entry for entry in graph.inputs if entry["domain"] == graph.domains[0]["name"]]
    ops = graph.ops[:place]
    states = {op["state"] for op in ops if "state" in op}
    named = {op[field] for op in ops for field in ("domain", "sequences") if field in op}
    named |= {state["domain"] for state in graph.states if state["name"] in states}
    domains = [entry for entry in graph.domains if entry is graph.domains[0] or entry["name"] in named]
    return _part(graph, ops, graph.ops[place]["in"], domains, inputs)


def after_pool(graph: Graph, rows: Array) -> Graph:
    """What a graph of text makes of ``rows`` float32 [n, width] that stand where its pooling reads.

    They are looked up by the input :data:`ROWS`, in sequences of any number of tokens.
    """
    place = _pool_of(graph)
    tokens = {"name": TOKENS, "kind": "ragged", "max_rows": _MOST_ROWS}
    read = graph.ops[place]["in"]
    ops = [{**op, "in": _VALUE} if op.get("in") == read else op for op in graph.ops[place:]]
    # No prompt is among the rows.
    ops = [{field: value for field, value in op.items() if field != "skip"} for op in ops]
    index = {"name": ROWS, "domain": TOKENS, "dtype": "i32", "limit": len(rows)}
    part = _part(graph, ops, graph.output, [tokens, *graph.domains[1:]], [index])
    facts = {"format": "f32", "n": len(rows), "k": rows.shape[1], "layout": "rows"}
    return replace(
        part,
        ops=[{"op": "embed", "out": _VALUE, "tables": [{"weight": _TABLE, "index": ROWS}]}, *part.ops],
        weights={**part.weights, _TABLE: facts},
        params={**part.params, f"{_TABLE}.weight": as_table(rows)},
    )


def _pool_of(graph: Graph) -> int:
    return next(i for i, op in enumerate(graph.ops) if op["op"] == "pool")


def _part(
    graph: Graph, ops: list[Op], output: str, domains: list[dict[str, Any]], inputs: list[dict[str, Any]]
) -> Graph:
    weights = {op["weight"] for op in ops if op["op"] == "linear"}
    weights |= {table["weight"] for op in ops for table in op.get("tables", [])}
    names = {f"{weight}.{suffix}" for weight in weights for suffix in _SUFFIXES}
    names |= {value for op in ops for value in op.values() if isinstance(value, str)}
    states = {op[field] for op in ops for field in STATES if field in op}
    return replace(
        graph,
        domains=domains,
        inputs=inputs,
        weights={name: facts for name, facts in graph.weights.items() if name in weights},
        states=[state for state in graph.states if state["name"] in states],
        ops=ops,
        output=output,
        params={name: array for name, array in graph.params.items() if name in names},
    )


def as_table(rows: Array) -> Array:
    """A copy of float32 [n, k] as a table by rows lies in a file: aligned, and padded to a multiple of 64 bytes."""
    n, k = rows.shape
    return aligned(np.pad(rows, ((0, table_rows(n, k, rows.itemsize) - n), (0, 0))))


def aligned(array: Array) -> Array:
    """A copy that starts at a multiple of 64 bytes, as the runtime asks for."""
    memory = np.empty(array.nbytes + ALIGNMENT, np.uint8)
    begin = -memory.ctypes.data % ALIGNMENT
    copy: Array = memory[begin : begin + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy

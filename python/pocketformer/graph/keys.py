"""Kept keys and values in another dtype than a file has them in."""

from __future__ import annotations

from dataclasses import replace

from .model import Graph, Op

KEPT_DTYPES = ("int8", "fp16", "fp32")


def kept_dtype(graph: Graph) -> str | None:
    """Of the keys and values that outlive a run; None in a graph that keeps none."""
    return next((str(state["dtype"]) for state in graph.states if state.get("kept")), None)


def with_kept_dtype(graph: Graph, dtype: str) -> Graph:
    """``graph`` with kept keys and values of ``dtype``: queries are rounded for int8 ones alone.

    Raises ValueError for another dtype, for a graph that keeps nothing, and for ``int8`` where it keeps floats: how
    these are rounded is decided when a model is compressed.
    """
    if dtype not in KEPT_DTYPES:
        raise ValueError(f"kv is {dtype!r}; it must be one of {', '.join(KEPT_DTYPES)}, or None: as the file says")
    held = kept_dtype(graph)
    if held is None:
        raise ValueError(f"kv is {dtype!r}, but this model keeps no keys and values; leave it out")
    if dtype == held:
        return graph
    if dtype == "int8":
        raise ValueError(
            f"kv is 'int8', but this file has its attention in {held}: use fp16, or compress the model to int8 or int4"
        )
    kept = {state["name"] for state in graph.states if state.get("kept")}
    queries = {op["q"] for op in graph.ops if op["op"] == "attention" and op["state"] in kept}
    rounded = {op["out"]: op["in"] for op in graph.ops if op["op"] == "quantize_heads" and op["out"] in queries}
    ops: list[Op] = []
    for op in graph.ops:
        if op["op"] == "attention" and op["state"] in kept:
            ops.append(_without(op, "fine") | {"q": rounded.get(op["q"], op["q"])})
        elif op["op"] != "quantize_heads" or op["out"] not in rounded:
            ops.append(op)
    states = [_without(s, "rotate") | {"dtype": dtype} if s["name"] in kept else s for s in graph.states]
    return replace(graph, states=states, ops=ops)


def _without(entry: Op, field: str) -> Op:
    return {key: value for key, value in entry.items() if key != field}

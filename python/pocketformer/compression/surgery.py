"""Removes channels, heads and layers from a graph, physically: what is left is a smaller graph like any other."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import numpy as np

from ..graph import READS, STATES, TENSORS, Array, Graph, Op
from ..lazy import lazy, take_rows
from .channels import Channels, Space


def remove_units(graph: Graph, channels: Channels, removed: Array) -> Graph:
    """``graph`` without the units ``removed`` (labels of ``channels``, which were made of it).

    Parameters are read when they are used. Raises ValueError where nothing would be left of a space.
    """
    leaves = np.zeros(1 + max((int(labels.max(initial=0)) for labels in channels.axes.values()), default=0), bool)
    leaves[removed] = True
    for space in channels.spaces.values():
        if leaves[space.units].all():
            raise ValueError(f"all {len(space.units)} units of {space.name} would be removed; keep at least one")
    kept = {axis: np.flatnonzero(~leaves[labels]) for axis, labels in channels.axes.items()}
    changed = {axis: indices for axis, indices in kept.items() if len(indices) < len(channels.axes[axis])}
    params = dict(graph.params)
    for name in {name for name, _ in changed}:
        params[name] = _selected(graph.params[name], changed.get((name, 0)), changed.get((name, 1)))
    weights = {
        name: {
            **facts,
            "n": len(kept[f"{name}.weight", 0]) if (f"{name}.weight", 0) in changed else facts["n"],
            "k": len(kept[f"{name}.weight", 1]) if (f"{name}.weight", 1) in changed else facts["k"],
        }
        for name, facts in graph.weights.items()
    }
    return replace(
        graph,
        weights=weights,
        states=_states(graph, channels, removed),
        ops=_ops(graph, channels, removed),
        params=params,
    )


def mask_units(graph: Graph, channels: Channels, removed: Array) -> Graph:
    """``graph`` with zeros where ``remove_units`` cuts: the same function, no byte or multiplication saved."""
    params = dict(graph.params)
    for (name, axis), labels in channels.axes.items():
        gone = np.isin(labels, removed)
        if gone.any():
            params[name] = np.array(params[name])
            params[name][gone if axis == 0 else (slice(None), gone)] = 0
    return replace(graph, params=params)


def keep_units(space: Space, count: int, scores: Array) -> Array:
    """The units of ``space`` to remove so that the ``count`` with the highest ``scores`` stay."""
    order = np.argsort(-scores, kind="stable")
    removed: Array = np.sort(space.units[order[count:]])
    return removed


def layers(graph: Graph) -> list[tuple[int, int]]:
    """First operator and end of each layer: the longest run of like pieces, each with attention in it, between values
    that alone are read later.

    Empty where there are fewer than two.
    """
    cuts = _cuts(graph)
    kinds = [op["op"] for op in graph.ops]
    best: list[tuple[int, int]] = []
    for first, begin in enumerate(cuts):
        for end in cuts[first + 1 :]:
            if not any(op["op"] == "attention" for op in graph.ops[begin:end]):
                continue
            found, size = [(begin, end)], end - begin
            while found[-1][1] + size in cuts and kinds[found[-1][1] : found[-1][1] + size] == kinds[begin:end]:
                found.append((found[-1][1], found[-1][1] + size))
            if len(found) > 1 and len(found) >= len(best):
                best = found  # of runs as long the last: the norm of the tables belongs to no layer
    return best


def drop_layers(graph: Graph, dropped: Collection[int]) -> Graph:
    """``graph`` without the layers of these indices. Raises ValueError for an index that no layer has, or for all."""
    found = layers(graph)
    unknown = [index for index in dropped if not 0 <= index < len(found)]
    if unknown or len(set(dropped)) >= len(found):
        raise ValueError(
            f"layers {sorted(dropped)} cannot be dropped: there are {len(found)}, numbered from 0, and one must stay"
        )
    ops: list[Op] = []
    renamed: dict[str, str] = {}
    for index, op in enumerate(graph.ops):
        inside = next((i for i, (begin, end) in enumerate(found) if begin <= index < end), -1)
        if inside in dropped:
            begin, end = found[inside]
            before, after = str(graph.ops[begin - 1]["out"]), str(graph.ops[end - 1]["out"])
            renamed[after] = renamed.get(before, before)
            continue
        ops.append({key: renamed.get(value, value) if key in READS else value for key, value in op.items()})
    used = {op[key] for op in ops for key in ("weight", *TENSORS) if key in op}
    used |= {table["weight"] for op in ops for table in op.get("tables", [])}
    states = {op[field] for op in ops for field in STATES if field in op}
    return replace(
        graph,
        ops=ops,
        output=renamed.get(graph.output, graph.output),
        weights={name: facts for name, facts in graph.weights.items() if name in used},
        states=[state for state in graph.states if state["name"] in states],
        params={name: array for name, array in graph.params.items() if {name, name.removesuffix(".weight")} & used},
    )


def _cuts(graph: Graph) -> list[int]:
    """Places between operators at which one value alone is read later; the place is that of the operator after it."""
    last: dict[str, int] = {graph.output: len(graph.ops)}
    for index, op in enumerate(graph.ops):
        last |= {str(op[key]): index for key in (*READS, *STATES) if op.get(key) is not None}
    last[graph.output] = len(graph.ops)
    live: set[str] = set()
    cuts = []
    for index, op in enumerate(graph.ops[:-1]):
        live |= {op[key] for key in ("out", "state") if key in op}
        live = {name for name in live if last.get(name, -1) > index}
        if live == {op.get("out")}:
            cuts.append(index + 1)
    return cuts


def _states(graph: Graph, channels: Channels, removed: Array) -> list[dict[str, Any]]:
    keys = {op["state"]: channels.values[op["k"]] for op in graph.ops if op["op"] == "store"}
    return [
        {**state, "heads": int((~np.isin(keys[state["name"]], removed)).sum()) // state["head_dim"]}
        for state in graph.states
    ]


def _ops(graph: Graph, channels: Channels, removed: Array) -> list[Op]:
    ops = []
    for op in graph.ops:
        if op["op"] == "columns":
            stays = ~np.isin(channels.values[op["in"]], removed)
            begin, end = op["begin"], op["begin"] + op["width"]
            op = {**op, "begin": int(stays[:begin].sum()), "width": int(stays[begin:end].sum())}
        ops.append(op)
    return ops


def _selected(array: Array, rows: Array | None, columns: Array | None) -> Array:
    """The entries at ``rows`` and ``columns``; those of a matrix are read when they are used."""
    if array.ndim == 1:
        return np.asarray(array)[rows]
    part = array if rows is None else take_rows(array, rows)
    if columns is None:
        return part

    def chosen(begin: int, end: int) -> Array:
        return np.ascontiguousarray(np.asarray(part[begin:end])[:, columns])

    return lazy((len(part), len(columns)), chosen)

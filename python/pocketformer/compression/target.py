"""The graph that comes of rounding: formats, scales and rotations of weights, and attention in integers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ..graph import Graph, Op
from ..layout import MOST_GROUPS, hadamard_block
from .precision import FP16, Precision

FEW_ROWS = 16
"""Of a weight, whose size tells that of its scales."""
RANGE, LEAST_SCALE = 3.0, 2.0**-18
"""The range of a group over the mean square's root, and the least scale that float16, whose smallest step is 2^-24,
holds to within a hundredth: less than a tenth of what 4 bits lose."""


def as_quantized(
    graph: Graph,
    rotations: Mapping[str, int],
    precisions: Mapping[str, Precision] | None = None,
    zeros: Mapping[str, float] | None = None,
    attention: bool = True,
) -> Graph:
    """``graph`` without parameters, with ``attention`` that being int8, and the weights that ``rotations`` names being
    rounded, to int8 where ``precisions`` says nothing else; those that become fp16 need no rotation. Linears of the
    weights of ``zeros`` skip these.
    """
    weights = dict(graph.weights)
    for name, precision in (precisions or {}).items():
        if precision.bits == FP16:
            weights[name] = {**weights[name], "format": precision.format}
    for name, block in rotations.items():
        precision = (precisions or {}).get(name, Precision())
        half = precision.group and _scales_fit(graph, name, precision.group, block)
        rounded = {
            "format": precision.format,
            "group": precision.group,
            "rotate": block,
            "scales": "f16" if half else "",
            "bounded_pairs": precision.bounded_pairs,
        }
        weights[name] = {**weights[name], **{key: value for key, value in rounded.items() if value}}
    states, ops = graph.states, graph.ops
    if attention:
        states = _int8_states(graph)
        ops = _with_int8_queries(graph, {state["name"]: state for state in states})
    seen = zeros or {}
    ops = [{**op, "zeros": round(seen[op["weight"]], 4)} if op.get("weight") in seen else op for op in ops]
    return replace(graph, weights=weights, states=states, ops=ops, params={})


def _scales_fit(graph: Graph, name: str, group: int, block: int) -> bool:
    """Whether the scales of groups can be float16: those of weights so small that they would lose digits cannot."""
    weight = graph.params[f"{name}.weight"]
    rows = np.asarray(weight[: min(len(weight), FEW_ROWS)], np.float64)
    scale = RANGE * np.sqrt(np.mean(np.square(rows)) / max(block, 1)) / 127  # a rotated weight is divided by its block
    return bool(scale >= LEAST_SCALE) and rows.shape[1] // group <= MOST_GROUPS


def _int8_states(graph: Graph) -> list[dict[str, Any]]:
    """Queries and keys of decoders are rotated: without, their outliers cost five to eight times as much.

    So are those of encoders that are decoders in all but their mask: their heads are normalised.
    """
    normed = any(op["op"] == "norm" and op.get("heads", 1) > 1 for op in graph.ops)
    inverted = {op["out"] for op in graph.ops if op["op"] == "nystrom"}  # large numbers whose sums are small
    precise = {op["state"] for op in graph.ops if op["op"] == "store" and op["v"] in inverted}
    states = []
    for state in graph.states:
        if state["name"] in precise:
            states.append(state)
            continue
        block = hadamard_block(state["head_dim"]) if normed or state.get("kept") else 0
        states.append({**state, "dtype": "int8", **({"rotate": block} if block else {})})
    return states


def _with_int8_queries(graph: Graph, states: Mapping[str, dict[str, Any]]) -> list[Op]:
    """The operators with the queries of every attention rounded by head, and a finer softmax where texts are generated.

    There the steps of 7 bits cost as much as all other roundings of attention together.
    """
    ops: list[Op] = []
    for op in graph.ops:
        if op["op"] == "attention":
            for field, of in (("q", "state"), ("global_q", "global_state")):
                if field in op:
                    state = states[op[of] if of in op else op["state"]]
                    if state["dtype"] != "int8":
                        continue
                    rounded = f"{op[field]}.int8.{state['name']}"
                    facts = {name: state[name] for name in ("head_dim", "rotate") if name in state}
                    ops.append({"op": "quantize_heads", "in": op[field], "out": rounded, **facts})
                    op = {**op, field: rounded}
            if states[op["state"]].get("kept"):
                op = {**op, "fine": True}
        ops.append(op)
    return ops

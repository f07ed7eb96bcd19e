"""Fused-weight attention: projections of one head multiplied into each other, exactly.

A score is (Wq·x + bq)·(Wk·y + bk) = (Wkᵀ·Wq·x + Wkᵀ·bq)·y + terms of x alone, which softmax takes out: one matrix and a
bias for the queries, and the rows y themselves as keys of all heads. Likewise the rows are the values, and Wo·Wv the
one matrix that follows; as softmax's weights add up to 1, Wo·bv joins the bias behind it. (The fused-weight attention
of arXiv 2404.02945 keeps the values as they are; with both, the cached or stored rows are one head's.)

A head of P channels over E columns then has E·(E + N) numbers, N being the outputs behind it, in the place of
P·(E + N) and of its share of keys and values: less where E is below 2·P in the usual layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from ..graph import READS, Array, Graph, Op
from .dataflow import Dataflow

MAX_HEAD_DIM = 256


@dataclass(frozen=True)
class Fusion:
    """One attention that can be fused: the linear that projects, where its queries, keys and values begin, the store,
    the attention, and the linear that follows."""

    projection: Op
    begins: tuple[int, int, int]
    store: Op
    attention: Op
    out: Op
    heads: int
    kv_heads: int
    head_dim: int


def fuse_attention(graph: Graph) -> tuple[Graph, dict[str, str]]:
    """A plain fp32 ``graph`` with the same outputs, its attention fused where that has fewer parameters; and of each
    attention that stays, by the weight that projects for it, the reason."""
    found: dict[str, list[Fusion]] = {}
    reasons: dict[str, str] = {}
    flow = Dataflow(graph)
    for op in graph.ops:
        if op["op"] == "attention":
            try:
                fusion = _fusion(graph, flow, op)
                found.setdefault(fusion.projection["weight"], []).append(fusion)
            except ValueError as error:
                reasons[_place(flow, op)] = str(error)
    params, weights, states = dict(graph.params), dict(graph.weights), {state["name"]: state for state in graph.states}
    replaced: dict[int, list[Op]] = {}
    for name, fusions in found.items():
        try:
            _check(graph, flow, fusions)
        except ValueError as error:
            reasons[name] = str(error)
            continue
        for key, array in _fused(graph, fusions[0]).items():
            params[key] = array
            weight, _, part = key.rpartition(".")
            if part == "weight":
                weights[weight] = {**weights[weight], "n": array.shape[0], "k": array.shape[1]}
        for fusion in fusions:
            for op, ops in _rewritten(graph, fusion, params):
                replaced[id(op)] = ops
            state = fusion.store["state"]
            states[state] = {**states[state], "heads": 1, "head_dim": graph.weights[name]["k"]}
    if not replaced:
        return graph, reasons
    ops = [new for op in graph.ops for new in replaced.get(id(op), [op])]
    read = {str(value) for op in ops for value in (op.get(field) for field in READS) if value is not None}
    ops = [op for op in ops if op["op"] != "columns" or op["out"] in read]
    used = {op[field] for op in ops for field in ("bias", "frequencies", "rows") if op.get(field) is not None}
    gone = {op["bias"] for fusions in found.values() for f in fusions for op in (f.projection, f.out) if "bias" in op}
    params = {name: array for name, array in params.items() if name not in gone - used}
    fused = replace(graph, weights=weights, states=list(states.values()), ops=ops, params=params)
    return fused, reasons


def _place(flow: Dataflow, attention: Op) -> str:
    op = flow.writer.get(attention["q"], attention)
    while "in" in op and op["op"] != "linear" and op["in"] in flow.writer:
        op = flow.writer[op["in"]]
    return str(op.get("weight", attention["out"]))


def _fusion(graph: Graph, flow: Dataflow, attention: Op) -> Fusion:
    """Raises ValueError that says why ``attention`` cannot be fused."""
    given = [name for name in ("global_q", "global_state") if name in attention]
    if given:
        raise ValueError(f"its {' and '.join(given)} are projections of their own")
    store = flow.stores[attention["state"]]
    if sum(op.get("state") == attention["state"] for op in graph.ops) > 2:
        raise ValueError("its keys and values are read by others too")
    state = next(state for state in graph.states if state["name"] == attention["state"])
    widths = graph.widths()
    begins, projections = [], []
    for value in (attention["q"], store["k"], store["v"]):
        begin, op = 0, flow.writer.get(value, {"op": "an input"})
        while op["op"] == "columns":
            begin, op = begin + op["begin"], flow.writer.get(op["in"], {"op": "an input"})
        if op["op"] != "linear" or {"multiply", "residual"} & set(op) or op.get("activation", "none") != "none":
            raise ValueError(f"{value} is what {op['op']} makes of a projection, which fuses with no other")
        begins.append(begin)
        projections.append(op)
    if any(op is not projections[0] for op in projections):
        raise ValueError("queries, keys and values are projected apart")
    for value in (attention["q"], store["k"], store["v"]):
        while value != projections[0]["in"]:
            if any(op["op"] != "columns" and op is not attention and op is not store for op in _readers(graph, value)):
                raise ValueError(f"{value} is read by others too")
            value = flow.writer[value]["in"]
    readers = _readers(graph, attention["out"])
    if len(readers) != 1 or readers[0]["op"] != "linear" or readers[0]["in"] != attention["out"]:
        raise ValueError("no linear alone reads what it mixes")
    head_dim = state["head_dim"]
    heads, kv_heads = widths[attention["q"]] // head_dim, state["heads"]
    q, k, v = begins
    return Fusion(projections[0], (q, k, v), store, attention, readers[0], heads, kv_heads, head_dim)


def _readers(graph: Graph, value: str) -> list[Op]:
    return [op for op in graph.ops if value in (op.get(field) for field in READS)]


def _check(graph: Graph, flow: Dataflow, fusions: list[Fusion]) -> None:
    """Raises ValueError where the ``fusions`` that share one projection do not pay or are not all who read it."""
    first = fusions[0]
    name, out = first.projection["weight"], first.out["weight"]
    facts, after = graph.weights[name], graph.weights[out]
    e, n, p = facts["k"], after["n"], first.head_dim
    for weight, ops in ((name, [f.projection for f in fusions]), (out, [f.out for f in fusions])):
        if len(flow.linears[weight]) != len({id(op) for op in ops}) or weight in flow.tables:
            raise ValueError(f"{weight} is read by others too")
    if any(f.begins != first.begins or f.heads != first.heads or f.head_dim != p for f in fusions):
        raise ValueError("it projects differently for those who share it")
    if e > MAX_HEAD_DIM:
        raise ValueError(f"its rows have {e} columns, and heads at most {MAX_HEAD_DIM}")
    if "bias" in first.projection and first.attention.get("softcap"):
        raise ValueError("its scores are capped, and what the bias of keys adds to them does not cancel")
    plain, fused = facts["n"] * e + n * after["k"], first.heads * e * (e + n)
    if fused >= plain:
        raise ValueError(
            f"{first.heads} heads of {p} over {e} columns: {first.heads}·{e}·({e} + {n}) = {fused:,} numbers fused, "
            f"{plain:,} apart; as a rule it pays where the columns are fewer than twice a head's channels"
        )


def _fused(graph: Graph, fusion: Fusion) -> Mapping[str, Array]:
    """The matrices [heads·E, E] and [N, heads·E] and their biases, products in float64."""
    name, out, p = fusion.projection["weight"], fusion.out["weight"], fusion.head_dim
    weight = np.asarray(graph.params[f"{name}.weight"]).astype(np.float64)
    after = np.asarray(graph.params[f"{out}.weight"]).astype(np.float64)
    bias = np.zeros(len(weight))
    if "bias" in fusion.projection:
        bias = np.asarray(graph.params[fusion.projection["bias"]]).astype(np.float64)
    queries, shifts, outputs, total = [], [], [], np.zeros(len(after))
    for head in range(fusion.heads):
        shared = head // (fusion.heads // fusion.kv_heads)
        q, k, v = (
            slice(b + i * p, b + (i + 1) * p) for b, i in zip(fusion.begins, (head, shared, shared), strict=True)
        )
        behind = after[:, head * p : (head + 1) * p]
        queries.append(weight[k].T @ weight[q])
        shifts.append(weight[k].T @ bias[q])
        outputs.append(behind @ weight[v])
        total += behind @ bias[v]
    fused = {f"{name}.weight": np.concatenate(queries), f"{out}.weight": np.concatenate(outputs, axis=1)}
    if bias.any():
        fused |= {f"{name}.fused_bias": np.concatenate(shifts)}
        own = graph.params[fusion.out["bias"]] if "bias" in fusion.out else 0.0
        fused |= {f"{out}.fused_bias": total + np.asarray(own)}
    return {key: array.astype(np.float32) for key, array in fused.items()}


def _rewritten(graph: Graph, fusion: Fusion, params: Mapping[str, Array]) -> list[tuple[Op, list[Op]]]:
    """What the operators of ``fusion`` become."""
    projection, out = dict(fusion.projection), dict(fusion.out)
    for op in (projection, out):
        if f"{op['weight']}.fused_bias" in params:
            op["bias"] = f"{op['weight']}.fused_bias"
    if projection.get("bias") != f"{projection['weight']}.fused_bias":
        projection.pop("bias", None)
    rows = projection["in"]
    return [
        (fusion.projection, [projection]),
        (fusion.store, [{**fusion.store, "k": rows, "v": rows}]),
        (fusion.attention, [{**fusion.attention, "q": projection["out"]}]),
        (fusion.out, [out]),
    ]

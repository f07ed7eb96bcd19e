"""Narrows the residual stream: its principal components, folded into every weight that writes or reads it.

A stream that RMS norms alone read may be rotated: x·Q has the norms of x, and what reads the normalised rows takes
W·diag(g)·Q with the weight g of its norm (SliceGPT, arXiv 2401.15024, with one rotation for the whole stream, so that
nothing is added to it). A layer norm subtracts the mean first, which all writers can do instead. What the first d'
components leave out, readers make up for by least squares on what they were seen to read.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..graph import TENSORS, Array, Graph, Op
from ..lazy import lazy
from .dataflow import Dataflow, inputs
from .quantize import Profiler, calibrated_profiler
from .refit import refit

COMMUTE = ("mean", "cls", "last", "mean_sqrt", "weighted_mean")
"""Poolings that a rotation of the columns passes."""


@dataclass(frozen=True)
class Stream:
    """The residual stream of a graph: its ``values``, and the ``norms`` that read it, by what they write."""

    values: frozenset[str]
    norms: tuple[str, ...]
    width: int


def find_stream(graph: Graph) -> Stream:
    """The stream that begins at the first embedding. Raises ValueError that says why it cannot be turned."""
    first = next((op for op in graph.ops if op["op"] == "embed"), None)
    if first is None:
        raise ValueError("the width cannot be changed: the model has no table that its rows begin with")
    values = {first["out"]}
    while True:
        ties = {value for op in graph.ops for value in _tied(op) if values & set(_tied(op))}
        if ties <= values:
            break
        values |= ties
    for op in graph.ops:
        if op.get("out") in values and op["op"] == "norm":
            raise ValueError(
                f"the width cannot be changed: the norm {op['weight']} is part of the residual (post-norm or sandwich) "
                "and scales single channels of it"
            )
        if op.get("out") in values and op["op"] == "linear" and (op.get("activation", "none") != "none"):
            raise ValueError(f"the width cannot be changed: {op['weight']} writes the residual through an activation")
        if op.get("out") in values and "multiply" in op:
            raise ValueError(f"the width cannot be changed: what {op['weight']} adds to the residual is multiplied")
        read = values & (set(inputs(op)) - (set(_tied(op)) if op.get("out") in values else set()))
        if op["op"] in ("linear", "norm") and op.get("in") in values:
            read.add(op["in"])  # beside what it adds to
        if read and not (op["op"] == "norm" and op.get("heads", 1) == 1 and "residual" not in op):
            raise ValueError(f"the width cannot be changed: {op['op']} reads the residual as it is, without a norm")
    if not any(op["op"] == "linear" and op.get("residual") in values for op in graph.ops):
        raise ValueError(
            "the width cannot be changed: a norm is part of the residual, and scales single channels of it"
        )
    if graph.output in values:
        raise ValueError("the width cannot be changed: the residual is the output, without a norm")
    norms = tuple(op["out"] for op in graph.ops if op["op"] == "norm" and op["in"] in values)
    kinds = {op["kind"] for op in graph.ops if op.get("out") in norms}
    if len(kinds) != 1:
        raise ValueError("the width cannot be changed: the residual is read by layer norms and by RMS norms")
    return Stream(frozenset(values), norms, graph.widths()[first["out"]])


def _tied(op: Op) -> tuple[str, ...]:
    """The values of ``op`` that are the stream if one of them is."""
    if op["op"] in ("embed", "prepend", "select") or (op["op"] == "pool" and op["kind"] in COMMUTE):
        return tuple(value for value in (op["out"], op.get("in")) if value)
    if op["op"] in ("linear", "norm") and op.get("residual"):
        return (op["out"], op["residual"])
    return ()


def fold_norms(graph: Graph, stream: Stream) -> Graph:
    """``graph``, the same function, whose stream has norms without weights: they are in the linears that read them.

    Layer norms become RMS norms, the mean being taken from what is written. A row that more than linears read, such as
    the output, gets a linear of its own, and so does a weight that norms with other weights, or a table, share.
    """
    ops: list[Op] = []
    weights, params = dict(graph.weights), dict(graph.params)
    flow, users = Dataflow(graph), {op["out"]: op for op in graph.ops if op.get("out") in stream.norms}
    layer = next(iter(users.values()))["kind"] == "layer"
    for op in graph.ops:
        if op.get("out") in users:
            out, width = op["out"], stream.width
            plain = _foldable(graph, out)
            written = out if plain else f"{out}.unit"
            unit = {key: value for key, value in op.items() if key not in ("weight", "bias")}
            ops.append({**unit, "kind": "rms", "out": written, "weight": f"{out}.ones"})
            params[f"{out}.ones"] = np.ones(width, np.float32)
            if not plain:
                name = f"{out}.scale"
                weights[name] = {"format": "f32", "n": width, "k": width}
                params[f"{name}.weight"] = np.diag(np.asarray(params[op["weight"]], np.float32))
                bias = {"bias": op["bias"]} if "bias" in op else {}
                ops.append({"op": "linear", "in": written, "out": out, "weight": name, **bias})
            continue
        norm = users.get(op.get("in", "")) if op["op"] == "linear" else None
        if norm is not None and _foldable(graph, op["in"]):
            name = op["weight"]
            norms = [users.get(other["in"], {}) for other in flow.linears[name]]
            if name in flow.tables or len({(of.get("weight"), of.get("bias")) for of in norms}) > 1:
                name = f"{name}.{op['out']}"
                weights[name] = dict(graph.weights[op["weight"]])
            array = np.asarray(graph.params[f"{op['weight']}.weight"], np.float64)
            scaled: Array = array * np.asarray(graph.params[norm["weight"]], np.float64)
            params[f"{name}.weight"] = scaled.astype(np.float32)
            op = {**op, "weight": name}
            if "bias" in norm:
                moved = array @ np.asarray(graph.params[norm["bias"]], np.float64)
                moved += np.asarray(graph.params[op["bias"]], np.float64) if "bias" in op else 0
                op = {**op, "bias": f"{op['out']}.bias"}
                params[op["bias"]] = moved.astype(np.float32)
        ops.append(op)
    folded = _tidy(replace(graph, ops=ops, weights=weights, params=params))
    return _written(folded, stream, None) if layer else folded


def _foldable(graph: Graph, value: str) -> bool:
    """Whether linears multiply ``value`` by their weights, and nothing else reads it."""
    readers = [op for op in graph.ops if value in inputs(op)]
    return value != graph.output and all(
        op["op"] == "linear" and value not in (op.get("multiply"), op.get("residual")) for op in readers
    )


def _written(graph: Graph, stream: Stream, turn: Array | None) -> Graph:
    """``graph`` with all that is written to the stream turned by ``turn`` [width, d'], or, where that is None, without
    its mean. Raises ValueError for a weight that writes something else too."""
    params, done = dict(graph.params), set()

    def columns(name: str) -> None:
        array = graph.params[name]
        if name in done:
            return
        done.add(name)

        def rows(begin: int, end: int) -> Array:
            part = np.asarray(array[begin:end], np.float64)
            turned = part - part.mean(axis=-1, keepdims=True) if turn is None else part @ turn
            result: Array = turned.astype(np.float32)
            return result

        width = array.shape[-1] if turn is None else turn.shape[1]
        params[name] = rows(0, len(array)) if array.ndim == 1 else lazy((len(array), width), rows)

    for op in graph.ops:
        if op.get("out") not in stream.values:
            continue
        for table in op.get("tables", []):
            columns(f"{table['weight']}.weight")
        if op["op"] == "prepend":
            columns(op["rows"])
        if op["op"] == "linear" and op["weight"] not in done:
            done.add(op["weight"])
            array = np.asarray(graph.params[f"{op['weight']}.weight"], np.float64)
            turned = array - array.mean(axis=0) if turn is None else turn.T @ array
            params[f"{op['weight']}.weight"] = turned.astype(np.float32)
        if op["op"] == "linear" and "bias" in op and op["bias"] not in done:
            done.add(op["bias"])
            bias = np.asarray(graph.params[op["bias"]], np.float64)
            params[op["bias"]] = (bias - bias.mean() if turn is None else bias @ turn).astype(np.float32)
    for op in graph.ops:
        if op.get("out") not in stream.values and done & {op.get("weight"), op.get("bias")} - {None}:
            raise ValueError(f"the width cannot be changed: {op.get('weight')} writes more than the residual")
    return replace(graph, params=params)


def _tidy(graph: Graph) -> Graph:
    """``graph`` without weights and parameters that no operator names."""
    used = {op[key] for op in graph.ops for key in ("weight", *TENSORS) if op.get(key)}
    used |= {table["weight"] for op in graph.ops for table in op.get("tables", [])}
    return replace(
        graph,
        weights={name: facts for name, facts in graph.weights.items() if name in used},
        params={name: array for name, array in graph.params.items() if {name, name.removesuffix(".weight")} & used},
    )


def rounded_stream(width: int, share: float) -> int:
    """The width nearest to ``share`` of ``width`` in whole panels, 64 columns, or 16 of a small model. Raises
    ValueError for a share outside 0…1."""
    if not 0 < share <= 1:
        raise ValueError(f"width is {share}; it must be above 0 and at most 1")
    multiple = 64 if width >= 256 else 16
    return width if share == 1 else min(max(round(share * width / multiple), 1) * multiple, width)


def narrow(graph: Graph, width: int, profiler: Profiler) -> Graph:
    """``graph``, plain fp32, with a residual stream of ``width`` principal components, as ``profiler`` sees them.

    With the model's own width it is the same function. The output keeps its width. Raises ValueError where the stream
    cannot be turned, with the reason, and for a profile that was kept.
    """
    stream = find_stream(graph)
    if profiler.calibration is None:
        raise ValueError(
            "the width is changed by what the model is run on, and a kept profile has none; give the texts"
        )
    if not 0 < width <= stream.width:
        raise ValueError(f"width is {width}; it must lie in 1…{stream.width}")
    folded = fold_norms(graph, stream)
    flow = Dataflow(folded)
    norms = {op["out"]: op for op in folded.ops if op["op"] == "norm" and op["in"] in stream.values}
    readers = [name for name, ops in flow.linears.items() if any(op["in"] in norms for op in ops)]
    moments: dict[str, Array] = {}
    total = np.zeros((stream.width, stream.width))
    for observer in calibrated_profiler(folded, profiler.calibration)(readers):
        if observer.rows:
            moments |= dict.fromkeys(observer.weights, observer.moments)
            total += observer.moments / observer.rows
    _, vectors = np.linalg.eigh(total)
    turn = vectors[:, ::-1]
    turned = _written(folded, stream, turn[:, :width])
    params, weights, kept = dict(turned.params), dict(turned.weights), np.arange(width)
    for name in readers:
        array = np.asarray(folded.params[f"{name}.weight"], np.float64) @ turn
        if name in moments and width < stream.width:
            array = refit(array, turn.T @ moments[name] @ turn, kept)
        params[f"{name}.weight"] = array[:, :width].astype(np.float32)
    grown = stream.width / width
    for out in norms:
        params[norms[out]["weight"]] = np.full(width, grown**0.5, np.float32)
    ops = [{**op, "eps": op["eps"] * grown} if op.get("out") in norms else op for op in turned.ops]
    for name, facts in weights.items():
        n, k = params[f"{name}.weight"].shape
        weights[name] = {**facts, "n": n, "k": k}
    return replace(turned, ops=ops, params=params, weights=weights)

"""Scales of channels that move range from activations to weights before both are rounded, folded exactly.

Where rows x are multiplied by W, x/s and W·s have the same products. 1/s is folded into what writes x: the weight and
bias of a norm, the rows of V before attention mixes them, the rows of the linear that a gate multiplies, or the rows of
a linear before ReLU. Rotation does more (docs/compression.md), so this is for inputs that it cannot spread.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from ..graph import Array, Graph, Op
from .dataflow import Dataflow, inputs
from .profile import Observer

METHODS = ("auto", "none", "smooth", "awq")
SMALL_BLOCK = 16
"""Inputs that this does not divide have smaller rotation blocks, and an outlier stays one there: they are scaled where
nothing else is asked for."""
ALPHA = 0.5
GRID = tuple(step / 20 for step in range(20))


@dataclass(frozen=True)
class Producer:
    """What 1/s of the inputs of ``readers`` is folded into: rows ``begin`` to ``end`` of the parameters ``names``.

    ``repeat`` [K] says which of these rows each input comes from: with grouped queries several inputs come from one.
    """

    readers: tuple[str, ...]
    names: tuple[str, ...]
    begin: int
    end: int
    rows: Array


def producer(graph: Graph, weight: str) -> Producer:
    """Where the scales of the inputs of ``weight`` fold. Raises ValueError that says why they do not."""
    flow, widths = Dataflow(graph), graph.widths()
    values = flow.rows_of(weight)
    if len(values) != 1:
        raise ValueError(f"{weight} is multiplied by {len(values)} values, which would need one scale")
    value, k = values[0], graph.weights[weight]["k"]
    readers = _readers(graph, value, "what it reads")
    op, rows = flow.writer.get(value, {"op": "input"}), np.arange(k)
    if op["op"] == "attention":
        store = flow.stores[op["state"]]
        state = next(state for state in graph.states if state["name"] == op["state"])
        if sum(other.get("state") == op["state"] for other in graph.ops) > 2:
            raise ValueError(f"{weight} reads attention whose values are read elsewhere too")
        heads, head_dim = k // state["head_dim"], state["head_dim"]
        shared = np.repeat(np.arange(state["heads"]), heads // state["heads"])
        rows = (shared[:, None] * head_dim + np.arange(head_dim)).ravel()
        value, op = store["v"], flow.writer.get(store["v"], {"op": "input"})
        _only(graph, value, store, weight)
    begin, end = 0, widths[value]
    while op["op"] == "columns":
        _apart(graph, op)
        begin, end = op["begin"] + begin, op["begin"] + end
        value, op = op["in"], flow.writer.get(op["in"], {"op": "input"})
    if op["op"] == "norm" and op.get("heads", 1) == 1 and "residual" not in op:
        names: tuple[str, ...] = (op["weight"],)
    elif op["op"] == "linear" and "residual" not in op:
        if op.get("activation", "none") not in ("none", "relu") and "multiply" not in op:
            raise ValueError(f"{weight} reads {op['weight']} through {op['activation']}, which no scale passes")
        if "multiply" in op:
            _only(graph, op["multiply"], op, weight)
            value, op = op["multiply"], flow.writer[op["multiply"]]
        if op["op"] != "linear" or op.get("activation", "none") not in ("none", "relu") or "multiply" in op:
            raise ValueError(f"{weight} reads what is multiplied by no plain linear")
        if len(flow.linears[op["weight"]]) > 1 or op["weight"] in flow.tables:
            raise ValueError(f"{weight} reads {op['weight']}, which is used elsewhere too")
        names = (f"{op['weight']}.weight",)
    else:
        raise ValueError(f"{weight} reads what {op['op']} writes, into which no scale folds")
    names += (op["bias"],) if "bias" in op else ()
    if any(name in other.values() for name in names for other in graph.ops if other is not op):
        raise ValueError(f"{weight} reads what parameters write that are used elsewhere too")
    return Producer(readers, names, begin, end, rows)


def _readers(graph: Graph, value: str, what: str) -> tuple[str, ...]:
    """The linears that read ``value``. Raises ValueError where anything else does, as the residual of a post-norm."""
    readers = []
    for op in graph.ops:
        if value in inputs(op):
            if op["op"] != "linear" or op.get("multiply") == value or op.get("residual") == value:
                how = "as a residual" if op.get("residual") == value else "too"
                raise ValueError(f"{what}, {value}, is read by {op['op']} {how}, unscaled")
            readers.append(op["weight"])
    if graph.output == value:
        raise ValueError(f"{what}, {value}, is the output")
    return tuple(dict.fromkeys(readers))


def _only(graph: Graph, value: str, reader: Op, weight: str) -> None:
    if sum(value in inputs(op) for op in graph.ops) > 1:
        raise ValueError(f"{weight} reads {value}, which is read elsewhere too than by {reader['op']}")


def _apart(graph: Graph, columns: Op) -> None:
    """Raises ValueError where other columns of a value are read than apart from these."""
    begin, end = columns["begin"], columns["begin"] + columns["width"]
    for op in graph.ops:
        if op is not columns and columns["in"] in inputs(op):
            if op["op"] == "columns" and (op["begin"] >= end or op["begin"] + op["width"] <= begin):
                continue
            raise ValueError(f"{columns['in']} is read by {op['op']} too, unscaled")


def fold(graph: Graph, found: Producer, scale: Array) -> Graph:
    """``graph`` with the inputs of the readers divided by ``scale`` float [rows of the producer] and the weights'
    columns multiplied by it: the same function."""
    params = dict(graph.params)
    for name in found.names:
        array = np.array(params[name], np.float64)
        rows = array[found.begin : found.end]
        rows /= scale[:, None] if array.ndim == 2 else scale
        params[name] = array.astype(np.float32)
    for reader in found.readers:
        weight = np.asarray(params[f"{reader}.weight"], np.float64) * scale[found.rows]
        params[f"{reader}.weight"] = weight.astype(np.float32)
    return replace(graph, params=params)


def smooth(weights: Array, seen: Observer, rows: Array, count: int) -> Array:
    """SmoothQuant (arXiv 2211.10438): max|x|^α / max|W|^(1−α) of each channel."""
    x, w = (_by_row(np.maximum, of, rows, count) for of in (seen.highest, np.abs(weights).max(axis=0)))
    return _even(x**ALPHA / np.where(w > 0, w, 1) ** (1 - ALPHA), (x > 0) & (w > 0))


def awq(weights: Array, seen: Observer, rows: Array, count: int) -> Array:
    """AWQ's scales (arXiv 2306.00978): mean|x|^r, with the r of a grid at which rounding the weights to 4 bits, a scale
    a channel, costs the products least; r = 0, which is among them, scales nothing."""
    mean = _by_row(np.add, seen.total, rows, count) / max(seen.rows, 1)
    best, least = np.ones(count), np.inf
    for power in GRID:
        scale = _even(np.maximum(mean**power, 1e-4), mean > 0)
        scaled = weights * scale[rows]
        step = np.abs(scaled).max(axis=1, keepdims=True) / 7
        step[step == 0] = 1
        error = float((np.square((np.rint(scaled / step) * step - scaled) / scale[rows]) @ seen.squares).sum())
        if error < least:
            best, least = scale, error
    return best


CHOOSE: Mapping[str, Callable[[Array, Observer, Array, int], Array]] = {"smooth": smooth, "awq": awq}


def _by_row(of: np.ufunc, values: Array, rows: Array, count: int) -> Array:
    result = np.zeros(count)
    of.at(result, rows, values)
    return result


def _even(scale: Array, known: Array) -> Array:
    """``scale`` with 1 where nothing is ``known``, its largest as far above 1 as its least is below."""
    if not known.any():
        return np.ones(len(scale))
    middle = np.sqrt(scale[known].max() * scale[known].min())
    return np.where(known, scale / middle, 1.0)


def scaled(
    graph: Graph,
    names: Collection[str],
    method: str,
    observe: Callable[[list[str]], Iterable[Observer]],
) -> tuple[Graph, dict[str, str]]:
    """``graph`` with the inputs of the linears ``names`` scaled by ``method`` where that folds; and of each of the
    others the reason why it does not. ``observe`` gives the observers of linears.
    """
    places: dict[tuple[str, ...], Producer] = {}
    refused: dict[str, str] = {}
    for name in names:
        try:
            found = producer(graph, name)
        except ValueError as error:
            refused[name] = str(error)
        else:
            places[found.readers] = found
    firsts = {readers[0]: found for readers, found in places.items()}
    for observer in observe(list(firsts)) if firsts else ():
        for name in observer.weights:
            found = firsts[name]
            if observer.rows:
                weights = np.concatenate([np.asarray(graph.params[f"{r}.weight"], np.float64) for r in found.readers])
                scale = CHOOSE[method](weights, observer, found.rows, found.end - found.begin)
                graph = fold(graph, found, scale)
    return graph, refused

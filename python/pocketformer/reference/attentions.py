"""Attention in linear time, and with learnt scores: each by its formula, quadratic where that is what it stands for."""

from __future__ import annotations

import numpy as np

from ..graph import Array, Graph, Op
from .attention import heads_of
from .batch import Batch


def _softmax(scores: Array) -> Array:
    raised: Array = np.exp(scores - scores.max(axis=-1, keepdims=True))
    result: Array = raised / raised.sum(axis=-1, keepdims=True)
    return result


def linear_attention(op: Op, graph: Graph, batch: Batch, of: str, inputs: list[Array]) -> Array:
    """By its quadratic form: what every query says of every key, features times features."""
    root, features = np.sqrt(op["scale"]), graph.params[op["features"]].astype(np.float64)
    q, k, v = (heads_of(x.astype(np.float64), x.shape[1] // op["heads"]) for x in inputs)
    result = np.empty(inputs[2].shape, np.float32)
    for rows in batch.sequences[of]:
        raised = []
        for x, axes in ((q[:, rows], 2), (k[:, rows], (1, 2))):
            projected = root * (x @ features.T)
            shift = np.square(x).sum(axis=2, keepdims=True) * op["scale"] / 2 + projected.max(axis=axes, keepdims=True)
            raised.append(np.exp(projected - shift) + op["eps"])
        seen = raised[0] @ raised[1].swapaxes(1, 2)
        seen = np.tril(seen) if op.get("causal") else seen
        mixed = seen @ v[:, rows] / seen.sum(axis=2, keepdims=True)
        result[rows] = mixed.swapaxes(0, 1).reshape(rows.stop - rows.start, -1)
    return result


def nystrom(op: Op, graph: Graph, batch: Batch, of: str, inputs: list[Array]) -> Array:
    x, q, k = (heads_of(value.astype(np.float64), value.shape[1] // op["heads"]) for value in inputs)
    result, unit = np.empty(inputs[0].shape, np.float32), np.eye(graph.max_rows(of))
    for rows in batch.sequences[of]:
        a = _softmax(q[:, rows] @ k[:, rows].swapaxes(1, 2) * op["scale"])
        z = a.swapaxes(1, 2) / a.sum(axis=1).max()
        for _ in range(op["iterations"]):
            az = a @ z
            z = z @ (13 * unit - az @ (15 * unit - az @ (7 * unit - az))) / 4
        result[rows] = (z @ x[:, rows]).swapaxes(0, 1).reshape(rows.stop - rows.start, -1)
    return result


def mix(op: Op, graph: Graph, batch: Batch, of: str, inputs: list[Array]) -> Array:
    heads = heads_of(inputs[0].astype(np.float64), inputs[0].shape[1] // op.get("heads", 1))
    result = np.empty((batch.rows(op["domain"]), inputs[0].shape[1]), np.float32)
    for rows, mixed in zip(batch.sequences[of], batch.sequences[op["domain"]], strict=True):
        weight = graph.params[op["weight"]][:, : mixed.stop - mixed.start, : rows.stop - rows.start].astype(np.float64)
        if op.get("softmax"):
            weight = _softmax(weight)
        result[mixed] = (weight @ heads[:, rows]).swapaxes(0, 1).reshape(mixed.stop - mixed.start, -1)
    return result

"""Operators whose rows know nothing of each other, and what is made of all rows of a sequence."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np

from ..graph import Array, Graph, Op
from ..hadamard import hadamard
from ..packing import scales_of
from .batch import Batch


def erf(x: Array) -> Array:
    """erf in float64 to 1e-14: the nearest entry of a table of ``math.erf`` and four Taylor terms."""
    magnitude = np.minimum(np.abs(x).astype(np.float64), 6.0)
    nearest = np.rint(magnitude * 256).astype(np.int64)
    t = nearest / 256
    h = magnitude - t
    slope = 2 / math.sqrt(math.pi) * np.exp(-t * t)
    series = h * (1 + h * (-t + h * ((2 * t * t - 1) / 3 + h * (3 * t - 2 * t**3) / 6)))
    result: Array = np.sign(x) * (_ERF[nearest] + slope * series)
    return result


_ERF = np.array([math.erf(step / 256) for step in range(6 * 256 + 1)])


def _gelu_tanh(x: Array) -> Array:
    result: Array = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return result


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "none": lambda x: x,
    "gelu": lambda x: 0.5 * x * (1 + erf(x / math.sqrt(2))),
    "gelu_tanh": _gelu_tanh,
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: 0.5 * x * (1 + np.tanh(0.5 * x)),
    "tanh": np.tanh,
}


def quantize(x: Array) -> tuple[Array, Array]:
    """Rows of the last axis as whole numbers −127…127, in float64 for exact products, and one float32 scale each."""
    amax = np.abs(x).max(axis=-1, keepdims=True)
    inverse = np.divide(np.float32(127), amax, out=np.zeros_like(amax), where=amax > np.float32(1e-36))
    return np.rint(x * inverse).astype(np.float64), amax[..., 0] * np.float32(1 / 127)


def embed(op: Op, graph: Graph, batch: Batch, of: str, inputs: list[Array]) -> Array:
    total = inputs[0] if inputs else np.zeros((), np.float32)
    for table in op["tables"]:
        name = table["weight"]
        if table["index"] == "positions":
            index = batch.positions(of) + table.get("offset", 0)
        else:
            index = batch.inputs[table["index"]]
        found = graph.params[f"{name}.weight"][index]
        if f"{name}.codebook" in graph.params:
            found = graph.params[f"{name}.codebook"][found]
        found = found.astype(np.float32)
        if f"{name}.scale" in graph.params:
            scale, minimum = scales_of(name, graph.params)
            parts = found.reshape(len(found), *scale.shape[1:], -1) * scale[index][..., None]
            found = (parts if minimum is None else parts + minimum[index][..., None]).reshape(found.shape)
        total = total + hadamard(found, graph.weights[name].get("rotate", 0))
    return total * np.float32(op["scale"]) if "scale" in op else total


def norm(op: Op, graph: Graph, batch: Batch, of: str, inputs: list[Array]) -> Array:
    x = inputs[0].astype(np.float64).reshape(len(inputs[0]), op.get("heads", 1), -1)
    if op["kind"] == "layer":
        x = x - x.mean(axis=2, keepdims=True)
    x = x / np.sqrt(np.square(x).mean(axis=2, keepdims=True) + op["eps"])
    x = x * graph.params[op["weight"]] + (graph.params[op["bias"]] if "bias" in op else 0)
    scaled: Array = x.reshape(inputs[0].shape).astype(np.float32)
    return scaled + inputs[1] if "residual" in op else scaled


def summarize(op: Op, graph: Graph, batch: Batch, of: str, inputs: list[Array]) -> Array:
    size = next(domain["summarized"] for domain in graph.domains if domain["name"] == op["domain"])
    parts = []
    for rows in batch.sequences[of]:
        x = inputs[0][rows]
        whole = len(x) // size
        for block in range(whole):  # the last one has the rows behind it too
            total = (
                x[block * size : len(x) if block == whole - 1 else (block + 1) * size].astype(np.float64).sum(axis=0)
            )
            scaled = total / np.sqrt(np.square(total).mean() + op["eps"]) * graph.params[op["weight"]]
            parts.append(scaled[None].astype(np.float32))
        parts.append(x)
    return np.concatenate(parts)


def linear(op: Op, graph: Graph, batch: Batch, of: str, inputs: list[Array]) -> Array:
    x, *rest = inputs
    facts = graph.weights[op["weight"]]
    y = (_product_groups if facts.get("group") else PRODUCTS[facts["format"]])(x, op["weight"], graph)
    if "bias" in op:
        y = y + graph.params[op["bias"]].astype(np.float64)
    y = ACTIVATIONS[op.get("activation", "none")](y.astype(np.float32).astype(np.float64)).astype(np.float32)
    if "multiply" in op:
        y = y * rest.pop(0)
    return y + rest.pop(0) if "residual" in op else y


def _product_f32(x: Array, name: str, graph: Graph) -> Array:
    product: Array = x.astype(np.float64) @ graph.params[f"{name}.weight"].T.astype(np.float64)
    return product


def _product_i8(x: Array, name: str, graph: Graph) -> Array:
    q, scale = quantize(hadamard(x, graph.weights[name].get("rotate", 0)))
    sums = (q @ graph.params[f"{name}.weight"].T.astype(np.float64)).astype(np.float32)
    product: Array = sums * graph.params[f"{name}.scale"] * scale[:, None].astype(np.float64)
    return product


def _product_groups(x: Array, name: str, graph: Graph) -> Array:
    """Exact within each group, whose sums are scaled and added; a minimum counts for each unit of its inputs."""
    facts, values = graph.weights[name], graph.params[f"{name}.weight"]
    scales, minima = scales_of(name, graph.params)
    n, k = values.shape
    groups = k // facts["group"] if facts.get("group") else 1
    if f"{name}.codebook" in graph.params:
        values = graph.params[f"{name}.codebook"][values]
    rotated = hadamard(x, facts.get("rotate", 0))
    shares = {"group": 1, "half_group": 2}.get(facts.get("inputs", "row"), 0)
    units = groups * max(shares, 1)
    q, scale = quantize(rotated.reshape(len(x), units, -1) if shares else rotated)
    parts = q.reshape(len(q), units, -1)
    unit = scale.reshape(len(q), -1).astype(np.float64)  # a row's, or its groups', or their halves'
    weight = values.astype(np.float64).reshape(n, units, -1)
    sums = np.einsum("mgk,ngk->mng", parts, weight) * unit[:, None]
    product: Array = (sums * scales.reshape(n, groups).repeat(units // groups, axis=1)).sum(axis=2)
    if minima is not None:
        product += (parts.sum(axis=2) * unit) @ minima.reshape(n, groups).repeat(units // groups, axis=1).T
    return product


PRODUCTS: dict[str, Callable[[Array, str, Graph], Array]] = {
    "f32": _product_f32,
    "f16": _product_f32,
    "i8": _product_i8,
    "i4": _product_groups,
}


def columns(op: Op, graph: Graph, batch: Batch, of: str, inputs: list[Array]) -> Array:
    part: Array = inputs[0][:, op["begin"] : op["begin"] + op["width"]]
    return part


def pool(op: Op, graph: Graph, batch: Batch, of: str, inputs: list[Array]) -> Array:
    reduce: dict[str, Callable[[Array, Array], Array]] = {
        "mean": lambda x, numbers: x.mean(axis=0),
        "cls": lambda x, numbers: x[0],
        "max": lambda x, numbers: x.max(axis=0),
        "last": lambda x, numbers: x[-1],
        "mean_sqrt": lambda x, numbers: x.sum(axis=0) / math.sqrt(len(x)),
        "weighted_mean": lambda x, numbers: numbers @ x / numbers.sum(),
    }
    if next(domain["kind"] for domain in graph.domains if domain["name"] == op["domain"]) == "grid":
        count, pooled = graph.max_rows(op["domain"]), []
        for rows, i in itertools.product(batch.sequences[of], range(count)):
            length = rows.stop - rows.start
            first = i * length // count
            part = inputs[0][rows][first : max((i + 1) * length // count, first + 1)].astype(np.float64)
            pooled.append(reduce[op["kind"]](part, np.arange(1.0, len(part) + 1)))
        return np.stack(pooled)
    skipped = batch.inputs[op["skip"]] if "skip" in op else np.zeros(len(batch.sequences[of]), np.int64)
    pooled = []
    for rows, skip in zip(batch.sequences[of], skipped, strict=True):
        x = inputs[0][rows].astype(np.float64)
        first = min(op.get("begin", 0) + int(skip), len(x) - 1)
        pooled.append(reduce[op["kind"]](x[first:], np.arange(first + 1.0, len(x) + 1)))
    return np.stack(pooled)


def fit(op: Op, graph: Graph, batch: Batch, of: str, inputs: list[Array]) -> Array:
    result = np.zeros((batch.rows(op["domain"]), inputs[0].shape[1]), np.float32)
    if "fill" in op:
        result += graph.params[op["fill"]]
    for rows, fitted in zip(batch.sequences[of], batch.sequences[op["domain"]], strict=True):
        count = min(rows.stop - rows.start, fitted.stop - fitted.start)
        result[fitted.start : fitted.start + count] = inputs[0][rows.start : rows.start + count]
    return result


def convolve(op: Op, graph: Graph, batch: Batch, of: str, inputs: list[Array]) -> Array:
    weight, half = graph.params[op["weight"]].astype(np.float64), op["taps"] // 2
    parts = []
    for rows in batch.sequences[of]:
        padded = np.pad(inputs[0][rows].astype(np.float64), ((half, half), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, op["taps"], axis=0)
        parts.append(np.einsum("nct,tc->nc", windows, weight).astype(np.float32))
    result: Array = np.concatenate(parts)
    return result + inputs[1] if "residual" in op else result


def concat(op: Op, graph: Graph, batch: Batch, of: str, inputs: list[Array]) -> Array:
    return np.concatenate(inputs, axis=1)


def select(op: Op, graph: Graph, batch: Batch, of: str, inputs: list[Array]) -> Array:
    chosen: Array = inputs[0][batch.selected[op["domain"]]]
    return chosen


def normalize(op: Op, graph: Graph, batch: Batch, of: str, inputs: list[Array]) -> Array:
    x = inputs[0].astype(np.float64)
    unit: Array = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    return unit


def softcap(op: Op, graph: Graph, batch: Batch, of: str, inputs: list[Array]) -> Array:
    capped: Array = op["cap"] * np.tanh(inputs[0].astype(np.float64) / op["cap"])
    return capped

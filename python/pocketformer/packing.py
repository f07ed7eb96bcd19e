"""Packs plain parameters into the tensors of the pocket file, and back (docs/format.md, "Tensors of a layer").

A plain int8 weight is ``W.weight`` int8 [N, K] with ``W.scale`` float32 [N]; its sums appear when it is packed.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .graph import Array, Graph
from .layout import GROUP, LANES, attention_bias_width, fp32_panels, int8_panels, round_up, table_rows


def pad(array: Array, *shape: int) -> Array:
    """``array`` in the leading corner of zeros of ``shape``; its own memory when nothing is to be added."""
    if array.shape == shape:
        return np.ascontiguousarray(array)
    result = np.zeros(shape, array.dtype)
    result[tuple(slice(0, size) for size in array.shape)] = array
    return result


def pack_panels(weight: Array) -> Array:
    """[N, K] int8 → [Np/16, Kp/4, 16, 4]; [N, K] float32 → [Np/16, K, 16]."""
    n, k = weight.shape
    if weight.dtype == np.int8:
        panels, groups, _, _ = int8_panels(n, k)
        padded = pad(weight, panels * LANES, groups * GROUP)
        return np.ascontiguousarray(padded.reshape(panels, LANES, groups, GROUP).transpose(0, 2, 1, 3))
    panels, _, _ = fp32_panels(n, k)
    padded = pad(weight.astype(np.float32, copy=False), panels * LANES, k)
    return np.ascontiguousarray(padded.reshape(panels, LANES, k).transpose(0, 2, 1))


def unpack_panels(panels: Array, n: int, k: int) -> Array:
    """The inverse of ``pack_panels``: [N, K]."""
    order = (0, 2, 1, 3) if panels.ndim == 4 else (0, 2, 1)
    channels: Array = panels.transpose(order).reshape(panels.shape[0] * LANES, -1)
    return channels[:n, :k]


def pack_graph(graph: Graph) -> Graph:
    """The same graph with packed parameters, in the order in which the operators read them.

    Parameters that no operator names are left out. Raises KeyError when one is missing.
    """
    packed: dict[str, Array] = {}
    plain = graph.params
    linears = {op["weight"] for op in graph.ops if op["op"] == "linear"}

    def vector(name: str, length: int) -> None:
        if name in plain and name not in packed:
            packed[name] = pad(plain[name].astype(np.float32, copy=False), round_up(length, LANES))

    def matrix(name: str, *, panels: bool) -> None:
        weight = plain[f"{name}.weight"]
        if f"{name}.weight" in packed:
            return
        rows, width = weight.shape
        if panels:
            packed[f"{name}.weight"] = pack_panels(weight)
        else:
            stored = weight if weight.dtype == np.int8 else weight.astype(np.float32, copy=False)
            packed[f"{name}.weight"] = pad(stored, table_rows(rows, width, stored.itemsize), width)
        if weight.dtype == np.int8:
            vector(f"{name}.scale", rows)
            if panels:
                packed[f"{name}.colsum"] = pad(weight.sum(axis=1, dtype=np.int32), round_up(rows, LANES))

    for op in graph.ops:
        if op["op"] == "embed":
            for table in op["tables"]:
                matrix(table["weight"], panels=table["weight"] in linears)
        elif op["op"] == "linear":
            matrix(op["weight"], panels=True)
            vector(f"{op['weight']}.bias", op["n"])
        elif op["op"] == "norm":
            vector(f"{op['weight']}.weight", op["width"])
            vector(f"{op['weight']}.bias", op["width"])
        elif op["op"] == "attention" and op["bias"] is not None:
            bias = plain[op["bias"]].astype(np.float32, copy=False)
            packed[op["bias"]] = pad(bias, op["heads"], attention_bias_width(graph.max_length))
    return replace(graph, params=packed)


def unpack_graph(graph: Graph) -> Graph:
    """The same graph with plain parameters; a plain graph stays as it is."""
    params = dict(graph.params)

    def crop(name: str, *shape: int) -> None:
        if name in params:
            params[name] = params[name][tuple(slice(0, size) for size in shape)]

    def matrix(name: str, n: int, k: int) -> None:
        weight = params[f"{name}.weight"]
        params[f"{name}.weight"] = unpack_panels(weight, n, k) if weight.ndim > 2 else weight[:n]
        crop(f"{name}.scale", n)
        params.pop(f"{name}.colsum", None)

    for op in graph.ops:
        if op["op"] == "embed":
            for table in op["tables"]:
                matrix(table["weight"], table["rows"], op["width"])
        elif op["op"] == "linear":
            matrix(op["weight"], op["n"], op["k"])
            crop(f"{op['weight']}.bias", op["n"])
        elif op["op"] == "norm":
            crop(f"{op['weight']}.weight", op["width"])
            crop(f"{op['weight']}.bias", op["width"])
        elif op["op"] == "attention" and op["bias"] is not None:
            crop(op["bias"], op["heads"], 2 * graph.max_length - 1)
    return replace(graph, params=params)

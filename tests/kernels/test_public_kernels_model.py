"""pocketformer.kernels has the bits of a model that runs the same layer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from helpers.golden import NEAREST
from helpers.programs import ending_at, program
from pocketformer import _core, kernels
from pocketformer.compression.quantize import quantize_graph
from pocketformer.compression.target import as_quantized
from pocketformer.graph import Array, Graph, GraphBuilder, Table

IDS = np.arange(40, dtype=np.int32)
OFFSETS = np.array([0, 25, 40], np.int64)


def floats(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float32)


def rows_of(graph: Graph, value: str) -> Array:
    return _core.Session(program(ending_at(graph, value))).run({"ids": IDS, "tokens": OFFSETS})


@pytest.mark.parametrize("activation", [None, "gelu", "silu"])
@pytest.mark.parametrize("dtype", ["int8", "float32"])
def test_linear(activation: Any, dtype: Any) -> None:
    build = GraphBuilder.text(50, 0, 40)
    weight, bias = floats(70, 96, seed=1), floats(70, seed=2)
    x = build.embed([Table("words", floats(50, 96), "ids")])
    x = build.norm(x, np.ones(96, np.float32), np.zeros(96, np.float32), name="norm", eps=1e-5)
    linear = build.linear(x, weight, bias, name="linear", activation=activation or "none")
    graph = build.build(build.normalize(build.pool(linear, "mean")))
    if dtype == "int8":
        graph = quantize_graph(graph, NEAREST)
    result = kernels.matmul(rows_of(graph, x), kernels.pack(weight, dtype), bias, activation)
    np.testing.assert_array_equal(result.view(np.uint32), rows_of(graph, linear).view(np.uint32))


@pytest.mark.parametrize("dtype", ["int8", "float32"])
def test_attention(dtype: Any) -> None:
    build = GraphBuilder.text(50, 0, 40)
    x = build.embed([Table("words", floats(50, 6 * 26), "ids")])
    mixed = build.attention(x, heads=2, kv_heads=2, head_dim=26, left=9, right=-1)
    graph = build.build(build.normalize(build.pool(mixed, "mean")))
    if dtype == "int8":
        graph = replace(as_quantized(graph, {}), params=graph.params)
    q, k, v = np.ascontiguousarray(rows_of(graph, x).reshape(40, 3, 2, 26).swapaxes(0, 1))
    result = kernels.attention(q, k, v, window=(9, None), offsets=OFFSETS, dtype=dtype)
    np.testing.assert_array_equal(result.view(np.uint32), rows_of(graph, mixed).reshape(40, 2, 26).view(np.uint32))

"""The builder, and every rule that a packed graph must keep."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from helpers.graphs import tiny_graph
from helpers.programs import quantize_graph
from pocketformer.errors import PocketFileError
from pocketformer.graph import Graph, GraphBuilder, Op
from pocketformer.layout import MAX_INT8_K
from pocketformer.packing import pack_graph
from pocketformer.validate import OPERATORS, TABLE, validate_graph


def packed(**options: Any) -> Graph:
    return pack_graph(quantize_graph(tiny_graph(relative=True, **options)))


def find(graph: Graph, kind: str) -> Op:
    return next(op for op in graph.ops if op["op"] == kind)


def index_of(graph: Graph, kind: str) -> int:
    return next(index for index, op in enumerate(graph.ops) if op["op"] == kind)


@pytest.mark.parametrize("options", [{}, {"task": "fill_mask"}, {"kv_heads": 1}, {"hidden": 64, "head_dim": 32}])
def test_valid_graphs_pass(options: dict[str, Any]) -> None:
    validate_graph(packed(**options))
    validate_graph(pack_graph(tiny_graph(**options)))


def test_builder_refuses_one_name_for_two_arrays() -> None:
    build = GraphBuilder(10, 0, 8)
    build.linear("x", np.zeros((2, 3)), name="dense")
    build.linear("x", np.zeros((2, 3)), name="dense")
    with pytest.raises(ValueError, match=r"'dense.weight' was given twice with different values"):
        build.linear("x", np.ones((2, 3)), name="dense")


def test_every_field_is_required() -> None:
    for kind, fields in OPERATORS.items():
        for field in fields:
            graph = packed(task="fill_mask" if kind == "select" else "embed")
            index = index_of(graph, kind)
            del graph.ops[index][field]
            with pytest.raises(PocketFileError, match=rf"op {index} \({kind}\): field '{field}' is missing"):
                validate_graph(graph)
    for field in TABLE:
        graph = packed()
        del find(graph, "embed")["tables"][1][field]
        with pytest.raises(PocketFileError, match=rf"op 0 \(embed\), table 1: field '{field}' is missing"):
            validate_graph(graph)


FIELD_ERRORS: list[tuple[str, str, Any, str]] = [
    ("embed", "width", 35, r"must be int8 \[\d+, 35\]"),
    ("embed", "width", True, "'width' is True; it must be an integer in 1"),
    ("embed", "tables", [], "'tables' has 0 entries"),
    ("embed", "tables", [3], "table 0 is 3; it must be an object"),
    ("norm", "width", 35, "'width' is 35, but 'embed0' is 36 wide"),
    ("norm", "kind", "batch", "'kind' is 'batch'; it must be one of layer, rms"),
    ("norm", "eps", 0, "'eps' is 0; it must be a float32 number above 0"),
    ("norm", "eps", 1e39, "'eps' is 1e\\+39"),
    ("norm", "weight", "nothing", "tensor 'nothing.weight' is missing"),
    ("norm", "in", "nowhere", "'in' names 'nowhere', which no earlier operator writes"),
    ("norm", "in", "norm6", "'in' names 'norm6', which no earlier operator writes"),
    ("norm", "out", "embed0", "'embed0' was written by an earlier operator"),
    ("norm", "surplus", 1, "field 'surplus' is unknown"),
    ("linear", "n", 0, "'n' is 0; it must be an integer in 1"),
    ("linear", "n", 2**31, "'n' is 2147483648"),
    ("linear", "n", 200, r"'layer0.qkv.weight' is int8 \[15, 9, 16, 4\]; it must be int8 \[13, 9, 16, 4\] or float32"),
    ("linear", "k", 32, "'k' is 32, but 'norm1' is 36 wide"),
    ("linear", "activation", "mish", "'activation' is 'mish'; it must be one of none, gelu"),
    ("linear", "residual", "norm1", "'residual' names 'norm1', which is tokens × 36; the result is tokens × 234"),
    ("linear", "residual", "later", "'residual' names 'later', which no earlier operator writes"),
    ("linear", "rotate", 3, "'rotate' is 3; it must be 0 or a power of two"),
    ("linear", "rotate", 8, "'rotate' is 8, which does not divide the 36 inputs"),
    ("attention", "heads", 4, "'kv_heads' is 3, which does not divide the 4 heads"),
    ("attention", "heads", 6, "heads × head_dim ask for 312"),
    ("attention", "head_dim", 257, "'head_dim' is 257; it must be an integer in 1…256"),
    ("attention", "scale", float("nan"), "'scale' is nan"),
    ("attention", "scale", -0.5, "'scale' is -0.5; it must be a float32 number above 0"),
    ("attention", "causal", 1, "'causal' is 1; it must be true or false"),
    ("attention", "left", -2, "'left' is -2"),
    ("attention", "dtype", "int4", "'dtype' is 'int4'"),
    ("attention", "bias", "norm.weight", r"'norm.weight' is float32 \[48\]; it must be float32 \[3, 80\]"),
    ("pool", "kind", "sum", "'kind' is 'sum'"),
    ("pool", "in", "pool17", "'in' names 'pool17', which no earlier operator writes"),
]


@pytest.mark.parametrize(("kind", "field", "value", "message"), FIELD_ERRORS)
def test_fields(kind: str, field: str, value: Any, message: str) -> None:
    graph = packed()
    find(graph, kind)[field] = value
    with pytest.raises(PocketFileError, match=message):
        validate_graph(graph)


@pytest.mark.parametrize(
    ("table", "field", "value", "message"),
    [
        (0, "rows", 100, "'rows' is 100, but ids .* reach row 100"),
        (1, "rows", 41, r"'rows' is 41, but positions \(offset included\) reach row 41"),
        (1, "offset", 3, "'rows' is 42, but positions .* reach row 42"),
        (2, "rows", 1, "'rows' is 1, but types .* reach row 1"),
        (2, "offset", 1, "'offset' is 1; only positions have an offset"),
        (1, "rotate", 4, "'rotate' is 4; only the first table may be rotated"),
        (0, "rotate", 8, "'rotate' is 8, which does not divide the 36 inputs"),
        (0, "index", "rows", "'index' is 'rows'"),
        (0, "offset", -1, "'offset' is -1"),
    ],
)
def test_tables(table: int, field: str, value: Any, message: str) -> None:
    graph = packed()
    find(graph, "embed")["tables"][table][field] = value
    with pytest.raises(PocketFileError, match=message):
        validate_graph(graph)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ops": []}, "'ops' has 0 operators"),
        ({"ops": [7]}, "op 0 is 7; it must be an object"),
        ({"ops": [{"op": "conv"}]}, "op 0: field 'op' is 'conv'; it must be one of embed"),
        ({"ops": [{"op": ["embed"]}]}, "field 'op' is a list of 1"),
        ({"output": "nothing"}, "'output' 'nothing' is written by no operator"),
        ({"vocab_size": 102}, "ids .* reach row 101"),
        ({"max_length": 41}, "positions .* reach row 42"),
        ({"max_length": 2**20 + 1}, "'max_length' is 1048577"),
        ({"type_vocab_size": 3}, "types .* reach row 2"),
    ],
)
def test_graph_fields(change: dict[str, Any], message: str) -> None:
    with pytest.raises(PocketFileError, match=message):
        validate_graph(replace(packed(), **change))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("norm.weight", lambda x: x.astype(np.float64), r"is float64 \[48\]; it must be float32 \[48\]"),
        ("norm.bias", lambda x: x[:47], r"is float32 \[47\]; it must be float32 \[48\]"),
        ("norm.bias", lambda x: x * np.nan, "'norm.bias' holds NaN or infinity"),
        ("layer0.qkv.scale", lambda x: -x, "'layer0.qkv.scale' holds negative numbers"),
        ("layer0.qkv.colsum", lambda x: x + 2**20, "'layer0.qkv.colsum' exceeds what 36 int8 weights can sum to"),
        ("layer0.qkv.bias", lambda x: x + np.inf, "'layer0.qkv.bias' holds NaN or infinity"),
        ("relative", lambda x: x[:2], r"'relative' is float32 \[2, 80\]"),
        ("words.weight", lambda x: x[:-16], "'words.weight' is int8"),
        ("words.scale", lambda x: x[:-16], "'words.scale' is float32"),
    ],
)
def test_tensors(name: str, change: Callable[[Any], Any], message: str) -> None:
    graph = packed()
    graph.params[name] = change(graph.params[name])
    with pytest.raises(PocketFileError, match=message):
        validate_graph(graph)
    del graph.params[name]
    if not name.endswith("bias"):
        with pytest.raises(PocketFileError, match=f"tensor '{name}' is missing"):
            validate_graph(graph)


def test_surplus_tensors_are_refused() -> None:
    graph = packed()
    graph.params["left.over"] = np.zeros(16, np.float32)
    with pytest.raises(PocketFileError, match=r"tensor 'left.over' belongs to no operator"):
        validate_graph(graph)


def test_domains() -> None:
    graph = packed()
    graph.ops.append({"op": "select", "in": graph.output, "out": "rows"})
    with pytest.raises(PocketFileError, match=r"which has one row per sequence; select takes tokens"):
        validate_graph(graph)


def test_one_weight_has_one_rotation() -> None:
    graph = packed(task="fill_mask")
    find(graph, "embed")["tables"][0]["rotate"] = 2
    with pytest.raises(PocketFileError, match=r"'rotate' is 4, but 'words' was used with 2 before"):
        validate_graph(graph)


def test_long_int8_products_are_refused() -> None:
    graph = packed()
    k = MAX_INT8_K + 1
    embed, linear = find(graph, "embed"), {**find(graph, "linear"), "in": "embed0", "k": k, "n": 1, "rotate": 0}
    embed.update(width=k, tables=[{"weight": "t", "rows": 101, "index": "ids", "offset": 0, "rotate": 0}])
    params = {
        "t.weight": np.broadcast_to(np.float32(0), (104, k)),
        "layer0.qkv.weight": np.broadcast_to(np.int8(0), (1, -(-k // 4), 16, 4)),
    }
    with pytest.raises(PocketFileError, match=f"'k' is {k}; int8 products overflow int32 beyond {MAX_INT8_K}"):
        validate_graph(replace(graph, ops=[embed, linear], params=params))


def test_only_int8_weights_are_rotated() -> None:
    graph = pack_graph(tiny_graph())
    find(graph, "linear")["rotate"] = 4
    with pytest.raises(PocketFileError, match=r"'rotate' is 4; only int8 weights are rotated"):
        validate_graph(graph)


def test_residual_of_another_domain() -> None:
    graph = packed(task="fill_mask")
    graph.ops[-1]["residual"] = "embed0"
    with pytest.raises(PocketFileError, match=r"'embed0', which is tokens × 36; the result is rows × 101"):
        validate_graph(graph)

"""The builder, and every rule that a packed graph must keep: the runtime is the only judge of one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from helpers.graphs import tiny_graph
from helpers.kernels import aligned
from helpers.programs import packed as aligned_graph
from helpers.programs import quantize_graph
from pocketformer import _core
from pocketformer.graph import Graph, GraphBuilder, Op
from pocketformer.layout import MAX_INT8_K

SCHEMA = {entry["op"]: entry["fields"] for entry in _core.operators()}


def packed(**options: Any) -> Graph:
    return aligned_graph(quantize_graph(tiny_graph(relative=True, **options)))


def convolution() -> Graph:
    build = GraphBuilder([{"name": "pixels", "kind": "grid", "height": 5, "width": 4}])
    build.inputs.append({"name": "image", "domain": "pixels", "dtype": "f32", "width": 6})
    x, taps = build.unfold("image", "pixels", height=1, width=1), np.ones((9, 6), np.float32)
    x = build.depthwise(x, taps, None, "pixels", name="taps", height=3, width=3, padding=1)
    return aligned_graph(build.build(build.linear(x, np.ones((3, 6), np.float32), name="out")))


def judge(graph: Graph) -> None:
    """Both ways of asking: with the tensors and, as a writer does, with their shapes alone."""
    _core.Program(graph.description(), graph.params)
    judge_shapes(graph)


def judge_shapes(graph: Graph) -> None:
    _core.check_graph(graph.description(), {name: (a.dtype.name, list(a.shape)) for name, a in graph.params.items()})


def refused(graph: Graph, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _core.Program(graph.description(), graph.params)


def find(graph: Graph, kind: str) -> Op:
    return next(op for op in graph.ops if op["op"] == kind)


@pytest.mark.parametrize("options", [{}, {"task": "fill_mask"}, {"kv_heads": 1}, {"hidden": 64, "head_dim": 32}])
def test_valid_graphs_pass(options: dict[str, Any]) -> None:
    judge(packed(**options))
    judge(aligned_graph(tiny_graph(**options)))


def test_builder_refuses_one_name_for_two_arrays() -> None:
    build = GraphBuilder.text(10, 0, 8)
    build.linear("x", np.zeros((2, 3)), name="dense")
    build.linear("x", np.zeros((2, 3)), name="dense")
    with pytest.raises(ValueError, match=r"'dense.weight' was given twice with different values"):
        build.linear("x", np.ones((2, 3)), name="dense")
    build.domain("rows", "one", "tokens")
    with pytest.raises(ValueError, match=r"domain 'rows' was declared as"):
        build.domain("rows", "selected", "tokens")


def test_every_field_is_required_or_has_a_default() -> None:
    """Without a required field a graph is refused by the field's name; a default says what leaving it out means."""
    for kind, fields in SCHEMA.items():
        for field in fields:
            graph = packed(task="fill_mask" if kind == "select" else "embed")
            if not any(op["op"] == kind for op in graph.ops):
                continue
            op = find(graph, kind)
            if field["required"]:
                op.pop(field["name"])
                refused(graph, rf"op {graph.ops.index(op)} \({kind}\): field '{field['name']}' is missing")
            elif field["name"] not in op:
                op[field["name"]] = field["default"]
                judge(graph)
    graph = packed()
    del find(graph, "embed")["tables"][1]["index"]
    refused(graph, r"op 0 \(embed\), tables 1: field 'index' is missing")


def test_the_schema_says_what_is_judged() -> None:
    """Every choice of every operator is accepted, and nothing else."""
    for kind, fields in SCHEMA.items():
        for field in (field for field in fields if field["type"] == "choice"):
            for choice in field["choices"]:
                graph = convolution() if kind == "depthwise" else packed()
                find(graph, kind)[field["name"]] = choice
                judge(graph)
            find(graph, kind)[field["name"]] = "other"
            refused(graph, f"field '{field['name']}' is 'other'; it must be one of {field['choices'][0]}")


FIELD_ERRORS: list[tuple[str, str, Any, str]] = [
    ("embed", "tables", [], "'tables' is a list of 0; it must be a list of 1…16 objects"),
    ("embed", "tables", [3], "tables 0 is 3; it must be an object"),
    ("embed", "out", "", "'out' is ''; it must be a name"),
    ("embed", "in", "norm1", "'in' names 'norm1', which no earlier operator writes"),
    ("norm", "kind", "batch", "'kind' is 'batch'; it must be one of layer, rms"),
    ("norm", "eps", 0, "'eps' is 0; it must be a float32 number above 0"),
    ("norm", "eps", 1e39, "'eps' is 1e\\+39"),
    ("norm", "eps", True, "'eps' is true"),
    ("norm", "weight", "nothing", "tensor 'nothing' is missing"),
    ("norm", "bias", "layer0.qkv.bias", r"'layer0.qkv.bias' is float32 \[240\]; it must be float32 \[48\]"),
    ("norm", "in", "nowhere", "'in' names 'nowhere', which no earlier operator writes"),
    ("norm", "in", "norm9", "'in' names 'norm9', which no earlier operator writes"),
    ("norm", "in", 7, "'in' is 7; it must be a name"),
    ("norm", "out", "embed0", "'out' is 'embed0'; it must be a new name"),
    ("norm", "surplus", 1, "field 'surplus' is unknown"),
    ("linear", "weight", "later", "'weight' names 'later', which is not among the weights"),
    ("linear", "weight", "positions", "'weight' names 'positions', a table stored by rows"),
    ("linear", "weight", "layer0.down", "'weight' names 'layer0.down' of 41 inputs, but 'norm1' is 36 wide"),
    ("linear", "bias", "norm.bias", r"'norm.bias' is float32 \[48\]; it must be float32 \[240\]"),
    ("linear", "activation", "mish", "'activation' is 'mish'; it must be one of none, gelu"),
    ("linear", "residual", "norm1", "'residual' names 'norm1', which is tokens × 36; the result is tokens × 234"),
    ("linear", "multiply", "norm1", "'multiply' names 'norm1', which is tokens × 36; the result is tokens × 234"),
    ("linear", "residual", "later", "'residual' names 'later', which no earlier operator writes"),
    ("columns", "begin", -1, "'begin' is -1; it must be an integer in 0"),
    ("columns", "width", 235, "'width' is 235 from column 0 on, but 'linear2' is 234 wide"),
    ("quantize_heads", "head_dim", 257, "'head_dim' is 257; it must be an integer in 1…256"),
    ("quantize_heads", "head_dim", 7, "'head_dim' is 7, which does not divide the 78 columns"),
    ("quantize_heads", "rotate", 3, "'rotate' is 3; it must be 0 or a power of two that divides head_dim"),
    ("store", "state", "nothing", "'state' names 'nothing', which is no state"),
    ("store", "k", "norm1", "'k' names 'norm1', which is tokens × 36; the state takes tokens × 78"),
    ("attention", "q", "columns3", "'q' names 'columns3', which is not from a `quantize_heads` of head_dim 26"),
    ("attention", "state", "state1", "'state' is 'state1', which no earlier operator stores"),
    ("attention", "scale", float("nan"), "'scale' is nan"),
    ("attention", "scale", -0.5, "'scale' is -0.5; it must be a float32 number above 0"),
    ("attention", "causal", 1, "'causal' is 1; it must be true or false"),
    ("attention", "left", -2, "'left' is -2"),
    ("attention", "right", 2**31, "'right' is 2147483648"),
    ("attention", "right", 2**64, "holds an integer of more than 64 bits"),
    ("attention", "bias", "norm.weight", r"'norm.weight' is float32 \[48\]; it must be float32 \[3, 80\]"),
    ("pool", "kind", "sum", "'kind' is 'sum'"),
    ("pool", "in", "pool99", "'in' names 'pool99', which no earlier operator writes"),
    ("pool", "domain", "tokens", "'domain' names 'tokens', which is not made from 'tokens' in this way"),
    ("pool", "skip", "ids", "'skip' names 'ids', which has no index for each sequence of 'tokens'"),
    ("pool", "skip", "tokens", "'skip' names 'tokens', which is no input of indices"),
    ("attention", "keys", "ids", "'keys' names 'ids', which has no index for each sequence of 'tokens'"),
    ("pool", "domain", "rows", "'domain' names 'rows', which is no domain"),
    ("pool", "begin", 1, "'begin' is 1, but 'tokens' may have sequences of 1 rows"),
    ("pool", "begin", -1, "'begin' is -1"),
]


@pytest.mark.parametrize(("kind", "field", "value", "message"), FIELD_ERRORS)
def test_fields(kind: str, field: str, value: Any, message: str) -> None:
    graph = packed()
    find(graph, kind)[field] = value
    refused(graph, message)


@pytest.mark.parametrize(
    ("table", "field", "value", "message"),
    [
        (1, "offset", 3, "names 'positions' of 42 rows; its index reaches 42"),
        (2, "offset", 1, "'offset' is 1; only positions have one"),
        (0, "index", "rows", "'index' names 'rows', which is no input of indices"),
        (0, "offset", -1, "'offset' is -1"),
        (2, "index", "ids", "names 'types' of 2 rows; its index reaches 100"),
        (1, "weight", "layer0.qkv", "names 'layer0.qkv', rotated or in panels; only the first table may be"),
    ],
)
def test_tables(table: int, field: str, value: Any, message: str) -> None:
    graph = packed()
    find(graph, "embed")["tables"][table][field] = value
    refused(graph, message)


@pytest.mark.parametrize(
    ("name", "field", "value", "message"),
    [
        ("layer0.qkv", "n", 0, "'n' is 0; it must be an integer in 1"),
        ("layer0.qkv", "n", 2**31, "'n' is 2147483648"),
        ("layer0.qkv", "n", 200, r"'layer0.qkv.weight' is int8 \[15, 9, 16, 4\]; it must be int8 \[13, 9, 16, 4\]"),
        ("layer0.qkv", "k", True, "'k' is true; it must be an integer in 1"),
        ("layer0.qkv", "format", "i2", "'format' is 'i2'; it must be one of f32, f16, i8, i4"),
        ("layer0.qkv", "format", "i5", "'layout' is 'panels'; numbers of 5 bits are those of tables by rows"),
        ("words", "format", "i5", r"'words.weight' is int8 .*; it must be uint8 \[128, 30\]"),
        ("layer0.qkv", "format", "f32", "'rotate' is 4; f32 and f16 weights are not rotated"),
        ("layer1.down", "format", "f32", r"'layer1.down.weight' is int8 .* it must be float32 \[3, 41, 16\]"),
        ("layer0.qkv", "rotate", 3, "'rotate' is 3; it must be 0 or a power of two that divides 36"),
        ("layer0.qkv", "rotate", 8, "'rotate' is 8; it must be 0 or a power of two that divides 36"),
        ("layer0.qkv", "rotate", 256, "'rotate' is 256; it must be an integer in 0…128"),
        ("layer0.qkv", "group", 32, "'group' is 32; it must be 0, or for integers in panels one of 16"),
        ("layer0.qkv", "layout", "rows", r"'layer0.qkv.weight' is int8 .* it must be int8 \[\d+, 36\]"),
        ("words", "n", 90, r"'words.weight' is int8 .*; it must be int8 \[96, 36\]"),
        ("words", "k", 35, r"'words.weight' is int8 .*; it must be int8 \[128, 35\]"),
        ("types", "rotate", 4, "'rotate' is 4; f32 and f16 weights are not rotated"),
    ],
)
def test_weights(name: str, field: str, value: Any, message: str) -> None:
    graph = packed()
    graph.weights[name] = {**graph.weights[name], field: value}
    refused(graph, message)


@pytest.mark.parametrize(
    ("part", "index", "change", "message"),
    [
        ("domains", 0, {"max_rows": 41}, "names 'positions' of 42 rows; its index reaches 42"),
        ("domains", 0, {"max_rows": 2**20 + 1}, "'max_rows' is 1048577"),
        ("domains", 0, {"max_rows": 0}, "'max_rows' is 0; it is at least 1"),
        ("domains", 0, {"kind": "sparse"}, "'kind' is 'sparse'; it must be one of ragged, grid, one, selected"),
        ("domains", 0, {"kind": "one"}, "'of' is null; only ragged domains and grids are filled by the caller"),
        ("domains", 0, {"prepended": 1}, "'prepended' is 1; only a ragged domain made from another"),
        ("domains", 0, {"height": 2}, "'height' is 2 and 'width' 0; both are at least 1 for a grid"),
        ("domains", 1, {"name": "tokens"}, "'name' is 'tokens' a second time"),
        ("domains", 1, {"of": "words"}, "'of' names 'words', which is no earlier domain"),
        ("domains", 1, {"max_rows": 3}, "'max_rows' is 3; it follows from 'tokens'"),
        ("inputs", 0, {"limit": 102}, "names 'words' of 101 rows; its index reaches 101"),
        ("inputs", 0, {"limit": 0}, "'limit' is 0; it is at least 1 for i32"),
        ("inputs", 0, {"width": 4}, "'width' is 4; it is at least 1 for f32, and only for f32"),
        ("inputs", 0, {"domain": "sequences"}, "field 'index' names 'types', of another domain"),
        (
            "inputs",
            0,
            {"domain": "sequences", "dtype": "f32", "limit": 0, "width": 3},
            "'domain' is 'sequences', which the caller does not fill",
        ),
        ("inputs", 0, {"dtype": "f32", "limit": 0, "width": 3, "optional": True}, "only an index may be left out"),
        ("inputs", 1, {"limit": 3}, "names 'types' of 2 rows; its index reaches 2"),
        ("inputs", 1, {"name": "ids"}, "'name' is 'ids' a second time"),
        ("states", 0, {"heads": 2}, "'k' names .* which is tokens × 78; the state takes tokens × 52"),
        ("states", 0, {"head_dim": 300}, "'head_dim' is 300; it must be an integer in 1…256"),
        ("states", 0, {"dtype": "int4"}, "'dtype' is 'int4'"),
        ("states", 0, {"rotate": 4}, "'rotate' is 4; it must be 0 or a power of two that divides 26"),
        ("states", 0, {"domain": "sequences"}, "'domain' is 'sequences', which has no sequences"),
        ("states", 1, {"name": "state0"}, "'name' is 'state0' a second time"),
    ],
)
def test_declarations(part: str, index: int, change: dict[str, Any], message: str) -> None:
    graph = packed()
    entries = getattr(graph, part)
    entries[index] = {**entries[index], **change}
    refused(graph, message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ops": []}, "'ops' has 0 entries"),
        ({"ops": [7]}, "op 0 is 7; it must be an object"),
        ({"ops": [{"op": "conv"}]}, "op 0: field 'op' is 'conv'; it must be one of embed"),
        ({"ops": [{"op": ["embed"]}]}, "field 'op' is a list of 1"),
        ({"output": "nothing"}, "'output' names 'nothing', which no earlier operator writes"),
        ({"output": 3}, "'output' is missing; it must be a name"),
        ({"inputs": []}, "'inputs' has 0 entries"),
        ({"weights": []}, "'weights' must be an object"),
    ],
)
def test_graph_fields(change: dict[str, Any], message: str) -> None:
    refused(replace(packed(), **change), message)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("norm.weight", lambda x: x.astype(np.float64), r"is another dtype \[48\]; it must be float32 \[48\]"),
        ("norm.bias", lambda x: x[:47], r"is float32 \[47\]; it must be float32 \[48\]"),
        ("norm.bias", lambda x: x * np.nan, "'norm.bias' holds NaN or infinity"),
        ("layer0.qkv.scale", lambda x: -x, "'layer0.qkv.scale' holds -.*; scales are at least 0"),
        ("layer0.qkv.colsum", lambda x: x + 2**20, "'layer0.qkv.colsum' holds .* more than 36 int8 weights can sum to"),
        ("layer0.qkv.bias", lambda x: x + np.inf, "'layer0.qkv.bias' holds NaN or infinity"),
        ("relative", lambda x: x[:2], r"'relative' is float32 \[2, 80\]"),
        ("words.weight", lambda x: x[:-16], "'words.weight' is int8"),
        ("words.scale", lambda x: x[:-16], "'words.scale' is float32"),
    ],
)
def test_tensors(name: str, change: Callable[[Any], Any], message: str) -> None:
    graph = packed()
    graph.params[name] = aligned(change(graph.params[name]))
    refused(graph, message)
    del graph.params[name]
    refused(graph, f"tensor '{name}' is missing")


def test_surplus_tensors_are_refused() -> None:
    graph = packed()
    graph.params["left.over"] = np.zeros(16, np.float32)
    refused(graph, r"tensor 'left.over' belongs to no operator")


def test_domains() -> None:
    graph = packed(task="fill_mask")
    graph.ops.append({"op": "select", "in": graph.output, "out": "rows", "domain": "selected"})
    refused(graph, r"'selected', which is not made from 'selected' in this way")


def test_a_state_is_stored_once_and_read() -> None:
    graph = packed()
    graph.ops.insert(graph.ops.index(find(graph, "store")), find(graph, "store"))
    refused(graph, "'state' is 'state0', which is stored a second time")
    graph = packed()
    graph.states.append({**graph.states[0], "name": "idle"})
    refused(graph, "'states' has 'idle', which no operator attends to")


def test_long_int8_products_are_refused() -> None:
    k = MAX_INT8_K + 1
    graph = replace(packed(), weights={"wide": {"format": "i8", "n": 1, "k": k}})
    refused(graph, f"'k' is {k}; int8 products overflow int32 beyond {MAX_INT8_K}")


def test_residual_of_another_domain() -> None:
    graph = packed(task="fill_mask")
    graph.ops[-1]["residual"] = "embed0"
    refused(graph, r"'embed0', which is tokens × 36; the result is selected × 101")

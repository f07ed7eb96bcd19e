"""The interpreter against definitions written as plain loops, and its own invariances."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from helpers.engines import feeds
from helpers.engines import reference as run
from helpers.graphs import tiny_graph
from helpers.programs import quantize_graph
from pocketformer import reference
from pocketformer.graph import Array, Graph, GraphBuilder, Op, Table
from pocketformer.packing import pack_graph
from pocketformer.reference import Batch, attention
from pocketformer.reference.rows import ACTIVATIONS, erf, linear, norm, quantize

LENGTHS = [1, 40, 2, 33, 7]
NOTHING = Batch({}, {}, {}, {})


def tokens(lengths: list[int], seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 101, sum(lengths))


@pytest.mark.parametrize("options", [{}, {"task": "fill_mask"}, {"relative": True}, {"kv_heads": 1}])
@pytest.mark.parametrize("int8", [False, True])
def test_packed_equals_plain(options: dict[str, Any], int8: bool) -> None:
    plain = tiny_graph(**options)
    graph = quantize_graph(plain) if int8 else plain
    ids, rows = tokens(LENGTHS), np.array([0, 5, 82]) if options.get("task") == "fill_mask" else None
    np.testing.assert_array_equal(run(graph, ids, LENGTHS, rows=rows), run(pack_graph(graph), ids, LENGTHS, rows=rows))


@pytest.mark.parametrize("int8", [False, True])
def test_a_sequence_does_not_depend_on_its_neighbours(int8: bool) -> None:
    graph = quantize_graph(tiny_graph()) if int8 else tiny_graph()
    ids = tokens(LENGTHS)
    together = run(graph, ids, LENGTHS)
    begin = 0
    for index, length in enumerate(LENGTHS):
        alone = run(graph, ids[begin : begin + length], [length])
        np.testing.assert_allclose(alone[0], together[index], atol=1e-6)
        begin += length


def test_erf() -> None:
    x = np.linspace(-7, 7, 20_001)
    np.testing.assert_allclose(erf(x), [math.erf(value) for value in x], atol=1e-14)


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("none", lambda x: x),
        ("gelu", lambda x: 0.5 * x * (1 + math.erf(x / math.sqrt(2)))),
        ("gelu_tanh", lambda x: 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))),
        ("relu", lambda x: max(x, 0.0)),
        ("silu", lambda x: x / (1 + math.exp(-x))),
        ("tanh", math.tanh),
    ],
)
def test_activations(name: str, function: Any) -> None:
    x = np.linspace(-20, 20, 401)
    np.testing.assert_allclose(ACTIVATIONS[name](x), [function(value) for value in x], atol=1e-13)


def loop_attention(op: Op, x: Array, heads: int, kv_heads: int, bias: Array | None, centre: int) -> Array:
    """One sequence, one query, one head at a time; ``x`` holds queries, keys and values."""
    d = x.shape[1] // (heads + 2 * kv_heads)
    left, right = op.get("left", -1), op.get("right", -1)
    result = np.zeros((len(x), heads * d))
    for h in range(heads):
        key = heads + h * kv_heads // heads
        for i in range(len(x)):
            first = max(0, i - left) if left >= 0 else 0
            last = min(len(x) - 1, i + right) if right >= 0 else len(x) - 1
            last = min(last, i) if op.get("causal") else last
            q = x[i, h * d : (h + 1) * d]
            scores = []
            for j in range(first, last + 1):
                score = op["scale"] * float(q @ x[j, key * d : (key + 1) * d])
                scores.append(score + (0.0 if bias is None else float(bias[h, i - j + centre])))
            weights = [math.exp(score - max(scores)) for score in scores]
            for weight, j in zip(weights, range(first, last + 1), strict=True):
                value = (key + kv_heads) * d
                result[i, h * d : (h + 1) * d] += weight / sum(weights) * x[j, value : value + d]
    return result


@pytest.mark.parametrize(("left", "right"), [(-1, -1), (0, 0), (3, 2), (64, 64), (-1, 5), (129, -1)])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", ["fp32", "int8"])
@pytest.mark.parametrize("kv_heads", [1, 2])
def test_attention_against_plain_loops(left: int, right: int, causal: bool, dtype: str, kv_heads: int) -> None:
    rng = np.random.default_rng(7)
    heads, d, lengths, longest = 2, 10, [1, 140], 140
    bias = rng.standard_normal((heads, 2 * longest - 1)).astype(np.float32)
    build = GraphBuilder.text(1, 0, longest)
    build.attention(
        "x", heads=heads, kv_heads=kv_heads, head_dim=d, causal=causal, left=left, right=right, bias=("bias", bias)
    )
    op, width = build.ops[-1], heads * d
    x = rng.standard_normal((sum(lengths), (heads + 2 * kv_heads) * d)).astype(np.float32) * 1.5
    ends = np.cumsum(lengths)
    rows = [slice(int(end - n), int(end)) for end, n in zip(ends, lengths, strict=True)]
    k, v = np.split(x[:, width:], 2, axis=1)
    batch = Batch({}, {"tokens": rows}, {}, {op["state"]: (k, v)})
    graph, queries = build.build("x"), x[:, :width]
    if dtype == "int8":
        queries = attention.quantize_heads({"head_dim": d}, graph, batch, "tokens", [queries])
    found = attention.attention(op, graph, batch, "tokens", [queries])
    parts = np.split(x.astype(np.float64), ends[:-1])
    expected = np.concatenate([loop_attention(op, part, heads, kv_heads, bias, longest - 1) for part in parts])
    if dtype == "fp32":
        np.testing.assert_allclose(found, expected, atol=1e-5)
        return
    cosine = (found * expected).sum(axis=1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosine.min() > 0.998
    assert cosine.mean() > 0.9998


def test_int8_attention_keeps_small_values_beside_a_sink() -> None:
    """A key that draws most attention and has a tiny value must not cost the others their resolution."""
    rng = np.random.default_rng(0)
    length, d = 32, 16
    q = np.ones((1, length, d), np.float32)
    k = rng.standard_normal((1, length, d)).astype(np.float32) * 0.1
    v = rng.standard_normal((1, length, d)).astype(np.float32)
    k[:, 0], v[:, 0] = 2.0, v[:, 0] * 1e-3
    seen, bias = np.ones((length, length), bool), np.zeros((1, length, length), np.float32)
    exact = attention._attend_fp32(q, k, v, 0.25, bias, (seen, 1))
    rounded = attention._attend_int8(attention.Heads(*quantize(q)), k, v, 0.25, bias, (seen, 1))
    assert np.linalg.norm(rounded - exact) < 0.015 * np.linalg.norm(exact)


def test_int8_linear_follows_the_arithmetic() -> None:
    graph = quantize_graph(tiny_graph())
    op = next(op for op in graph.ops if op["op"] == "linear")
    x = np.random.default_rng(1).standard_normal((3, 36)).astype(np.float32)
    x[1] = 0
    found = linear(op, graph, NOTHING, "tokens", [x])
    weight, scale = graph.params["layer0.qkv.weight"], graph.params["layer0.qkv.scale"]
    bias = graph.params["layer0.qkv.bias"]
    sylvester = np.kron([[1, 1], [1, -1]], [[1, 1], [1, -1]])
    for row in range(3):
        rotated = np.concatenate([sylvester @ x[row, i : i + 4] for i in range(0, 36, 4)]).astype(np.float32)
        amax = np.abs(rotated).max()
        q = [round(float(value * (np.float32(127) / amax))) if amax else 0 for value in rotated]
        for n in (0, 100, 233):
            acc = sum(a * int(b) for a, b in zip(q, weight[n], strict=True))
            expected = float(np.float32(acc) * scale[n]) * float(amax * np.float32(1 / 127)) + float(bias[n])
            assert found[row, n] == pytest.approx(expected, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_norms(kind: str) -> None:
    rng = np.random.default_rng(2)
    x, weight, bias = (rng.standard_normal(shape).astype(np.float32) for shape in ((5, 26), 26, 26))
    build = GraphBuilder.text(1, 0, 1)
    build.norm("x", weight, bias, name="norm", eps=1e-3, kind=kind)
    found = norm(build.ops[0], build.build("x"), NOTHING, "tokens", [x])
    for row, y in zip(x.astype(np.float64), found, strict=True):
        centred = row - row.mean() if kind == "layer" else row
        np.testing.assert_allclose(y, centred / math.sqrt((centred**2).mean() + 1e-3) * weight + bias, atol=1e-6)


@pytest.mark.parametrize("kind", ["mean", "cls", "max"])
def test_pools_and_the_unit_norm(kind: str) -> None:
    rng = np.random.default_rng(4)
    words = rng.standard_normal((101, 5)).astype(np.float32)
    build = GraphBuilder.text(101, 0, 40)
    graph = build.build(build.normalize(build.pool(build.embed([Table("words", words, "ids")]), kind)))
    ids = tokens([3, 1])
    found = run(graph, ids, [3, 1])
    pooled = {"mean": words[ids[:3]].mean(0), "cls": words[ids[0]], "max": words[ids[:3]].max(0)}[kind]
    np.testing.assert_allclose(found[0], pooled / np.linalg.norm(pooled), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def test_embeddings_sum_tables_with_offsets() -> None:
    graph = tiny_graph()
    seen: dict[str, Array] = {}
    ids, types = tokens([3, 2]), np.array([0, 1, 1, 0, 1])
    given = feeds(ids, [3, 2], types, None)
    reference.run(graph, given, hooks=lambda op, inputs, output: seen.setdefault(op["op"], output))
    params = graph.params
    for row, position in enumerate([0, 1, 2, 0, 1]):
        expected = params["words.weight"][ids[row]] + params["positions.weight"][position + 2]
        np.testing.assert_allclose(seen["embed"][row], expected + params["types.weight"][types[row]], atol=1e-5)


def test_hooks_see_every_operator_with_its_inputs() -> None:
    graph = tiny_graph()
    seen: list[tuple[Op, list[Array], Array]] = []
    result = reference.run(graph, feeds(tokens([4]), [4], None, None), hooks=lambda *call: seen.append(call))
    assert [op for op, _, _ in seen] == [op for op in graph.ops if op["op"] != "store"]
    np.testing.assert_array_equal(seen[-1][2], result)
    for op, inputs, output in seen:
        assert len(inputs) == (op["op"] != "embed") + (op.get("residual") is not None)
        assert output.dtype == np.float32
        if op["op"] == "linear":
            assert inputs[0].shape == (4, graph.weights[op["weight"]]["k"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ids": [101], "tokens": [0, 1]}, r"ids holds 101…101; it must lie in 0…100"),
        ({"ids": [-1], "tokens": [0, 1]}, r"ids holds -1…-1"),
        ({"ids": [1, 2], "tokens": [0, 1]}, "ids has 2 entries; the sequences have 1"),
        ({"ids": [1] * 41, "tokens": [0, 41]}, r"tokens has lengths 41…41; they must lie in 1…40"),
        ({"ids": [1], "tokens": [0, 1, 1]}, r"tokens has lengths 0…1"),
        ({"ids": [1], "tokens": [0, 1], "types": [2]}, r"types holds 2…2; it must lie in 0…1"),
        ({"ids": [1], "tokens": [0, 1], "selected": [1]}, r"selected holds 1…1; it must lie in 0…0"),
    ],
)
def test_bad_input(arguments: dict[str, Any], message: str) -> None:
    graph: Graph = tiny_graph(task="fill_mask" if "selected" in arguments else "embed")
    with pytest.raises(ValueError, match=message):
        reference.run(graph, arguments)

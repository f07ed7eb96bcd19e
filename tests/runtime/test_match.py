"""Tokens that become one: the runtime near the interpreter, on every ISA, and the same bytes however it is divided."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from helpers.programs import accepted_with_one_field_changed, packed, program, quantize_graph
from pocketformer import _core, reference
from pocketformer.compression.merging import merge_tokens
from pocketformer.graph import Array, Graph, GraphBuilder, Table

every_isa = pytest.mark.parametrize("isa", _core.isas())
WIDTH, HEADS = 40, 4


def floats(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float32)


def encoder(height: int = 5, width: int = 7, first: int = 1, layers: int = 3) -> Graph:
    """Layers of attention over a row for each pixel, behind ``first`` rows of their own."""
    b = GraphBuilder([{"name": "image", "kind": "grid", "height": height, "width": width}])
    b.inputs.append({"name": "pixels", "domain": "image", "dtype": "f32", "width": 3})
    x = b.linear(b.unfold("pixels", "image", height=1, width=1), floats(WIDTH, 3), name="patches")
    x = b.prepend(x, floats(first, WIDTH), b.domain("tokens", "ragged", "image", prepended=first), name="first")
    for i in range(layers):
        normed = b.norm(x, np.ones(WIDTH, np.float32), name=f"norm{i}", eps=1e-5)
        qkv = b.linear(normed, floats(3 * WIDTH, WIDTH, seed=i) / 6, floats(3 * WIDTH, seed=i), name=f"qkv{i}")
        mixed = b.attention(qkv, heads=HEADS, head_dim=WIDTH // HEADS)
        x = b.linear(mixed, floats(WIDTH, WIDTH, seed=9 + i) / 6, name=f"out{i}", residual=x)
        up = b.linear(x, floats(64, WIDTH, seed=i) / 6, name=f"up{i}", activation="gelu")
        x = b.linear(up, floats(WIDTH, 64, seed=i) / 8, name=f"down{i}", residual=x)
    return b.build(x)


def images(count: int, pixels: int = 35) -> dict[str, Array]:
    return {"pixels": floats(count * pixels, 3)}


@every_isa
@pytest.mark.parametrize(("first", "count", "left"), [(1, 3, 27), (2, 1, 34), (5, 4, 28), (1, 99, 6), (1, 10, 9)])
@pytest.mark.parametrize("weights", ["fp32", "int8"])
def test_encoder(isa: str, first: int, count: int, left: int, weights: str) -> None:
    graph = merge_tokens(encoder(first=first), count)
    if weights == "int8":
        graph = quantize_graph(graph)
    compiled = program(graph, isa)
    given = images(3)
    expected = reference.run(graph, given)
    result = _core.Session(compiled).run(given)
    assert result.shape == expected.shape == (3 * left, WIDTH)
    if weights == "fp32":
        assert np.abs(result - expected).max() <= 5e-5 * max(1.0, float(np.abs(expected).max()))
    else:  # where a number lies between two integers, the two may round it to different ones, and other tokens merge
        assert np.linalg.norm(result - expected) < 0.1 * np.linalg.norm(expected)
    for threads, mode, block in ((2, "rows", 0), (3, "rows", 5), (1, "columns", 0), (3, "columns", 0)):
        assert _core.Session(compiled, mode, block).run(given, threads).tobytes() == result.tobytes()
    for i in range(3):
        alone = _core.Session(compiled).run({"pixels": given["pixels"][i * 35 : (i + 1) * 35]})
        assert alone.tobytes() == result[i * left : (i + 1) * left].tobytes()


def test_every_isa_gives_the_same_bytes() -> None:
    graph = quantize_graph(merge_tokens(encoder(), 4))
    found = {_core.Session(program(graph, isa)).run(images(2)).tobytes() for isa in _core.isas()}
    assert len(found) == 1


def matched(rows: Array, merged: int, kept: int, value: Array | None = None) -> Array:
    """What remains of ``value`` float32 [tokens, width], by what ``rows`` [tokens, width] say."""
    count, value = len(rows), rows if value is None else value
    b = GraphBuilder([{"name": "image", "kind": "grid", "height": count, "width": 1}])
    b.inputs.append({"name": "pixels", "domain": "image", "dtype": "f32", "width": rows.shape[1] + value.shape[1]})
    b.domain("left", "ragged", "image", merged=merged)
    x = b.unfold("pixels", "image", height=1, width=1)
    alike, value_of = b.columns(x, 0, rows.shape[1]), b.columns(x, rows.shape[1], value.shape[1])
    b.domain("sequences", "one", "image")
    b.params["logarithms"] = np.log(np.arange(1, count + 1)).astype(np.float32)
    facts = {"merged": merged, "logarithms": "logarithms", "domain": "sequences", **({"kept": kept} if kept else {})}
    b.ops.append({"op": "match", "in": alike, "out": "match", **facts})
    b.ops.append({"op": "merge", "in": value_of, "out": "left", "domain": "left", "matches": "match"})
    graph, given = b.build("left"), {"pixels": np.concatenate([rows, value], axis=1)}
    result = _core.Session(program(graph, _core.isas()[0])).run(given)
    np.testing.assert_allclose(result, reference.run(graph, given), atol=1e-6)
    return result


def test_the_most_alike_become_one_and_the_first_of_equals() -> None:
    unit = np.eye(16, dtype=np.float32)
    numbers = np.arange(8, dtype=np.float32)[:, None] * np.ones((1, 16), np.float32)
    # Tokens 2 and 6 are both token 3's and 5's direction: 2 goes first, and into 3.
    rows = unit[[0, 1, 2, 2, 3, 2, 2, 4]]
    assert matched(rows, 1, 0, numbers)[:, 0].tolist() == [0, 4, 6, 1, 2.5, 5, 7]
    assert matched(rows, 2, 0, numbers)[:, 0].tolist() == [0, 4, 1, pytest.approx(11 / 3), 5, 7]
    # All alike: the first tokens go, into the first that may be gone into.
    alike = unit[[0] * 8]
    assert matched(alike, 2, 0, numbers)[:, 0].tolist() == [4, 6, 1, 3, 5, 7]
    assert matched(alike, 2, 1, numbers)[:, 0].tolist() == [0, 6, pytest.approx(7 / 3), 3, 5, 7]
    assert matched(alike, 2, 3, numbers)[:, 0].tolist() == [0, 1, 2, pytest.approx(13 / 3), 5, 7]
    assert matched(alike, 4, 0, numbers)[:, 0].tolist() == [pytest.approx(13 / 5), 3, 5, 7]


def test_memory_does_not_grow_with_depth() -> None:
    """Rows of a layer lie where those of the one before the last did."""
    few, many = (program(merge_tokens(encoder(20, 20, layers=n), 8), _core.isas()[0]) for n in (4, 12))
    assert many.arena_bytes([400], 1) < 1.1 * few.arena_bytes([400], 1)


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="merge is 0; it must be an integer of at least 1"):
        merge_tokens(encoder(), 0)
    text = GraphBuilder.text(50, 0, 40)
    with pytest.raises(ValueError, match="only models of images merge tokens"):
        merge_tokens(text.build(text.embed([Table("words", floats(50, 16), "ids")])), 1)
    graph = packed(merge_tokens(encoder(), 3))
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("match", {"merged": 18}, "'merged' is 18; at most 17 of 36 tokens with 1 kept can go"),
        ("match", {"kept": 40}, "'merged' is 3; at most 0 of 36 tokens with 40 kept can go"),
        ("match", {"logarithms": "first"}, "tensor 'first' is float32"),
        ("match", {"domain": "tokens"}, "'domain' names 'tokens', which has no row for each sequence"),
        ("match", {"in": "match1"}, "names 'match1', which no earlier operator writes"),
        ("match", {"merged": 2}, "'match0', which makes 34 tokens of 36; here they are 33 of 36"),
        ("merge", {"matches": "keys0"}, "'keys0', which makes 0 tokens of 0"),
        ("merge", {"domain": "tokens"}, "names 'tokens', which is not made from 'tokens'"),
        ("merge", {"after": "match0"}, "names 'match0', which is no `match` that makes the 36 rows"),
        ("head_mean", {"heads": 3}, "'heads' is 3, which does not divide the 40 columns"),
        ("attention", {"sizes": "keys0"}, "names 'keys0', which no earlier"),
    ]
    for kind, change, message in cases:
        described = copy.deepcopy(graph.description())
        next(op for op in described["ops"] if op["op"] == kind).update(change)
        with pytest.raises(ValueError, match=message.replace("'", ".")):
            _core.Program(described, graph.params)
    for change, message in (
        ({"merged": 36}, "must have more rows in every sequence"),
        ({"prepended": 1}, "only a ragged domain made from another has fewer rows, and none before them"),
    ):
        described = copy.deepcopy(graph.description())
        next(domain for domain in described["domains"] if "merged" in domain).update(change)
        with pytest.raises(ValueError, match=message):
            _core.Program(described, graph.params)
    described = copy.deepcopy(graph.description())
    described["ops"].append({"op": "normalize", "in": "match0", "out": "end"})
    with pytest.raises(ValueError, match=r"names .match0., which is of `match`"):
        _core.Program(described, graph.params)


def test_hostile_graphs() -> None:
    """One field changed at random: refused, or run without harm."""
    graph = packed(quantize_graph(merge_tokens(encoder(layers=2), 3)))
    names = [op["out"] for op in graph.ops if "out" in op] + ["tokens", "tokens1", "tokens2", "sequences", "image"]
    assert accepted_with_one_field_changed(graph, images(2), names) > 3

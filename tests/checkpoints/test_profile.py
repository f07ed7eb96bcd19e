"""Who reads and writes what, and the statistics of what linears read, against the numpy interpreter."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from helpers.by_rows import ByRows
from helpers.graphs import tiny_graph
from pocketformer import reference
from pocketformer.compression.calibration import random_tokens
from pocketformer.compression.dataflow import Dataflow
from pocketformer.compression.profile import Observer, profile
from pocketformer.graph import TOKENS, Array, Graph, GraphBuilder, Op, Table
from pocketformer.hadamard import hadamard
from pocketformer.layout import hadamard_block

EPSILON = 2.0**-24
ACTIVATION = 1e-5
"""How far the runtime's fp32 activations may be from the interpreter's, relative to the largest."""


def all_linears(graph: Graph) -> dict[str, int]:
    linears = {op["weight"] for op in graph.ops if op["op"] == "linear"}
    return {name: hadamard_block(graph.weights[name]["k"]) for name in graph.weights if name in linears}


def observers(graph: Graph, rotations: dict[str, int], tokens: int) -> dict[str, Observer]:
    return {name: seen for seen in profile(graph, rotations, random_tokens(graph, tokens)) for name in seen.weights}


def inputs_of_linears(graph: Graph, length: int, count: int) -> dict[str, Array]:
    """The same rows by the interpreter, end to end where a weight reads several values."""
    seen: dict[str, list[Array]] = {}

    def hook(op: Op, inputs: list[Array], output: Array) -> None:
        if op["op"] == "linear":
            seen.setdefault(op["weight"], []).append(inputs[0])

    ids = np.random.default_rng(0).integers(0, graph.vocab_size, length * count)
    reference.run(graph, {"ids": ids, TOKENS: np.arange(count + 1) * length}, hook)
    return {name: np.concatenate(arrays).astype(np.float64) for name, arrays in seen.items()}


@pytest.mark.parametrize("options", [{}, {"relative": True, "kv_heads": 1, "vocab": 997}, {"hidden": 64, "ffn": 128}])
def test_statistics_are_those_of_the_interpreter(options: dict[str, Any]) -> None:
    graph = tiny_graph(**options)
    rotations = all_linears(graph)
    seen = observers(graph, rotations, 85)
    assert seen.keys() == rotations.keys()
    for name, x in inputs_of_linears(graph, 40, 2).items():
        observer, block, size = seen[name], rotations[name], np.abs(x)
        assert observer.rows == len(x)
        off = ACTIVATION * max(1, size.max())  # of each entry of x; sums and products of them follow
        assert (np.abs(observer.highest - size.max(axis=0)) <= off).all()
        assert (np.abs(observer.total - size.sum(axis=0)) <= len(x) * off).all()
        assert (
            np.abs(observer.squares - np.square(x).sum(axis=0)) <= off * (2 * size.sum(axis=0) + len(x) * off)
        ).all()
        assert observer.peak == pytest.approx(size.max() / size.mean(), rel=1e-4)
        rotated, off = hadamard(x, block), max(block, 1) * off
        sums = np.abs(rotated).sum(axis=0)
        bound = off * (sums[:, None] + sums + len(x) * off)
        assert (np.abs(observer.rotated(block) - rotated.T @ rotated) <= bound).all()


def test_moments_of_given_rows_are_exact_but_for_float32() -> None:
    rng = np.random.default_rng(1)
    parts = [rng.standard_normal((rows, 24)).astype(np.float32) for rows in (1, 30, 64)]
    observer = Observer(("weight",), 24)
    for part in parts:
        observer.add(part)
    x = np.concatenate(parts).astype(np.float64)
    bound = 65 * EPSILON * (np.abs(x).T @ np.abs(x))  # a sum of at most 64 products: each rounds once
    assert (np.abs(observer.moments - x.T @ x) <= bound).all()
    rotated = hadamard(x, 8)
    assert (np.abs(observer.rotated(8) - rotated.T @ rotated) <= 64 * bound.max()).all()
    assert observer.rows == 95


def test_rows_that_a_caller_chooses_are_not_seen() -> None:
    graph = tiny_graph(task="fill_mask")
    seen = observers(graph, all_linears(graph), 80)
    assert seen["words"].rows == 0
    assert not seen["words"].moments.any()
    assert seen["layer0.qkv"].rows == 80


def test_pooled_rows_are_seen() -> None:
    rng = np.random.default_rng(2)
    weight = rng.standard_normal((6, 8)).astype(np.float32)
    build = GraphBuilder.text(30, 0, 5)
    x = build.embed([Table("words", rng.standard_normal((30, 8)).astype(np.float32), "ids")])
    x = build.linear(build.pool(x, "cls"), weight, name="pooler", activation="tanh")
    graph = build.build(build.linear(x, weight[:, :6], name="classifier"))
    seen = observers(graph, all_linears(graph), 20)
    for name, rows in inputs_of_linears(graph, 5, 4).items():
        assert seen[name].rows == 4
        np.testing.assert_allclose(seen[name].squares, np.square(rows).sum(axis=0), rtol=1e-5)


def shared_graph(uses: int) -> Graph:
    rng = np.random.default_rng(6)
    weight = rng.standard_normal((32, 32)).astype(np.float32)
    build = GraphBuilder.text(70, 0, 8)
    x = build.embed([Table("words", rng.standard_normal((70, 32)).astype(np.float32), "ids")])
    for _ in range(uses):
        x = build.linear(x, weight, name="shared", activation="tanh")
    return build.build(x)


def test_shared_weights_are_seen_once_with_all_their_inputs() -> None:
    (observer,) = profile(shared_graph(3), ["shared"], random_tokens(shared_graph(3), 16))
    assert observer.weights == ("shared",)
    assert observer.rows == 3 * 16
    expected = inputs_of_linears(shared_graph(3), 8, 2)["shared"]
    np.testing.assert_allclose(observer.squares, np.square(expected).sum(axis=0), rtol=1e-5)


def test_linears_of_one_input_share_an_observer() -> None:
    """A gated block's two linears: one matrix of moments, one factorization."""
    rng = np.random.default_rng(8)
    build = GraphBuilder.text(70, 0, 8)
    x = build.embed([Table("words", rng.standard_normal((70, 16)).astype(np.float32), "ids")])
    gate = build.linear(x, rng.standard_normal((16, 16)).astype(np.float32), name="gate")
    up = build.linear(x, rng.standard_normal((16, 16)).astype(np.float32), name="up", residual=gate)
    graph = build.build(build.linear(up, rng.standard_normal((4, 16)).astype(np.float32), name="down"))
    seen = profile(graph, ["gate", "up", "down"], random_tokens(graph, 16))
    assert [observer.weights for observer in seen] == [("gate", "up"), ("down",)]


def test_dataflow() -> None:
    graph = tiny_graph(task="fill_mask")
    flow = Dataflow(graph)
    assert flow.tables == {"words": 0, "positions": 1, "types": 2}
    assert [op["weight"] for op in flow.linears["words"]] == ["words"]
    (value,) = flow.rows_of("layer0.out")
    assert flow.writer[value]["op"] == "attention"
    needed = list(flow.needed([value]))
    assert [op["op"] for op in needed] == ["embed", "norm", "linear", *["columns"] * 3, "attention"]
    assert flow.reads(needed[-1]) == [op["out"] for op in needed[3:6]], "its queries, and what is in its state"


def test_only_what_the_linears_need_is_run() -> None:
    graph = tiny_graph()
    cut = replace(graph, params={name: array for name, array in graph.params.items() if "layer1" not in name})
    assert [seen.weights for seen in profile(cut, ["layer0.qkv"], random_tokens(cut, 40))] == [("layer0.qkv",)]


def test_vocabularies_are_read_by_rows() -> None:
    graph = tiny_graph(vocab=5000)
    words: Any = ByRows(graph.params["words.weight"])
    read = replace(graph, params={**graph.params, "words.weight": words})
    (observer,) = profile(read, ["layer0.qkv"], random_tokens(read, 40))
    (expected,) = profile(graph, ["layer0.qkv"], random_tokens(graph, 40))
    assert words.most == 1
    np.testing.assert_array_equal(observer.moments, expected.moments)


def test_observers_and_values_are_dropped_after_their_last_use() -> None:
    """However long the chain of linears is."""
    observers: list[weakref.ref[Observer]] = []
    for seen in profile(chain(12), [f"linear{i}" for i in range(12)], random_tokens(chain(12), 8)):
        observers.append(weakref.ref(seen))
        gc.collect()
        assert sum(observer() is not None for observer in observers) <= 2


def chain(count: int) -> Graph:
    rng = np.random.default_rng(9)
    build = GraphBuilder.text(70, 0, 8)
    x = build.embed([Table("words", rng.standard_normal((70, 32)).astype(np.float32), "ids")])
    for i in range(count):
        x = build.linear(x, rng.standard_normal((32, 32)).astype(np.float32), name=f"linear{i}", activation="tanh")
    return build.build(x)


def test_a_shared_weight_may_read_the_later_value_first() -> None:
    rng = np.random.default_rng(10)
    weight = rng.standard_normal((8, 8)).astype(np.float32)
    build = GraphBuilder.text(70, 0, 8)
    first = build.embed([Table("words", rng.standard_normal((70, 8)).astype(np.float32), "ids")])
    second = build.normalize(first)
    x = build.linear(second, weight, name="shared")
    graph = build.build(build.linear(first, weight, name="shared", residual=x))
    (observer,) = profile(graph, ["shared"], random_tokens(graph, 16))
    assert observer.rows == 32

"""int8 weights whose pairs are bounded: the bits of any int8 weight, and who is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from helpers.programs import packed
from pocketformer import _core, reference
from pocketformer.graph import Array, Graph, GraphBuilder
from pocketformer.layout import MAX_PAIR, round_up
from pocketformer.packing import unpack_graph

every_isa = pytest.mark.parametrize("isa", _core.isas())


def bounded(n: int, k: int) -> Array:
    """int8 [n, k] whose pairs are at the bound, whole channels of one sign among them."""
    rng = np.random.default_rng((n, k))
    first = rng.choice([1, 64, 127, 33, 100], (n, (k + 1) // 2))
    weight = np.stack([first, MAX_PAIR - first], axis=2).reshape(n, -1)[:, :k]
    signs = np.where(rng.random((n, k)) < 0.5, -1, 1)
    signs[:2] = [[1], [-1]]
    return (weight * signs).astype(np.int8)


def linear(weight: Array, **facts: Any) -> Graph:
    n, k = weight.shape
    g = GraphBuilder([{"name": "rows", "kind": "ragged", "max_rows": 64}])
    g.inputs.append({"name": "x", "domain": "rows", "dtype": "f32", "width": round_up(k, 16)})
    x = g.columns("x", 0, k) if k % 16 == 0 else g.linear("x", np.eye(k, round_up(k, 16), dtype=np.float32), name="cut")
    graph = g.build(g.linear(x, np.zeros((n, k), np.float32), np.ones(n, np.float32), name="w"))
    scale = np.linspace(0.01, 0.02, n, dtype=np.float32)
    weights = {**graph.weights, "w": {**graph.weights["w"], "format": "i8", **facts}}
    return replace(graph, weights=weights, params={**graph.params, "w.weight": weight, "w.scale": scale})


def run(graph: Graph, x: Array, isa: str, mode: str = "auto", threads: int = 1) -> Array:
    program = _core.Program(graph.description(), graph.params, isa)
    given = {"x": np.pad(x, ((0, 0), (0, -x.shape[1] % 16))), "rows": np.array([0, len(x)], np.int64)}
    return _core.Session(program, mode).run(given, threads)


def extreme(m: int, k: int) -> Array:
    """Rows that are rounded to ±127: of one sign, of both, and any."""
    rng = np.random.default_rng((m, k))
    x = np.sign(rng.standard_normal((m, k)))
    x[0], x[m // 2] = -1, 1
    x[m // 3] = rng.standard_normal(k)
    return x.astype(np.float32)


def rows_with_zeros(m: int, k: int, kind: str) -> Array:
    """Rows of which ReLU leaves a tenth, a twentieth of the first half of them, or all."""
    rng = np.random.default_rng((m, k))
    x = np.abs(rng.standard_normal((m, k))).astype(np.float32)
    if kind == "independent":
        x[rng.random((m, k)) < 0.9] *= -1
    elif kind == "some rows":
        x[: m // 2, rng.random(k) < 0.95] *= -1
    return x


@every_isa
@pytest.mark.parametrize(("n", "k"), [(7, 1), (16, 3), (36, 41), (48, 256), (101, 258)])
def test_the_same_bits(isa: str, n: int, k: int) -> None:
    weight = bounded(n, k)
    free, tied = packed(linear(weight)), packed(linear(weight, bounded_pairs=True))
    assert tied.weights["w"]["bounded_pairs"]
    for m in (1, 2, 3, 4, 5, 6, 9, 23):
        x = extreme(m, k)
        expected = run(free, x, "scalar")
        for threads, mode in ((1, "rows"), (2, "columns")):
            assert np.array_equal(run(tied, x, isa, mode, threads).view(np.int32), expected.view(np.int32)), (m, mode)


@every_isa
@pytest.mark.parametrize("kind", ["independent", "some rows", "dense"])
def test_zeros_may_be_passed_over(isa: str, kind: str) -> None:
    """What skips, and what is left to the whole product, which has rows without an offset there."""
    weight, k = bounded(36, 258), 258
    plain = linear(weight)
    ops = [{**plain.ops[0], "activation": "relu"}, {**plain.ops[1], "zeros": 0.5}]
    graph = packed(replace(linear(weight, bounded_pairs=True), ops=ops))
    without = packed(replace(plain, ops=[ops[0], plain.ops[1]]))
    for m in (1, 2, 4, 9, 23):
        x = rows_with_zeros(m, k, kind)
        expected = run(without, x, "scalar")
        assert np.array_equal(run(graph, x, isa).view(np.int32), expected.view(np.int32)), m


def test_packing_comes_back() -> None:
    graph = linear(bounded(20, 33), bounded_pairs=True)
    back = unpack_graph(packed(graph))
    assert back.weights == graph.weights
    assert np.array_equal(back.params["w.weight"], graph.params["w.weight"])
    given = {"x": np.pad(extreme(5, 33), ((0, 0), (0, 15))), "rows": np.array([0, 5])}
    assert np.abs(reference.run(graph, given) - run(packed(graph), extreme(5, 33), "scalar")).max() < 1e-3


@every_isa
@pytest.mark.parametrize(("a", "b"), [(65, 64), (-65, -64), (127, -2), (-128, 1)])
def test_what_is_beyond_the_bound_is_refused(isa: str, a: int, b: int) -> None:
    weight = bounded(20, 34)
    weight[17, 32:] = a, b
    with pytest.raises(ValueError, match=r"'w' has inputs 32 and 33 of channel 17 whose .* up to 129, above 128"):
        packed(linear(weight, bounded_pairs=True))
    lie = packed(linear(weight))
    lie.weights["w"]["bounded_pairs"] = True
    with pytest.raises(ValueError, match=r"'w.weight' holds two inputs 2j and 2j . 1 .* more than 128"):
        _core.Program(lie.description(), lie.params, isa)
    weight[17, 31:] = 0, 0, b  # neighbours that are no pair
    weight[17, 33], weight[17, 30] = b, a
    packed(linear(weight, bounded_pairs=True))


@pytest.mark.parametrize("facts", [{"format": "f32"}, {"format": "i4"}, {"group": 32}, {"layout": "rows"}])
def test_only_int8_without_groups_has_them(facts: dict[str, Any]) -> None:
    graph = packed(linear(bounded(32, 64)))
    graph.weights["w"] |= {"bounded_pairs": True, **facts}
    with pytest.raises(ValueError, match="'bounded_pairs' is true; only i8 weights in panels without a group"):
        _core.Program(graph.description(), graph.params)

"""Weights of 4, 5, 6 and 8 bits with scales of groups, for inputs that are rounded by group: the bits of an oracle."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from helpers.kernels import aligned, product_groups
from pocketformer import _core, reference
from pocketformer.graph import Array, Graph
from pocketformer.grouped import Grouped, Rows, below
from pocketformer.packing import pack_graph, unpack_graph

every_isa = pytest.mark.parametrize("isa", _core.isas())
RANGES = {4: (-8, 7), 5: (-16, 15), 6: (-32, 31), 8: (-127, 127)}
ROWS = (1, 2, 3, 5, 6, 9, 17, 23)
# bits, group, scales, minimum, k
KINDS = [
    (4, 32, "f16", True, 96),
    (4, 32, "two_level", True, 512),
    (4, 16, "f32", False, 48),
    (4, 32, "f16", False, 4160),
    (5, 32, "f16", False, 96),
    (5, 16, "f16", True, 48),
    (5, 32, "two_level", True, 256),
    (6, 16, "two_level", False, 256),
    (6, 16, "f32", True, 112),
    (8, 32, "f16", False, 96),
    (8, 16, "f16", False, 16),
    (8, 128, "f32", True, 256),
    (8, 32, "f16", True, 4128),
]


def matrix(bits: int, group: int, scales: str, minimum: bool, n: int, k: int, seed: int = 0) -> Grouped:
    rng = np.random.default_rng((bits, group, n, k, seed))
    low, high = RANGES[bits]
    half = scales != "f32"

    def factors(low: float, high: float) -> tuple[Array, Array | None]:
        if scales == "two_level":
            multiples = rng.integers(-128, 128, (n, k // group)).astype(np.int8)
            return rng.uniform(low, high, (n, k // 256)).astype(np.float16), multiples
        numbers = rng.uniform(low, high, (n, k // group)).astype(np.float16 if half else np.float32)
        numbers[::5] *= np.float16(1e-6)  # subnormal fp16
        return numbers, None

    rows = Rows(rng.integers(low, high + 1, (n, k)).astype(np.int8), *factors(-0.1, 0.1))
    if minimum:
        offset, multiples = factors(-1, 1)
        rows = replace(rows, minimum=offset, subminimum=multiples)

    def read(begin: int, end: int) -> Rows:
        return Rows(rows.values[begin:end], **{name: array[begin:end] for name, array in rows.factors().items()})

    return Grouped((n, k), low, high, group, scales, minimum, read)


def floats(grouped: Grouped) -> tuple[Array, Array, Array | None]:
    """Values, scales and minima, the latter as float32 [n, groups]."""
    rows = grouped.read(0, grouped.shape[0])

    def widened(factor: Array | None, multiples: Array | None) -> Array | None:
        if factor is None or multiples is None:
            return None if factor is None else factor.astype(np.float32)
        wide = factor.astype(np.float32)
        return wide.repeat(multiples.shape[1] // wide.shape[1], 1) * multiples.astype(np.float32)

    scale = widened(rows.scale, rows.subscale)
    assert scale is not None
    return rows.values, scale, widened(rows.minimum, rows.subminimum)


def linear(grouped: Grouped, **facts: Any) -> Graph:
    n, k = grouped.shape
    params = {f"w.{part}": array for part, array in grouped.stored(0, n).items()}
    if grouped.bits < 8:
        params["w.codebook"] = grouped.codebook()
    return Graph(
        domains=[{"name": "rows", "kind": "ragged", "max_rows": 128}],
        inputs=[{"name": "x", "domain": "rows", "dtype": "f32", "width": k}],
        weights={"w": {"n": n, "k": k, **grouped.facts(), "inputs": "group", **facts}},
        states=[],
        ops=[{"op": "linear", "in": "x", "out": "y", "weight": "w"}],
        output="y",
        params=params,
    )


def packed(graph: Graph) -> Graph:
    result = pack_graph(graph)
    return replace(result, params={name: aligned(array) for name, array in result.params.items()})


def run(graph: Graph, isa: str, inputs: dict[str, Array], threads: int = 1, mode: str = "auto") -> Array:
    program = _core.Program(graph.description(), graph.params, isa)
    return _core.Session(program, mode=mode).run(inputs, threads)


def rows_of(x: Array) -> dict[str, Array]:
    return {"x": x, "rows": np.array([0, len(x)])}


@every_isa
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_products_have_the_bits_of_the_oracle(isa: str, kind: tuple[int, int, str, bool, int]) -> None:
    bits, group, scales, minimum, k = kind
    grouped = matrix(bits, group, scales, minimum, 117 if k < 1000 else 39, k)
    graph = packed(linear(grouped))
    assert graph.weights["w"]["format"] == f"i{bits}"
    rng = np.random.default_rng(k)
    x = rng.standard_normal((max(ROWS), k)).astype(np.float32) * np.exp(rng.standard_normal((max(ROWS), 1)))
    x = x.astype(np.float32)
    x[1, : group // 2] = 0
    x[2, :group] = 0
    expected = product_groups(x, *floats(grouped))
    for rows in ROWS:
        assert np.array_equal(run(graph, isa, rows_of(x[:rows])), expected[:rows]), rows
    for mode in ("rows", "columns"):
        assert np.array_equal(run(graph, isa, rows_of(x[:5]), 3, mode), expected[:5]), mode
    reference_rows = reference.run(graph, rows_of(x[:5]))
    assert np.abs(reference_rows - expected[:5]).max() <= 2e-6 * np.sqrt(k) * np.abs(expected[:5]).max()


@every_isa
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize(("bits", "group"), [(4, 16), (4, 32), (5, 16), (5, 32), (6, 16), (6, 32)])
def test_the_largest_sums_of_a_group(isa: str, bits: int, group: int, signed: bool) -> None:
    """Every product as large as can be, and of one sign: sums of 16 bits would wrap if a group did not fit."""
    n, k = 24, 96
    low, high = RANGES[bits] if signed else (0, (1 << bits) - 1)
    every = np.array([[low, low], [high, high], [low, high], [high, low]], np.int8)
    values = np.tile(every, (n // 4, k // 2))
    scale = np.linspace(0.01, 0.1, n * k // group, dtype=np.float16).reshape(n, -1)
    grouped = Grouped((n, k), low, high, group, "f16", False, lambda a, b: Rows(values[a:b], scale[a:b]))
    x = np.tile(np.array([[1, 1], [-1, -1], [1, -1], [-1, 1]], np.float32), (5, k // 2))
    whole, scales, _ = floats(grouped)
    for halves, inputs in ((1, "group"), (2, "half_group")) if group > 16 else ((1, "group"),):
        graph = packed(linear(grouped, inputs=inputs))
        expected = product_groups(x, whole, scales.repeat(halves, 1), None)
        for rows in (1, 3, 4, 20):
            assert np.array_equal(run(graph, isa, rows_of(x[:rows])), expected[:rows]), (inputs, rows)


@every_isa
@pytest.mark.parametrize(
    ("bits", "group", "scales", "k"),
    [(4, 32, "f16", 96), (4, 16, "f32", 48), (4, 32, "two_level", 2560), (5, 32, "two_level", 512), (5, 16, "f16", 80)],
)
def test_indices_with_a_minimum_have_the_bits_of_the_oracle(
    isa: str, bits: int, group: int, scales: str, k: int
) -> None:
    """As files have them: index 0 stands for the minimum. Largest sums too, and rows that no block holds at once."""
    n, count, most = 21, 70, (1 << bits) - 1
    signed = matrix(bits, group, scales, True, n, k)
    stored = signed.read(0, n).values - signed.low
    stored[:3] = most
    grouped = replace(signed, low=0, high=most, read=lambda a, b: replace(signed.read(a, b), values=stored[a:b]))
    x = np.random.default_rng(k).standard_normal((count, k)).astype(np.float32)
    x[0], x[1] = 1, -1
    values, scale, offset = floats(grouped)
    assert offset is not None
    halves = group // 16
    expected = product_groups(x, values, scale.repeat(halves, 1), offset.repeat(halves, 1))
    graph = packed(linear(grouped, inputs="half_group" if halves == 2 else "group"))
    for rows in (1, 2, 31, 33, count):
        assert np.array_equal(run(graph, isa, rows_of(x[:rows])), expected[:rows]), rows
    whole = _core.Session(_core.Program(graph.description(), graph.params, isa), mode="columns")
    assert np.array_equal(whole.run(rows_of(x), 1), expected)


@every_isa
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind[1] > 16], ids=str)
def test_inputs_of_half_a_group_have_the_bits_of_the_oracle(isa: str, kind: tuple[int, int, str, bool, int]) -> None:
    bits, group, scales, minimum, k = kind
    grouped = matrix(bits, group, scales, minimum, 53, k)
    graph = packed(linear(grouped, inputs="half_group"))
    x = np.random.default_rng(k).standard_normal((17, k)).astype(np.float32)
    x[:, group // 2 : group] *= 100
    values, scale, offset = floats(grouped)
    expected = product_groups(x, values, scale.repeat(2, 1), None if offset is None else offset.repeat(2, 1))
    for rows in (1, 2, 5, 17):
        assert np.array_equal(run(graph, isa, rows_of(x[:rows])), expected[:rows]), rows
    exact = reference.run(graph, rows_of(x))
    assert np.abs(exact - expected).max() <= 2e-6 * np.sqrt(k) * np.abs(expected).max()
    coarse = run(packed(linear(grouped)), isa, rows_of(x))
    assert not np.array_equal(coarse, expected)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_packing_comes_back(kind: tuple[int, int, str, bool, int]) -> None:
    graph = linear(matrix(*kind[:4], 37, kind[4]))
    back = unpack_graph(packed(graph))
    assert back.weights == graph.weights
    assert back.params.keys() == graph.params.keys()
    for name, array in graph.params.items():
        np.testing.assert_array_equal(back.params[name], array, strict=True)


@every_isa
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind[4] < 1000], ids=str)
def test_rows_are_looked_up_exactly(isa: str, kind: tuple[int, int, str, bool, int]) -> None:
    bits, group, scales, minimum, k = kind
    grouped = matrix(bits, group, scales, minimum, 53, k)
    base = linear(grouped)
    ops = [{"op": "embed", "out": "y", "tables": [{"weight": "w", "index": "ids"}]}]
    inputs = [{"name": "ids", "domain": "rows", "dtype": "i32", "limit": 53}]
    graph = packed(replace(base, inputs=inputs, ops=ops))
    values, scale, offset = floats(grouped)
    expected = values.reshape(53, -1, group) * scale[..., None]
    expected = (expected if offset is None else expected + offset[..., None]).reshape(53, k)
    ids = np.array([0, 52, 17, 16, 15, 52], np.int32)
    given = {"ids": ids, "rows": np.array([0, 6])}
    assert expected.dtype == np.float32
    np.testing.assert_array_equal(run(graph, isa, given), expected[ids])
    np.testing.assert_array_equal(reference.run(graph, given), expected[ids])


@pytest.mark.parametrize(
    ("first", "second", "facts"),
    [
        ((4, 32, "f16", True), (4, 32, "f16", True), {"format": "i4", "group": 32, "scales": "f16"}),
        ((5, 32, "f16", False), (8, 32, "f16", False), {"format": "i8", "group": 32, "scales": "f16"}),
        ((4, 32, "two_level", True), (6, 16, "two_level", False), {"format": "i6", "group": 16, "scales": "two_level"}),
        ((5, 32, "f16", False), (6, 16, "two_level", False), {"format": "i6", "group": 16}),
    ],
)
def test_matrices_below_each_other_keep_their_values(
    first: tuple[int, int, str, bool], second: tuple[int, int, str, bool], facts: dict[str, Any]
) -> None:
    parts = [matrix(*first, 20, 256), matrix(*second, 24, 256, seed=1)]
    whole = below([parts[0], parts[1].part(3, 24)])
    assert whole.facts() == {**facts, "inputs": "half_group" if whole.group == 32 else "group"}

    def plain(grouped: Grouped) -> Array:
        values, scale, offset = floats(grouped)
        product = values.reshape(*scale.shape, -1) * scale[..., None]
        return (product if offset is None else product + offset[..., None]).reshape(values.shape)

    np.testing.assert_array_equal(plain(whole), np.concatenate([plain(parts[0]), plain(parts[1])[3:]]))
    np.testing.assert_array_equal(whole.read(18, 25).values, whole.read(0, 41).values[18:25])


def test_long_rows_are_stored_in_wider_formats() -> None:
    """What the kernels put together on the stack is bounded."""
    facts = {"format": "i8", "group": 32, "inputs": "half_group", "scales": "f16"}
    assert matrix(5, 32, "f16", False, 1, 4128).facts() == facts
    assert matrix(4, 32, "f16", False, 1, 32 * 513).facts() == {"format": "i4", "group": 32, "inputs": "half_group"}


BROKEN: list[tuple[dict[str, Any], str]] = [
    ({"group": 24}, "field 'group' is 24"),
    ({"group": 0}, "field 'group' is 0; only with a group are 'scales' other than f32"),
    ({"rotate": 32}, "field 'rotate' is 32; inputs that are rounded by group"),
    ({"group": 16, "inputs": "half_group"}, "field 'inputs' is 'half_group'; halves of a group of 16 are too short"),
    ({"scales": "two_level"}, "field 'scales' is 'two_level'; 96 inputs are no multiple of 256"),
    ({"layout": "rows"}, "field 'group' is 32; it must be 0, or for integers in panels"),
    ({"format": "i6"}, "tensor 'w.high' is"),
    ({"scales": "f32"}, "tensor 'w.scale' is float16"),
    ({"inputs": "column"}, "field 'inputs' is"),
]


@pytest.mark.parametrize(("facts", "message"), BROKEN, ids=[message for _, message in BROKEN])
def test_what_does_not_fit_is_refused(facts: dict[str, Any], message: str) -> None:
    graph = packed(linear(matrix(5, 32, "f16", False, 20, 96)))
    weights = {"w": {**graph.weights["w"], **facts}}
    with pytest.raises(ValueError, match=message):
        _core.Program({**graph.description(), "weights": weights}, graph.params)


def test_values_that_are_not_finite_or_consecutive_are_refused() -> None:
    graph = packed(linear(matrix(5, 32, "f16", False, 20, 96)))
    codebook = aligned(np.roll(graph.params["w.codebook"], 1))
    with pytest.raises(ValueError, match="its entries are consecutive"):
        _core.Program(graph.description(), {**graph.params, "w.codebook": codebook})
    scale = aligned(graph.params["w.scale"])
    scale[0, 1, 3] = np.inf
    with pytest.raises(ValueError, match=r"'w.scale' holds NaN or infinity"):
        _core.Program(graph.description(), {**graph.params, "w.scale": scale})

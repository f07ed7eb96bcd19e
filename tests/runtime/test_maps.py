"""What is done to whole maps of pixels: near the interpreter, and the same bytes on every ISA and however divided."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from helpers.programs import packed, program, quantize_graph
from pocketformer import _core, reference
from pocketformer.graph import Array, Graph, GraphBuilder

every_isa = pytest.mark.parametrize("isa", _core.isas())


def floats(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float32)


def start(height: int, width: int, channels: int) -> GraphBuilder:
    b = GraphBuilder([{"name": "image", "kind": "grid", "height": height, "width": width}])
    b.inputs.append({"name": "pixels", "domain": "image", "dtype": "f32", "width": channels})
    return b


def linear_attention(height: int = 6, width: int = 10, channels: int = 20) -> Graph:
    """A layer as MobileViTv2 has it, over patches of 2 × 2."""
    b = start(height, width, 3)
    x = b.linear(b.unfold("pixels", "image", height=1, width=1), floats(channels, 3), name="stem")
    windows = b.domain("patches", "grid", "image", height=height // 2, width=width // 2)
    weight, bias = floats(channels, seed=1), floats(channels, seed=2)
    normed = b.standardize(x, weight, bias, name="norm", eps=1e-2, of="image")
    scored = b.linear(normed, floats(channels + 1, channels) / 3, name="keys")
    keys, scores = (
        b.unfold(b.columns(scored, *part), windows, height=2, width=2, stride=2)
        for part in ((0, channels), (channels, 1))
    )
    context = b.fold(b.spread(b.soft_pool(keys, scores, of="image"), windows), "image", height=2, width=2)
    mixed = b.linear(normed, floats(channels, channels), name="values", activation="relu", multiply=context)
    return b.build(b.linear(mixed, floats(channels, channels, seed=3) / 4, name="out", residual=x))


def averaged(stride: int, weighted: bool) -> Graph:
    b = start(7, 5, 20)
    domain = "image"
    if stride == 2:
        domain = b.domain("half", "grid", "image", height=4, width=3)
    weight = floats(20, seed=4) if weighted else None
    return b.build(b.average("pixels", domain, name="mean", size=3, stride=stride, weight=weight))


def biased(height: int = 5, width: int = 7) -> Graph:
    b = start(height, width, 48)
    x = b.unfold("pixels", "image", height=1, width=1)
    qkv = b.linear(x, floats(3 * 24, 48) / 3, name="qkv")
    bias = ("biases", floats(3, height * width, height * width))
    return b.build(b.attention(qkv, heads=3, head_dim=8, domain="image", pair_bias=bias))


CASES = {
    "linear attention": linear_attention(),
    "linear attention, int8": quantize_graph(linear_attention()),
    "average": averaged(1, False),
    "average of every second": averaged(2, False),
    "average and itself": averaged(1, True),
    "bias of pairs": biased(),
    "bias of pairs, int8": quantize_graph(biased()),
    "bias of few pairs": quantize_graph(biased(1, 3)),
}


@every_isa
@pytest.mark.parametrize("case", CASES)
def test_near_the_interpreter_and_the_same_however_divided(case: str, isa: str) -> None:
    graph = CASES[case]
    compiled, size = program(graph, isa), graph.max_rows("image")
    given = {"pixels": 2 + floats(3 * size, graph.inputs[0]["width"])}
    expected = reference.run(graph, given)
    result = _core.Session(compiled).run(given)
    if "int8" in case or "few" in case:  # where a number lies between two integers, the two may round it to others
        assert np.linalg.norm(result - expected) < 0.005 * np.linalg.norm(expected)
    else:
        assert np.abs(result - expected).max() <= 5e-5 * max(1.0, float(np.abs(expected).max()))
    for threads, mode, block in ((2, "rows", 0), (3, "rows", 5), (1, "columns", 0), (3, "columns", 0)):
        assert _core.Session(compiled, mode, block).run(given, threads).tobytes() == result.tobytes()
    rows = len(result) // 3
    for i in range(3):
        alone = _core.Session(compiled).run({"pixels": given["pixels"][i * size : (i + 1) * size]})
        assert alone.tobytes() == result[i * rows : (i + 1) * rows].tobytes()


@pytest.mark.parametrize("case", CASES)
def test_every_isa_gives_the_same_bytes(case: str) -> None:
    graph = CASES[case]
    given = {"pixels": floats(graph.max_rows("image"), graph.inputs[0]["width"])}
    assert len({_core.Session(program(graph, isa)).run(given).tobytes() for isa in _core.isas()}) == 1


def test_the_interpreter_itself() -> None:
    graph = averaged(1, False)
    x = floats(35, 20)
    found = reference.run(graph, {"pixels": x}).reshape(7, 5, 20)
    grid = x.reshape(7, 5, 20)
    np.testing.assert_allclose(found[0, 0], grid[:2, :2].mean(axis=(0, 1)), atol=1e-6)
    np.testing.assert_allclose(found[6, 2], grid[5:, 1:4].mean(axis=(0, 1)), atol=1e-6)
    b = start(4, 2, 6)
    scores = b.columns("pixels", 4, 2)
    pooled = reference.run(b.build(b.soft_pool(b.columns("pixels", 0, 4), scores, of="image")), {"pixels": x[:8, :6]})
    shares = np.exp(x[:8, 4:6]) / np.exp(x[:8, 4:6]).sum(axis=0)
    np.testing.assert_allclose(pooled[0, 2:], (shares[:, 1:] * x[:8, 2:4]).sum(axis=0), atol=1e-6)


def test_what_is_refused() -> None:
    cases: list[tuple[Graph, str, dict[str, Any], str]] = [
        (linear_attention(), "moments", {"domain": "patches"}, "names 'patches', which has no row for each sequence"),
        (linear_attention(), "moments", {"eps": 0}, "field 'eps' is 0"),
        (linear_attention(), "standardize", {"moments": "linear1"}, "has no row for each sequence of 'image'"),
        (linear_attention(), "standardize", {"bias": "norm"}, "tensor 'norm' is missing"),
        (linear_attention(), "soft_pool", {"scores": "standardize3"}, "of another domain"),
        (linear_attention(), "spread", {"in": "unfold6"}, "has no row for each sequence of 'patches'"),
        (linear_attention(), "spread", {"domain": "images"}, "whose rows are of no sequence"),
        (averaged(1, True), "average", {"padding": 3}, "would lie outside of the grid"),
        (averaged(2, False), "average", {"weight": "mean.weight"}, "is another grid than that of"),
        (averaged(2, False), "average", {"stride": 1}, "another size than the windows"),
        (biased(), "attention", {"pair_bias": "qkv"}, "tensor 'qkv' is missing"),
        (biased(), "attention", {"softcap": 3.0}, "only plain scores are capped"),
    ]
    for graph, kind, change, message in cases:
        ready = packed(graph)
        described = copy.deepcopy(ready.description())
        next(op for op in described["ops"] if op["op"] == kind).update(change)
        with pytest.raises(ValueError, match=message):
            _core.Program(described, ready.params)
    b = start(4, 2, 7)
    ready = packed(b.build(b.soft_pool(b.columns("pixels", 0, 4), b.columns("pixels", 4, 3), of="image")))
    with pytest.raises(ValueError, match="of 3 columns, which do not divide the 4 of"):
        _core.Program(ready.description(), ready.params)

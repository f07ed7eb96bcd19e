"""Tokens that leave on the way: the runtime near the interpreter and near a computation that only masks, and the same
bytes however it is divided."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from helpers.programs import accepted_with_one_field_changed, packed, program, quantize_graph
from pocketformer import _core, reference
from pocketformer.compression.halting import halt_tokens
from pocketformer.compression.merging import merge_tokens
from pocketformer.graph import Array, Graph, GraphBuilder, Table

every_isa = pytest.mark.parametrize("isa", _core.isas())
WIDTH, HEADS, PIXELS = 40, 4, 35
SCALE, CENTER = 3.0, -2.0


def floats(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float32)


def encoder(layers: int = 4, first: float = -0.5) -> Graph:
    """Layers of attention over a row for each pixel, behind a class token whose first channel is ``first``."""
    b = GraphBuilder([{"name": "image", "kind": "grid", "height": 5, "width": 7}])
    b.inputs.append({"name": "pixels", "domain": "image", "dtype": "f32", "width": 3})
    x = b.linear(b.unfold("pixels", "image", height=1, width=1), floats(WIDTH, 3), name="patches")
    row = floats(1, WIDTH)
    row[0, 0] = first
    x = b.prepend(x, row, b.domain("tokens", "ragged", "image", prepended=1), name="first")
    for i in range(layers):
        normed = b.norm(x, np.ones(WIDTH, np.float32), name=f"norm{i}", eps=1e-5)
        qkv = b.linear(normed, floats(3 * WIDTH, WIDTH, seed=i) / 6, floats(3 * WIDTH, seed=i), name=f"qkv{i}")
        mixed = b.attention(qkv, heads=HEADS, head_dim=WIDTH // HEADS)
        out = floats(WIDTH, WIDTH, seed=9 + i) / 12
        x = b.linear(mixed, out, name=f"out{i}", residual=x)
        up = b.linear(x, floats(64, WIDTH, seed=i) / 6, name=f"up{i}", activation="gelu")
        x = b.linear(up, floats(WIDTH, 64, seed=i) / 16, name=f"down{i}", residual=x)
    x = b.norm(b.pool(x, "cls"), np.ones(WIDTH, np.float32), name="norm", eps=1e-5)
    return b.build(b.linear(x, floats(5, WIDTH) / 6, name="head"))


def images(count: int) -> dict[str, Array]:
    return {"pixels": floats(count * PIXELS, 3)}


@every_isa
@pytest.mark.parametrize("weights", ["fp32", "int8"])
def test_encoder(isa: str, weights: str) -> None:
    graph = halt_tokens(encoder(), SCALE, CENTER)
    if weights == "int8":
        graph = quantize_graph(graph)
    compiled = program(graph, isa)
    given = images(6)
    expected = reference.run(graph, given)
    session = _core.Session(compiled)
    result = session.run(given)
    assert result.shape == expected.shape == (6, 5)
    if weights == "fp32":
        assert np.abs(result - expected).max() <= 5e-5 * max(1.0, float(np.abs(expected).max()))
    else:  # where a number lies between two integers, the two may round it to different ones, and other tokens leave
        assert np.linalg.norm(result - expected) < 0.1 * np.linalg.norm(expected)
    left = [session.rows()[name] for name in ("tokens", "tokens1", "tokens2", "tokens3")]
    assert left[0] == 6 * (PIXELS + 1) > left[1] > left[2] > left[3] > 0
    for threads, mode, block in ((2, "rows", 0), (3, "rows", 5), (1, "columns", 0), (3, "columns", 0)):
        assert _core.Session(compiled, mode, block).run(given, threads).tobytes() == result.tobytes()
    for i in range(6):
        alone = _core.Session(compiled).run({"pixels": given["pixels"][i * PIXELS : (i + 1) * PIXELS]})
        assert alone.tobytes() == result[i : i + 1].tobytes()


def test_every_isa_gives_the_same_bytes() -> None:
    graph = quantize_graph(halt_tokens(encoder(), SCALE, CENTER))
    assert len({_core.Session(program(graph, isa)).run(images(3)).tobytes() for isa in _core.isas()}) == 1


def test_all_may_stay_or_leave_at_once() -> None:
    """With shares of nearly 0 the last layer is all there is, with those of nearly 1 the first."""
    graph, given = encoder(), images(2)
    whole = _core.Session(program(graph)).run(given)
    never = _core.Session(program(halt_tokens(graph, 1e-6, 80.0)))
    np.testing.assert_allclose(never.run(given), whole, atol=2e-6 * float(np.abs(whole).max()))
    assert never.rows()["tokens3"] == never.rows()["tokens"]
    one_layer = program(encoder(1))
    at_once = _core.Session(program(halt_tokens(graph, 1e-6, -80.0)))
    expected = _core.Session(one_layer).run(given)
    for threads in (1, 3):
        np.testing.assert_allclose(at_once.run(given, threads), expected, atol=2e-6 * float(np.abs(expected).max()))
        assert at_once.rows()["tokens1"] == at_once.rows()["tokens3"] == 0
    assert _core.Session(program(halt_tokens(graph, SCALE, CENTER))).run({"pixels": floats(0, 3)}).shape == (0, 5)


def test_an_image_is_done_with_its_class_token() -> None:
    """By a first channel that grows with what is given to it: then its patches are not looked at again."""
    session = _core.Session(program(halt_tokens(encoder(first=9.0), SCALE, CENTER)))
    session.run(images(4))
    assert session.rows()["tokens1"] == 0


def test_what_is_refused() -> None:
    for scale, center in ((0.0, 1.0), (-1.0, 3.0), (1.0, np.nan), (np.inf, 1.0)):
        with pytest.raises(ValueError, match="it must be a scale above 0 and a center, such as 10, 30"):
            halt_tokens(encoder(), scale, center)
    text = GraphBuilder.text(50, 0, 40)
    with pytest.raises(ValueError, match="only tokens of images halt"):
        halt_tokens(text.build(text.embed([Table("words", floats(50, 16), "ids")])), 1, 1)
    with pytest.raises(ValueError, match="tokens merge, or have a bias"):
        halt_tokens(merge_tokens(encoder(), 2), 1, 1)
    graph = packed(halt_tokens(encoder(), SCALE, CENTER))
    cases: list[tuple[str, int, dict[str, Any], str]] = [
        ("halt", 0, {"domain": "tokens"}, "'domain' names 'tokens', which has no row for each sequence"),
        ("halt", 0, {"scale": 0.0}, "field 'scale' is 0"),
        ("halt", 1, {"after": "total0"}, "'total0', which is no `halt` that looked at these tokens"),
        ("halt", 1, {"after": None}, "'after' is '', which is not the `halt` by which the rows of 'tokens1' stayed"),
        ("halt", 0, {"after": "halt0"}, "names 'halt0', which no earlier operator writes"),
        ("keep", 0, {"halts": "total0"}, "names 'total0', which is no `halt`"),
        ("keep", 0, {"domain": "tokens2"}, "names 'tokens2', which is not made from 'tokens'"),
        ("keep", 1, {"halts": "halt0"}, "names 'halt0', which is no `halt` that looked at these tokens"),
        ("contribute", 1, {"halts": "halt0"}, "names 'halt0', which is no `halt`"),
        ("contribute", 1, {"with": "halt0"}, "names 'halt0', which is of `halt`"),
        ("contribute", 1, {"with": "kept0"}, "names 'kept0', which has no row for each sequence"),
    ]
    for kind, which, change, message in cases:
        described = copy.deepcopy(graph.description())
        op = [op for op in described["ops"] if op["op"] == kind][which]
        op.update(change)
        if op.get("after", "") is None:
            del op["after"]
        with pytest.raises(ValueError, match=message.replace("'", ".")):
            _core.Program(described, graph.params)
    more: tuple[tuple[str, dict[str, Any], str], ...] = (
        ("tokens1", {"halting": False}, "'domain' is 'tokens1', which is not halting"),
        ("tokens1", {"prepended": 1}, "'halting' is true; only a ragged domain made from another is"),
        ("tokens", {"halting": True}, "'halting' is true; only a ragged domain made from another is"),
        ("tokens2", {"halting": False}, "'of' names 'tokens1', which is halting"),
    )
    for name, change, message in more:
        described = copy.deepcopy(graph.description())
        next(domain for domain in described["domains"] if domain["name"] == name).update(change)
        with pytest.raises(ValueError, match=message.replace("'", ".")):
            _core.Program(described, graph.params)
    described = copy.deepcopy(graph.description())
    with pytest.raises(ValueError, match=r"output' is .kept0., of which it is not known how many rows"):
        _core.Program({**described, "output": "kept0"}, graph.params)
    pooled: dict[str, Any] = {"op": "pool", "in": "kept0", "out": "p", "domain": "kept", "kind": "mean"}
    described["domains"].append({"name": "kept", "kind": "one", "of": "tokens1"})
    described["ops"].insert(next(i for i, op in enumerate(described["ops"]) if op["op"] == "keep") + 1, pooled)
    with pytest.raises(ValueError, match="may have sequences of 0 rows"):
        _core.Program(described, graph.params)
    pooled.clear()
    pooled.update({"op": "moments", "in": "kept0", "out": "p", "domain": "kept", "eps": 1e-3})
    with pytest.raises(ValueError, match="whose sequences may be empty"):
        _core.Program(described, graph.params)
    early: dict[str, Any] = {"op": "spread", "in": "total0", "out": "s", "domain": "tokens2"}
    described["ops"][described["ops"].index(pooled)] = early
    with pytest.raises(ValueError, match="'tokens2', before `keep` has made its rows".replace("'", ".")):
        _core.Program(described, graph.params)


def test_hostile_graphs() -> None:
    """One field changed at random: refused, or run without harm."""
    graph = packed(quantize_graph(halt_tokens(encoder(layers=3), SCALE, CENTER)))
    names = [op["out"] for op in graph.ops if "out" in op] + ["tokens", "tokens1", "tokens2", "sequences", "image"]
    assert accepted_with_one_field_changed(graph, images(2), names) > 3

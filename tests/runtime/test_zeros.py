"""Products that pass over groups of four zeros: the bits of those that do not, and who is asked to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.kernels import aligned
from helpers.programs import packed, program
from helpers.torch_models import build
from pocketformer import _core, compress, load
from pocketformer.compression import Plan, QuantizeOptions, compress_graph
from pocketformer.compression.calibration import random_tokens
from pocketformer.compression.quantize import calibrated_profiler
from pocketformer.compression.rounding import quantize_rows
from pocketformer.compression.zeros import after_relu, zero_groups
from pocketformer.graph import Array, Graph, GraphBuilder
from pocketformer.layout import MAX_SKIPPED_K, round_up
from pocketformer.perf.boards import BOARDS
from pocketformer.perf.predict import predict_program
from pocketformer.reference import run
from pocketformer.sources.huggingface import load_checkpoint

ROWS = (1, 2, 3, 4, 5, 8, 9, 23)
every_isa = pytest.mark.parametrize("isa", _core.isas())


def after_identity(n: int, k: int, **options: Any) -> Graph:
    """An int8 linear of n × k that reads what ReLU leaves of the rows that the caller gives."""
    rng = np.random.default_rng((n, k))
    g = GraphBuilder([{"name": "tokens", "kind": "ragged", "max_rows": 64}])
    width = round_up(k, 16)
    g.inputs.append({"name": "x", "domain": "tokens", "dtype": "f32", "width": width})
    x = g.linear("x", np.eye(k, width, dtype=np.float32), name="relu", activation="relu")
    y = g.linear(x, rng.standard_normal((n, k)).astype(np.float32), np.ones(n, np.float32), name="w", activation="gelu")
    graph = g.build(y)
    values, scale = quantize_rows(graph.params["w.weight"])
    weights = {**graph.weights, "w": {**graph.weights["w"], "format": "i8"}}
    params = {**graph.params, "w.weight": values, "w.scale": scale}
    ops = [*graph.ops[:-1], {**graph.ops[-1], **options}]
    return replace(graph, weights=weights, params=params, ops=ops)


def rows(m: int, k: int, kind: str) -> Array:
    """Rows of which ReLU leaves little: ``kind`` says which."""
    rng = np.random.default_rng((m, k))
    x = np.abs(rng.standard_normal((m, k))).astype(np.float32)
    if kind == "independent":
        x[rng.random((m, k)) < 0.9] *= -1
    elif kind == "channels":
        x[:, np.repeat(rng.random(k // 16 + 1) < 0.9, 16)[:k]] *= -1
    elif kind == "some rows":
        x[:, rng.random(k) < 0.95] *= -1
        x[m // 2 :] = np.abs(x[m // 2 :])
    elif kind == "none left":
        x *= -1
    return x


def feeds(x: Array) -> dict[str, Any]:
    m, k = x.shape
    return {"x": np.pad(x, ((0, 0), (0, -k % 16))), "tokens": np.array([0, m], np.int64)}


@every_isa
@pytest.mark.parametrize(("n", "k"), [(36, 41), (16, 400), (101, 258)])
def test_the_same_bits(isa: str, n: int, k: int) -> None:
    plain, skipping = (program(after_identity(n, k, **options), isa) for options in ({}, {"zeros": 0.5}))
    for kind in ("independent", "channels", "some rows", "none left", "dense"):
        for m in ROWS:
            given = feeds(rows(m, k, kind))
            expected = _core.Session(plain).run(given, 1)
            for threads, mode in ((1, "rows"), (2, "columns")):
                y = _core.Session(skipping, mode).run(given, threads)
                assert np.array_equal(y.view(np.int32), expected.view(np.int32)), (kind, m, mode)


def test_the_reference_agrees() -> None:
    graph, given = after_identity(36, 100, zeros=0.5), feeds(rows(9, 100, "independent"))
    assert np.abs(_core.Session(program(graph)).run(given, 1) - run(graph, given)).max() < 1e-3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"zeros": 1.0}, "'zeros' is 1; it must be below 1"),
        ({"zeros": -0.5}, "'zeros' is -0.5; it must be"),
        ({"zeros": 0.5, "in": "x"}, "'x' is not what relu has made"),
    ],
)
def test_refused_by_name(change: dict[str, Any], words: str) -> None:
    graph = packed(after_identity(48, 48, **change))
    with pytest.raises(ValueError, match=words):
        _core.Program(graph.description(), graph.params)


def test_a_rotated_weight_is_refused() -> None:
    graph = after_identity(48, 48, zeros=0.5)
    graph = packed(replace(graph, weights={**graph.weights, "w": {**graph.weights["w"], "rotate": 16}}))
    with pytest.raises(ValueError, match="'w' is not int8 with a scale a channel, unrotated, of at most 16384 inputs"):
        _core.Program(graph.description(), graph.params)
    assert MAX_SKIPPED_K == 16384


def relu_bert(folder: Path, shift: float) -> Graph:
    """A BERT whose feed-forward is zero where a channel is no ``shift`` above its mean."""
    build("bert", "embed", folder, hidden_act="relu", intermediate_size=160, num_hidden_layers=3)
    graph = load_checkpoint(folder).graph
    for layer in range(3):
        bias = graph.params[f"layers.{layer}.ffn_up.bias"] = np.array(graph.params[f"layers.{layer}.ffn_up.bias"])
        bias -= np.float32(shift * np.linalg.norm(np.asarray(graph.params[f"layers.{layer}.ffn_up.weight"]), axis=1))
    return graph


def test_zeros_are_measured_and_skipped_where_there_are_enough(tmp_path: Path) -> None:
    graph = relu_bert(tmp_path, 1.5)
    names = [f"layers.{i}.ffn_down" for i in range(3)]
    assert after_relu(graph, graph.weights) == names
    calibration = random_tokens(graph, 200)
    shares = zero_groups(graph, names, calibration)
    assert all(0.4 < share < 1 for share in shares.values())

    skipping, report = compress_graph(graph, profiler=calibrated_profiler(graph, calibration))
    assert report.zeros == shares
    assert "3 linears pass over zeros" in str(report)
    for name in names:
        assert skipping.weights[name].get("rotate", 0) == 0
        assert [op["zeros"] for op in skipping.ops if op.get("weight") == name] == [round(shares[name], 4)]
    never = QuantizeOptions(skip_zeros=1)
    plain, other = compress_graph(graph, options=never, profiler=calibrated_profiler(graph, calibration))
    assert not other.zeros
    assert all("zeros" not in op for op in plain.ops)
    assert all(plain.weights[name]["rotate"] for name in names)
    unseen, third = compress_graph(graph, options=QuantizeOptions(random_tokens=0))
    assert not third.zeros
    assert all("zeros" not in op for op in unseen.ops)

    ids = np.arange(5, 45, dtype=np.int32)
    given = {"ids": ids, "types": ids * 0, "tokens": np.array([0, 40], np.int64)}
    exact, y, z = (
        _core.Session(program(g)).run(given, 2) if g is graph else _session(g).run(given, 2)
        for g in (graph, skipping, plain)
    )
    cosines = [(exact * other).sum() / np.linalg.norm(exact) / np.linalg.norm(other) for other in (y, z)]
    assert min(cosines) > 0.999
    # The cost model counts what is passed over.
    board = BOARDS["pi5"]
    seconds = [predict_program(_program(g), 1 << 20, board, [1], 1)["phases"]["linear"] for g in (skipping, plain)]
    assert seconds[0] < seconds[1]


def _program(graph: Graph) -> _core.Program:
    return _core.Program(graph.description(), {name: aligned(array) for name, array in graph.params.items()})


def _session(graph: Graph) -> _core.Session:
    return _core.Session(_program(graph))


def test_shares_are_counted_of_what_int8_makes_zero(tmp_path: Path) -> None:
    """Of 160 channels 100 are zero, and 19 below half a step of the largest; one of a group keeps it."""
    graph = relu_bert(tmp_path, 0)
    values = np.repeat(np.float32([-1, 0.4 / 127, 1]), [100, 20, 40])
    values[1] = 0.6 / 127
    graph.params["layers.1.ffn_up.weight"] = np.zeros((160, 78), np.float32)
    graph.params["layers.1.ffn_up.bias"] = values
    shares = zero_groups(graph, ["layers.1.ffn_down"], random_tokens(graph, 50))
    assert shares == {"layers.1.ffn_down": 29 / 40}


def test_few_zeros_are_not_worth_it(tmp_path: Path) -> None:
    graph = relu_bert(tmp_path, -0.5)
    _, report = compress_graph(graph, profiler=calibrated_profiler(graph, random_tokens(graph, 200)))
    assert not report.zeros


def test_the_file_says_what_is_skipped(tmp_path: Path) -> None:
    build("bert", "embed", tmp_path / "m", hidden_act="relu", num_hidden_layers=1)
    counted = Plan("int8", file_bytes=1).options(QuantizeOptions(skip_zeros=0.01))
    assert counted.skip_zeros == 1  # of a file whose bytes are known before its zeros are
    assert Plan("int8").options(QuantizeOptions(skip_zeros=0.01)).skip_zeros == 0.01
    report = compress(tmp_path / "m", tmp_path / "m.pocket", options=QuantizeOptions(skip_zeros=0.01))
    model = load(tmp_path / "m.pocket")
    assert list(model.info()["zeros"]) == ["layers.0.ffn_down"] == list(report.zeros)
    with pytest.raises(ValueError, match=r"skip_zeros is 1\.5; it must lie in 0…1"):
        QuantizeOptions(skip_zeros=1.5)

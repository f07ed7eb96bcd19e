"""int8 weights whose pairs are bounded: the rounding, what it costs, and what a file, a plan and the command say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers import rounding as twin
from helpers.checkpoints import tiny_checkpoint
from helpers.engines import native_packed
from helpers.rounding import dequantize
from pocketformer.cli import main
from pocketformer.compression import Precision, QuantizeOptions, _rounding, compress
from pocketformer.compression.gptq import error_shares, round_with_feedback
from pocketformer.compression.pipeline import compress_graph
from pocketformer.compression.plan import plan_by_shares, read_plan
from pocketformer.compression.rounding import quantize_rows
from pocketformer.graph import Array
from pocketformer.layout import MAX_PAIR
from pocketformer.packing import unpack_graph
from pocketformer.pocketfile import read_pocket
from pocketformer.sources.huggingface import Checkpoint

BOUNDED = QuantizeOptions(bounded_pairs=True)


def largest_pair(values: Array) -> int:
    """Of int8 [N, K], whose last input may stand alone."""
    size = np.abs(np.pad(values, ((0, 0), (0, values.shape[1] % 2))).astype(int))
    return int(size.reshape(len(size), -1, 2).sum(axis=2).max(initial=0))


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (16, 120)])
@pytest.mark.parametrize("wide", [80.0, 1e3])
def test_nearest(shape: tuple[int, int], wide: float) -> None:
    """No other pair within bounds is nearer: a few that are far outside, or nearly all."""
    weight, step = np.random.default_rng(shape[1]).standard_normal(shape) * wide / 2, np.full(shape[0], 0.5)
    values = np.empty(shape, np.int8)
    _rounding.round_to_nearest(weight, step, values, True)
    np.testing.assert_array_equal(values, twin.pair_to_nearest(weight, step))
    assert largest_pair(values) <= MAX_PAIR
    assert (largest_pair(twin.round_to_nearest(weight, step)) > MAX_PAIR) == (shape[1] > 1)


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (12, 60)])
@pytest.mark.parametrize("part", [(0.0, 1.0), (0.4, 0.6)])
def test_feedback(shape: tuple[int, int], part: tuple[float, float]) -> None:
    n, k = shape
    rng = np.random.default_rng(n * k)
    weight, errors = rng.standard_normal(shape), rng.standard_normal(shape) * 0.1
    shares = rng.standard_normal((k, k)) * 0.3
    shares[np.diag_indices(k)] = rng.uniform(0.5, 2, k)
    step = rng.uniform(0.01, 0.02, n)
    begin, end = int(part[0] * k) // 2 * 2, k if part[1] == 1 else max(int(part[1] * k) // 2 * 2, min(k, 2))
    expected = twin.feed_back_pairs(weight, errors, shares, step, begin, end)
    values = np.full(shape, 99, np.int8)
    _rounding.feed_back(weight, errors, shares, step, values, begin, end, True)
    np.testing.assert_array_equal(values[:, begin:end], expected)
    assert largest_pair(values[:, begin:end]) <= MAX_PAIR


def test_a_pair_is_not_parted() -> None:
    arrays = np.zeros((2, 4)), np.zeros((2, 4)), np.zeros((4, 4)), np.ones(2), np.zeros((2, 4), np.int8)
    for begin, end in ((1, 4), (0, 3)):
        with pytest.raises(ValueError, match=f"begin and end are {begin} and {end}, between the inputs of a pair"):
            _rounding.feed_back(*arrays, begin, end, True)


@pytest.mark.parametrize(("k", "most"), [(64, 2.2), (384, 2.1), (1536, 2.1), (33, 2.2)])
def test_the_squared_error_is_about_twice_that_of_plain_rounding(k: int, most: float) -> None:
    """Of normal numbers, which are what rotated weights are; 7 bits have four times as much."""
    weight = np.random.default_rng(k).standard_normal((60, k))

    def error(values: Array, scale: Array) -> float:
        return float(np.square(dequantize(values, scale, 0) - weight).sum())

    bounded, scale = quantize_rows(weight, pairs=True)
    assert largest_pair(bounded) <= MAX_PAIR
    ratio = error(bounded, scale) / error(*quantize_rows(weight))
    assert 1.5 < ratio <= most
    clipped, narrow = quantize_rows(weight, (1.0, 0.5), pairs=True)
    assert error(clipped, narrow) <= error(bounded, scale)  # more candidates


def test_outliers_take_what_they_need() -> None:
    """One weight of a pair that is all of a channel's range leaves the other room; two such share the bound."""
    weight = np.random.default_rng(3).standard_normal((4, 64))
    weight[0, 8], weight[1, 8:10] = 100, (-100, 100)
    weight[2] = 0
    values, scale = quantize_rows(weight, pairs=True)
    assert largest_pair(values) <= MAX_PAIR
    assert not values[2].any()
    assert scale[2] == 0
    assert abs(values[0, 8] * scale[0] - 100) < scale[0]
    assert scale[0] < (100 + abs(weight[0, 9])) / 127
    assert (values[1, 8:10] == [-64, 64]).all()
    shares = error_shares((x := np.random.default_rng(4).standard_normal((500, 64))).T @ x)
    assert largest_pair(round_with_feedback(weight, scale, shares, True)) <= MAX_PAIR


@pytest.mark.parametrize("narrow", [1.0, 0.6])
def test_feedback_keeps_products_better_than_rounding_to_nearest(narrow: float) -> None:
    """Also where so small a scale leaves many pairs outside."""
    rng = np.random.default_rng(5)
    weight = rng.standard_normal((48, 300))
    x = rng.standard_normal((2000, 40)) @ rng.standard_normal((40, 300)) + 0.1 * rng.standard_normal((2000, 300))
    _, scale = quantize_rows(weight, pairs=True)
    scale *= np.float32(narrow)
    nearest = np.empty(weight.shape, np.int8)
    _rounding.round_to_nearest(weight, scale.astype(np.float64), nearest, True)
    fed_back = round_with_feedback(weight, scale, error_shares(x.T @ x), True)

    def error(values: Array) -> float:
        return float(np.square(x @ (dequantize(values, scale, 0) - weight).T).sum())

    assert largest_pair(fed_back) <= MAX_PAIR
    assert error(fed_back) < 0.4 * error(nearest)


@pytest.mark.parametrize("tokens", [0, 512])
def test_linears_of_a_file_are_bounded_and_tables_are_not(loaded: Checkpoint, tokens: int, tmp_path: Path) -> None:
    paths = {pairs: tmp_path / f"{pairs}.pocket" for pairs in (False, True)}
    for pairs, path in paths.items():
        compress("model", path, bounded_pairs=pairs, options=QuantizeOptions(random_tokens=tokens))
    graphs = {pairs: read_pocket(path).graph for pairs, path in paths.items()}
    bounded = {name for name, facts in graphs[True].weights.items() if facts.get("bounded_pairs")}
    linears = {op["weight"] for op in loaded.graph.ops if op["op"] == "linear"}
    assert bounded == {name for name in linears if graphs[True].weights[name]["format"] == "i8"} != set()
    assert not any("bounded_pairs" in facts for facts in graphs[False].weights.values())
    plain = {pairs: unpack_graph(graph).params for pairs, graph in graphs.items()}
    for name in bounded:
        assert largest_pair(plain[True][f"{name}.weight"]) <= MAX_PAIR
    assert max(largest_pair(plain[False][f"{name}.weight"]) for name in bounded) > MAX_PAIR
    for name in set(graphs[True].weights) - bounded:
        np.testing.assert_array_equal(plain[True][f"{name}.weight"], plain[False][f"{name}.weight"])
    ids = np.random.default_rng(0).integers(0, loaded.graph.vocab_size, 60).astype(np.int32)
    one, other = (native_packed(graph, ids, [20, 40]) for graph in graphs.values())
    assert 0.999 < float((one * other).sum(axis=1).min()) < 1


def test_single_weights_and_plans(loaded: Checkpoint, tmp_path: Path) -> None:
    one = {"layer0.up": Precision(8, bounded_pairs=True)}
    packed, _ = compress_graph(loaded.graph, options=QuantizeOptions(precision=one, random_tokens=0))
    assert [name for name, facts in packed.weights.items() if facts.get("bounded_pairs")] == ["layer0.up"]
    plan = plan_by_shares(loaded.graph, "int8", 0.25, options=BOUNDED)
    linears = {op["weight"] for op in loaded.graph.ops if op["op"] == "linear"}
    assert set(plan.bits) == linears
    path = tmp_path / "plan.json"
    plan.save(path)
    again = read_plan(path, loaded.graph)
    assert again.options(QuantizeOptions()).precisions(loaded.graph) == BOUNDED.precisions(loaded.graph)
    content = json.loads(path.read_text())
    content["bits"]["layer0.up"]["bounded_pairs"] = 1
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"bounded_pairs of 'layer0\.up' is 1; it must be true or false"):
        read_plan(path, loaded.graph)
    with pytest.raises(ValueError, match="bounded_pairs is given beside a plan, which says of each weight"):
        compress("model", tmp_path / "m.pocket", plan=plan, bounded_pairs=True)


def test_the_command(loaded: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pocket, plan = tmp_path / "m.pocket", tmp_path / "plan.json"
    command = ["compress", "model", "-o", str(pocket), "--criterion", "l2"]
    bounded = [*command, "--bounded-pairs"]
    assert main([*bounded, "--prune-ffn", "0.25", "--plan", str(plan), "--dry-run"]) == 0
    assert json.loads(plan.read_text())["bits"]["layer0.qkv"]["bounded_pairs"] is True
    assert main([*command, "--plan", str(plan)]) == 0  # the plan says so
    assert read_pocket(pocket).graph.weights["layer0.qkv"]["bounded_pairs"] is True
    for weights, message in (
        ("fp32", "weights is 'fp32', where nothing is rounded; leave bounded_pairs out"),
        ("fp16", "bounded_pairs is of int8 linears, and with weights 'fp16' there are none; leave it out"),
        ("int4", "bounded_pairs is of int8 linears, and with weights 'int4' there are none"),
        ("gguf", "weights is 'gguf', which keeps integers, but"),
    ):
        assert main([*bounded, "--weights", weights]) == 1
        assert message in capsys.readouterr().err
    assert main([*bounded, "--weights", "fp32", "--prune-ffn", "0.25", "--dry-run"]) == 1
    assert "and with weights 'fp32' there are none; leave it out" in capsys.readouterr().err


def test_what_has_no_pairs_is_refused() -> None:
    with pytest.raises(ValueError, match="bounded_pairs is of 8 bits, and bits is 4"):
        Precision(4, 64, bounded_pairs=True)
    table: dict[str, Any] = {"words": Precision(8, bounded_pairs=True)}
    with pytest.raises(ValueError, match=r"precision of 'words' has bounded pairs, which a table has no use for"):
        QuantizeOptions(precision=table).precisions(tiny_checkpoint().graph)

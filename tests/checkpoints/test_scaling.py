"""Scales of channels: folding them changes nothing in fp32, and outliers that no rotation spreads cost less."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from helpers.engines import native
from helpers.graphs import tiny_graph
from helpers.prunable import gated_graph
from pocketformer.compression import quantize
from pocketformer.compression.calibration import random_tokens
from pocketformer.compression.options import QuantizeOptions
from pocketformer.compression.pipeline import compress_graph
from pocketformer.compression.quantize import calibrated_profiler
from pocketformer.compression.scaling import CHOOSE, fold, producer
from pocketformer.graph import Array, Graph, GraphBuilder, Table

LENGTHS = [30, 1, 9]
OUTLIERS = {3: 50.0, 17: -50.0}


def outputs(graph: Graph) -> Array:
    ids = np.random.default_rng(5).integers(0, 61, sum(LENGTHS))
    return native(graph, ids, LENGTHS, threads=1).astype(np.float64)


def odd_graph(*, relu: bool = False, planted: bool = True) -> Graph:
    """A pre-norm layer whose rows have 37 channels, some of which the norms make 50 times as large as the others."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> Array:
        return (rng.standard_normal(shape) * 0.2).astype(np.float32)

    gain = np.ones(37, np.float32)
    for channel, factor in OUTLIERS.items() if planted else ():
        gain[channel] = factor
    build = GraphBuilder.text(61, 0, 40)
    x = build.embed([Table("words", normal(61, 37) * 5, "ids")])
    h = build.norm(x, gain, normal(37), name="norm1", eps=1e-5)
    qkv = normal(3 * 38, 37) / np.abs(gain)  # so that every channel matters alike
    x = build.linear(
        build.attention(build.linear(h, qkv, name="qkv"), heads=2, head_dim=19), normal(37, 38), name="out"
    )
    h = build.norm(x, gain, normal(37), name="norm2", eps=1e-5)
    wide = build.linear(h, normal(45, 37) / np.abs(gain), normal(45), name="up", activation="relu" if relu else "gelu")
    x = build.linear(wide, normal(37, 45), name="down", residual=x)
    return build.build(x)


@pytest.mark.parametrize(
    ("make", "weights"),
    [
        (odd_graph, ("qkv", "out", "up")),
        (lambda: odd_graph(relu=True), ("qkv", "out", "up", "down")),
        (gated_graph, ("layer0.qkv", "layer0.out", "layer0.up", "layer0.gate", "layer1.down")),
        (tiny_graph, ("layer0.out", "layer1.out")),
    ],
    ids=["norm, values", "relu", "grouped values, gate", "post-norm"],
)
def test_folding_changes_nothing(make: Callable[[], Graph], weights: tuple[str, ...]) -> None:
    graph = make()
    rng = np.random.default_rng(2)
    expected = outputs(graph)
    for name in weights:
        found = producer(graph, name)
        folded = fold(graph, found, np.exp(rng.standard_normal(found.end - found.begin)))
        assert np.abs(outputs(folded) - expected).max() <= 1e-5 * max(1, np.abs(expected).max())
        assert not np.array_equal(folded.params[f"{name}.weight"], graph.params[f"{name}.weight"])
        broken = {**folded.params, found.names[0]: graph.params[found.names[0]]}
        assert np.abs(outputs(replace(folded, params=broken)) - expected).max() > 1e-3
        graph = folded


@pytest.mark.parametrize(
    ("make", "weight", "reason"),
    [
        (tiny_graph, "layer0.qkv", "is read by linear as a residual, unscaled"),  # a post-norm's row goes on
        (tiny_graph, "layer0.down", "through gelu, which no scale passes"),
        (odd_graph, "down", "through gelu, which no scale passes"),
        (lambda: gated_graph(shared=True), "layer.down", "multiplied by 2 values"),
    ],
)
def test_what_does_not_fold_is_refused_with_the_reason(make: Callable[[], Graph], weight: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        producer(make(), weight)


@pytest.mark.parametrize(("method", "least"), [("smooth", 10), ("auto", 10)])
def test_planted_outliers_recover(method: str, least: float) -> None:
    """Decibels of the output's error that scaling takes away in int8, where 37 channels can not be rotated."""
    graph = odd_graph()
    profiler = calibrated_profiler(graph, random_tokens(graph, 512))
    expected = outputs(graph)
    noise = {}
    for scaling in ("none", method):
        options = QuantizeOptions(scaling=scaling, fp32_rows=0)
        rounded, report = compress_graph(graph, "int8", options, profiler=profiler)
        noise[scaling] = np.square(_run(rounded) - expected).sum()
    gain = 10 * np.log10(noise["none"] / noise[method])
    print(f"\n{method}: {gain:.1f} dB")
    assert gain >= least
    assert "through gelu" in report.unscaled["down"]


def _run(packed: Graph) -> Array:
    from helpers.engines import native_packed
    from helpers.kernels import aligned

    packed.params = {name: aligned(array) for name, array in packed.params.items()}
    ids = np.random.default_rng(5).integers(0, 61, sum(LENGTHS))
    return native_packed(packed, ids, LENGTHS, threads=1).astype(np.float64)


def test_awq_never_costs_more_than_rounding_to_nearest() -> None:
    graph = odd_graph()
    found = producer(graph, "qkv")
    (seen,) = calibrated_profiler(graph, random_tokens(graph, 512))(["qkv"])
    weight = np.asarray(graph.params["qkv.weight"], np.float64)
    scale = CHOOSE["awq"](weight, seen, found.rows, 37)

    def cost(scale: Array) -> float:
        step = np.abs(weight * scale).max(axis=1, keepdims=True) / 7
        change = np.rint(weight * scale / step) * step / scale - weight
        return float((np.square(change) @ seen.squares).sum())

    assert cost(scale) < 0.5 * cost(np.ones(37))


def test_what_a_rotation_spreads_is_left_alone() -> None:
    graph = tiny_graph(hidden=64, heads=2, kv_heads=2, head_dim=32, ffn=64)
    quantization = quantize.Quantization(graph, QuantizeOptions())
    assert list(quantization.round())
    assert quantization.graph is graph
    assert not quantization.unscaled


def test_scaling_that_cannot_be_is_told() -> None:
    with pytest.raises(ValueError, match="scaling is 'best'; it must be one of auto, none, smooth, awq"):
        QuantizeOptions(scaling="best")
    graph = odd_graph()
    kept = quantize.Profiler(calibrated_profiler(graph, random_tokens(graph, 256)).observe)
    with pytest.raises(ValueError, match="give texts, not a kept profile"):
        compress_graph(graph, "int8", QuantizeOptions(scaling="smooth"), profiler=kept)
    compress_graph(graph, "int8", QuantizeOptions(), profiler=kept)

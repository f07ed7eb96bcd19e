"""Structured pruning: what hangs together leaves together, the smaller graph is the masked one, the refit pays."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from helpers.engines import native
from helpers.graphs import tiny_graph
from helpers.prunable import VOCAB, gated_graph
from pocketformer.compression import QuantizeOptions, quantize
from pocketformer.compression.channels import Channels, Space
from pocketformer.compression.importance import NAMES, importance
from pocketformer.compression.prune import PruneOptions, collect, prune_graph, rounded_width, widths_by_share
from pocketformer.compression.surgery import drop_layers, layers, mask_units, remove_units
from pocketformer.graph import Array, Graph
from pocketformer.lazy import LazyArray

LENGTHS = [40, 1, 23]
GRAPHS: dict[str, Callable[[], Graph]] = {
    "post-norm": lambda: tiny_graph(ffn=128),
    "one key head, a bias that two layers share": lambda: tiny_graph(heads=4, kv_heads=2, head_dim=8, relative=True),
    "gated": gated_graph,
    "gated, one layer twice": lambda: gated_graph(shared=True),
}
SPACES = {  # name: (readers, units, columns of a unit)
    "post-norm": {
        "layer0.out": (1, 3, 26),
        "layer0.down": (1, 128, 1),
        "layer1.out": (1, 3, 26),
        "layer1.down": (1, 128, 1),
    },
    "one key head, a bias that two layers share": {
        "layer0.out": (2, 2, 16),
        "layer0.down": (1, 41, 1),
        "layer1.down": (1, 41, 1),
    },
    "gated": {
        "layer0.out": (1, 2, 12),
        "layer0.down": (1, 128, 1),
        "layer1.out": (1, 2, 12),
        "layer1.down": (1, 128, 1),
    },
    "gated, one layer twice": {"layer.out": (1, 2, 12), "layer.down": (1, 128, 1)},
}


def outputs(graph: Graph, seed: int = 0) -> Array:
    ids = np.random.default_rng(seed).integers(0, VOCAB, sum(LENGTHS))
    return native(graph, ids, LENGTHS, threads=1)


def half(channels: Channels, seed: int = 0) -> Array:
    rng = np.random.default_rng(seed)
    return np.concatenate(
        [rng.choice(space.units, len(space.units) // 2, replace=False) for space in channels.spaces.values()]
    )


@pytest.mark.parametrize("kind", GRAPHS)
def test_units_follow_from_who_reads_what(kind: str) -> None:
    spaces = Channels(GRAPHS[kind]()).spaces
    assert {name: (len(s.readers), len(s.units), s.size) for name, s in spaces.items()} == SPACES[kind]
    assert {space.heads for space in spaces.values() if space.size > 1} == {True}
    assert {space.heads for space in spaces.values() if space.size == 1} == {False}


@pytest.mark.parametrize("kind", GRAPHS)
def test_pruned_is_masked(kind: str) -> None:
    graph = GRAPHS[kind]()
    channels = Channels(graph)
    removed = half(channels)
    pruned, masked = remove_units(graph, channels, removed), mask_units(graph, channels, removed)
    assert np.abs(outputs(pruned) - outputs(masked)).max() <= 1e-5
    assert np.abs(outputs(masked) - outputs(graph)).max() > 1e-2
    assert sum(array.size for array in pruned.params.values()) < sum(array.size for array in graph.params.values())
    for name, facts in pruned.weights.items():
        assert pruned.params[f"{name}.weight"].shape == (facts["n"], facts["k"])


def test_a_mask_that_misses_a_gate_is_seen() -> None:
    graph = gated_graph()
    channels = Channels(graph)
    removed = channels.spaces["layer0.down"].units[:40]
    masked = mask_units(graph, channels, removed)
    masked.params["layer0.down.weight"] = graph.params["layer0.down.weight"]
    masked.params["layer0.gate.weight"] = graph.params["layer0.gate.weight"]
    masked.params["layer0.up.weight"] = graph.params["layer0.up.weight"]
    assert np.abs(outputs(remove_units(graph, channels, removed)) - outputs(masked)).max() > 1e-3


@pytest.mark.parametrize("kind", ["post-norm", "gated, one layer twice"])
def test_refit_is_never_worse_and_obs_is_best(kind: str) -> None:
    graph = GRAPHS[kind]()
    channels = Channels(graph)
    spaces = [space for space in channels.spaces.values() if not space.heads]
    widths = widths_by_share(channels, 0.5)
    assert set(widths.values()) == {64}
    errors = {}
    for criterion in NAMES:
        options = PruneOptions(criterion)
        _, results = prune_graph(graph, widths, options, collect(graph, spaces, options))
        assert all(result.refitted <= result.plain for result in results)
        errors[criterion] = sum(result.refitted for result in results)
    print(f"\n{kind}: relative error after refit {errors}")
    assert all(errors["obs"] <= error for error in errors.values())


@pytest.mark.parametrize("share", [0.3, 0.5])
def test_heads_are_refitted_too(share: float) -> None:
    graph = gated_graph()
    channels = Channels(graph)
    widths = widths_by_share(channels, share, heads=True)
    assert set(widths.values()) == {12}  # one of two key heads, each with two queries
    pruned, results = prune_graph(graph, widths, PruneOptions())
    assert [state["heads"] for state in pruned.states] == [1, 1]
    assert all(result.refitted < result.plain for result in results)
    assert np.isfinite(outputs(pruned)).all()


def spearman(a: Array, b: Array) -> float:
    ranks = [np.argsort(np.argsort(scores)) for scores in (a, b)]
    return float(np.corrcoef(*ranks)[0, 1])


def leave_one_out(graph: Graph, channels: Channels, space: Space) -> Array:
    """The squared change of the output when one unit alone is masked, for each unit."""
    expected = outputs(graph, 1)
    losses = [np.square(outputs(mask_units(graph, channels, space.units[[i]]), 1) - expected).sum() for i in range(64)]
    return np.array(losses)


@pytest.mark.slow
def test_importance_against_the_exact_loss() -> None:
    graph = gated_graph()
    channels = Channels(graph)
    space = channels.spaces["layer0.down"]
    exact = leave_one_out(graph, channels, space)
    found = {}
    for name in NAMES:
        seen = collect(graph, [space], PruneOptions(name))
        found[name] = spearman(importance(name, graph, channels, space, seen, len(space.units))[:64], exact)
    print(
        "\nSpearman correlation with the exact leave-one-out loss: " + str({k: round(v, 3) for k, v in found.items()})
    )
    assert found["obs"] > 0.8
    assert min(found["obs"], found["wanda"]) > max(found["l1"], found["l2"])
    assert min(found["taylor"], found["hessian"]) > 0.8


def test_dropped_layers_are_a_smaller_model() -> None:
    graph = tiny_graph(layers=3)
    assert len(layers(graph)) == 3
    assert np.array_equal(outputs(drop_layers(graph, [2])), outputs(tiny_graph(layers=2)))
    assert np.array_equal(outputs(drop_layers(graph, [1, 2])), outputs(tiny_graph(layers=1)))
    first = drop_layers(graph, [0, 1])
    assert len(layers(first)) == 0
    assert {name.split(".")[0] for name in first.weights} == {"words", "positions", "types", "layer2"}
    assert len(first.states) == 1
    assert len(layers(gated_graph())) == 2
    assert np.isfinite(outputs(drop_layers(gated_graph(), [0]))).all()


@pytest.mark.parametrize("dropped", [[3], [-1], [0, 1, 2]])
def test_layers_that_cannot_be_dropped(dropped: list[int]) -> None:
    with pytest.raises(ValueError, match="cannot be dropped: there are 3"):
        drop_layers(tiny_graph(layers=3), dropped)


def test_widths_are_rounded_to_panels() -> None:
    space = Channels(tiny_graph(ffn=200)).spaces["layer0.down"]
    assert [rounded_width(space, width) for width in (200, 190, 100, 90, 1)] == [192, 192, 128, 64, 64]


def test_impossible_widths_are_refused_by_name() -> None:
    graph = gated_graph()
    with pytest.raises(ValueError, match=r"'layer9.down' has no channels that can be pruned; those are of layer0.out"):
        prune_graph(graph, {"layer9.down": 64})
    with pytest.raises(ValueError, match=r"layer0.out cannot have 13 columns; it must be a multiple of 12"):
        prune_graph(graph, {"layer0.out": 13})
    with pytest.raises(ValueError, match="from 1 to 128"):
        prune_graph(graph, {"layer0.down": 192})
    with pytest.raises(ValueError, match="criterion is 'best'"):
        PruneOptions("best")
    with pytest.raises(ValueError, match="share is 1"):
        widths_by_share(Channels(graph), 1.0)


def test_a_quantized_graph_is_refused() -> None:
    with pytest.raises(ValueError, match="prune it as it was imported"):
        Channels(quantize.quantize_graph(tiny_graph(), QuantizeOptions(random_tokens=0)))


def test_what_is_cut_is_read_when_it_is_used() -> None:
    graph = gated_graph()
    pruned, _ = prune_graph(graph, {"layer0.down": 64}, PruneOptions("l2", refit=False))
    assert isinstance(pruned.params["layer0.gate.weight"], LazyArray)
    rows = np.asarray(pruned.params["layer0.gate.weight"])
    parts = [pruned.params["layer0.gate.weight"][begin : begin + 16] for begin in range(0, 80, 16)]
    assert np.array_equal(np.concatenate(parts), rows)
    assert np.isfinite(outputs(quantize.quantize_graph(pruned))).all()

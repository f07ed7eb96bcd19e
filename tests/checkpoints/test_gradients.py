"""Importance by gradients: the twin in torch is the same function, its gradients are right, and they rank channels."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from bench.importance import mean_correlations, sequences, untrained

from helpers.graphs import tiny_decoder, tiny_graph
from helpers.prunable import gated_graph
from pocketformer import reference
from pocketformer.cli import main
from pocketformer.compression import QuantizeOptions, gradients, quantize, twin
from pocketformer.compression.calibration import random_tokens
from pocketformer.compression.channels import Channels
from pocketformer.compression.importance import importance
from pocketformer.compression.prune import PruneOptions, collect, prune_graph
from pocketformer.graph import Array, Graph, GraphBuilder


def image_graph() -> Graph:
    """Patches by unfold with padding, rows before them, attention, and what pooling there is."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> Array:
        return (rng.standard_normal(shape) * 0.3).astype(np.float32)

    build = GraphBuilder()
    pixels = build.domain("pixels", "grid", height=8, width=8)
    patches = build.domain("patches", "grid", height=4, width=4)
    rows = build.domain("rows", "ragged", patches, prepended=2)
    build.inputs.append({"name": "image", "domain": pixels, "dtype": "f32", "width": 3})
    x = build.unfold("image", patches, height=3, width=3, stride=2, padding=1)
    x = build.linear(x, normal(24, 27), normal(24), name="patch")
    x = build.prepend(x, normal(2, 24), rows, name="first")
    x = build.norm(x, 1 + normal(24), normal(24), name="norm", eps=1e-5)
    qkv = build.linear(x, normal(72, 24), name="qkv")
    x = build.linear(build.attention(qkv, heads=2, head_dim=12, domain=rows), normal(24, 24), name="out", residual=x)
    kinds = ("mean", "cls", "max", "last", "mean_sqrt", "weighted_mean")
    return build.build(build.concat([build.pool(x, kind, rows) for kind in kinds]))


def block_graph() -> Graph:
    graph = tiny_graph()
    for op in graph.ops:
        if op["op"] == "attention":
            for field in ("left", "right", "bias"):
                op.pop(field, None)
            op.update(block=4, block_window=1, block_globals=1, block_repeats=2, block_dense=12)
    return graph


def given(graph: Graph) -> dict[str, Any]:
    rng = np.random.default_rng(3)
    if graph.find_input("image"):
        return {"image": rng.standard_normal((128, 3)).astype(np.float32)}
    feeds: dict[str, Any] = {"ids": rng.integers(0, graph.vocab_size, 33), "tokens": np.array([0, 20, 21, 33])}
    if graph.type_vocab_size:
        feeds["types"] = rng.integers(0, graph.type_vocab_size, 33)
    if any(entry["kind"] == "selected" for entry in graph.domains):
        feeds["selected"] = np.array([0, 7, 20, 32])
    return feeds


GRAPHS: dict[str, Callable[[], Graph]] = {
    "post-norm, windows, a bias": lambda: tiny_graph(relative=True),
    "selected rows, a tied head": lambda: tiny_graph(task="fill_mask", kv_heads=1),
    "grouped and gated": gated_graph,
    "decoder": tiny_decoder,
    "image": image_graph,
    "blocks": block_graph,
}


@pytest.mark.parametrize("kind", GRAPHS)
def test_the_twin_is_the_same_function(kind: str) -> None:
    graph = GRAPHS[kind]()
    expected = reference.run(graph, given(graph))
    actual = twin.Twin(graph, [])(given(graph)).numpy()
    assert np.abs(actual - expected).max() <= 1e-4 * max(1, np.abs(expected).max())


def test_what_the_twin_does_not_know_is_refused() -> None:
    with pytest.raises(ValueError, match="quantize_heads, of which gradients are not known"):
        twin.Twin(quantize.quantize_graph(tiny_graph(), QuantizeOptions(random_tokens=0)))
    graph = tiny_graph()
    next(op for op in graph.ops if op["op"] == "attention")["globals"] = 1
    with pytest.raises(ValueError, match="the graph has attention with globals, of which gradients are not known"):
        twin.Twin(graph)


def test_scores_are_those_of_numeric_gradients() -> None:
    """Of a channel every parameter is moved, one at a time."""
    graph, channels = gated_graph(), Channels(gated_graph())
    space = channels.spaces["layer1.down"]
    sample = random_tokens(graph, 80)

    def loss(output: Any, index: int) -> Any:
        return output.sum() * (index + 1)

    found = {
        name: gradients.gradient_scores(name, graph, channels, [space], sample, loss)[space.name]
        for name in ("taylor", "hessian")
    }
    feeds = list(gradients.sequences(graph, sample))
    for unit in (3,):
        taylor = hessian = 0.0
        for (name, axis), labels in channels.axes.items():
            place = np.flatnonzero(labels == space.units[unit])
            for index in np.ndindex(graph.params[name].shape):
                if not len(place) or index[axis] != place[0]:
                    continue
                slopes = []
                for sign in (1, -1):
                    moved = {**graph.params, name: graph.params[name].astype(np.float64)}
                    moved[name][index] += sign * 1e-3
                    changed = Graph(**{**graph.__dict__, "params": moved})
                    slopes.append([reference.run(changed, x).sum() * (i + 1) for i, x in enumerate(feeds)])
                products = (np.array(slopes[0]) - slopes[1]) / 2e-3 * graph.params[name][index]
                taylor, hessian = taylor + np.abs(products).mean(), hessian + np.square(products).mean() / 2
        assert found["taylor"][unit] == pytest.approx(taylor, rel=2e-2)
        assert found["hessian"][unit] == pytest.approx(hessian, rel=4e-2)


def test_heads_that_leave_together_are_judged_together() -> None:
    graph = untrained()
    for layer in range(2):  # the second key head of each layer, with its two queries, does nothing
        graph.params[f"layer{layer}.out.weight"][:, 12:] = 0
        graph.params[f"layer{layer}.qkv.weight"][12:24] = graph.params[f"layer{layer}.qkv.weight"][30:36] = 0
        graph.params[f"layer{layer}.qkv.weight"][42:48] = 0
    for criterion in ("taylor", "hessian"):
        pruned, results = prune_graph(graph, {"layer0.out": 12, "layer1.out": 12}, PruneOptions(criterion))
        assert [result.plain for result in results] == pytest.approx([0, 0], abs=1e-6)
        assert [state["heads"] for state in pruned.states] == [1, 1]


@pytest.mark.slow
def test_criteria_against_the_exact_loss_of_a_trained_net() -> None:
    torch.set_num_threads(1)
    found = {name: change for name, (change, _) in mean_correlations(steps=100).items()}
    print(
        "\nSpearman correlation with the exact change of the loss: " + str({k: round(v, 2) for k, v in found.items()})
    )
    assert min(found["taylor"], found["hessian"]) > 0.7
    assert min(found["obs"], found["wanda"]) > 0.4
    assert min(found["taylor"], found["hessian"]) > max(found["l1"], found["l2"])


def test_a_kept_profile_and_a_missing_torch_are_told() -> None:
    graph = untrained()
    space = Channels(graph).spaces["layer0.down"]
    options = PruneOptions("taylor")
    with pytest.raises(ValueError, match="a profile that was kept has none; give the texts"):
        collect(graph, [space], options, quantize.Profiler(lambda names, _: iter(())))
    with pytest.raises(ValueError, match=r"needs the gradients of layer0\.down; collect them"):
        importance("hessian", graph, Channels(graph), space, {}, 1)
    with pytest.raises(ValueError, match="of gradients there are taylor, hessian"):
        gradients.gradient_scores("obs", graph, Channels(graph), [space], sequences(1, 0)[0])


def test_the_extra_is_named_where_torch_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    command = ["compress", "no such model", "-o", "never.pocket", "--prune-ffn", "0.5", "--importance", "taylor"]
    assert main(command) == 1  # before the model is opened
    assert "pip install 'pocketformer[tune]'" in capsys.readouterr().err
    with pytest.raises(ImportError, match=r"pip install 'pocketformer\[tune\]'"):
        prune_graph(untrained(), {"layer0.down": 8}, PruneOptions("taylor"))

"""A narrower residual stream: turning it changes nothing, what has few components loses none, the rest is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pocketformer
from helpers.engines import native
from helpers.graphs import MODEL, TEXT, tiny_decoder, tiny_graph
from helpers.prunable import gated_graph
from pocketformer import reference
from pocketformer.cli import main
from pocketformer.compression import compress, make_plan
from pocketformer.compression import width as of_width
from pocketformer.compression.calibration import Calibration, random_tokens
from pocketformer.compression.channels import Channels
from pocketformer.compression.outputs import outputs
from pocketformer.compression.prune import PruneOptions, prune_graph
from pocketformer.compression.quantize import Profiler, calibrated_profiler, quantize_graph
from pocketformer.compression.width import find_stream, fold_norms, narrow, rounded_stream
from pocketformer.graph import Array, Graph, GraphBuilder, Table
from pocketformer.pocketfile import read_pocket
from pocketformer.sources.huggingface import Checkpoint

HIDDEN = 32


def normal(rng: Any, *shape: int) -> Array:
    return np.asarray(rng.standard_normal(shape) * 0.3, np.float32)


def layers(build: GraphBuilder, x: str, rng: Any, kind: str, domain: str = "tokens") -> str:
    """Two pre-norm layers with biases everywhere."""
    for layer in range(2):
        name = f"layer{layer}"
        gain, shift = 1 + normal(rng, HIDDEN), normal(rng, HIDDEN)
        h = build.norm(x, gain, shift, name=f"{name}.norm1", eps=1e-3, kind=kind)
        qkv = build.linear(h, normal(rng, 3 * HIDDEN, HIDDEN), normal(rng, 3 * HIDDEN), name=f"{name}.qkv")
        mixed = build.attention(qkv, heads=2, head_dim=16, domain=domain)
        x = build.linear(mixed, normal(rng, HIDDEN, HIDDEN), normal(rng, HIDDEN), name=f"{name}.out", residual=x)
        h = build.norm(x, gain + 0.1, shift, name=f"{name}.norm2", eps=1e-3, kind=kind)
        up = build.linear(h, normal(rng, 64, HIDDEN), name=f"{name}.up", activation="gelu")
        x = build.linear(up, normal(rng, HIDDEN, 64), normal(rng, HIDDEN), name=f"{name}.down", residual=x)
    return build.norm(x, 1 + normal(rng, HIDDEN), normal(rng, HIDDEN), name="norm", eps=1e-3, kind=kind)


def text_graph(kind: str = "rms", head: bool = True) -> Graph:
    """With a head that is the table of words, or the mean of the rows."""
    rng = np.random.default_rng(0)
    build = GraphBuilder.text(61, 0, 40)
    words = normal(rng, 61, HIDDEN) * 3
    tables = [Table("words", words, "ids"), Table("positions", normal(rng, 40, HIDDEN), "positions")]
    x = layers(build, build.embed(tables, scale=1.5), rng, kind)
    if head:
        return build.build(build.linear(x, words, name="words"))
    return build.build(build.normalize(build.pool(x, "mean")))


def image_graph() -> Graph:
    rng = np.random.default_rng(1)
    build = GraphBuilder()
    pixels = build.domain("pixels", "grid", height=4, width=4)
    patches = build.domain("patches", "grid", pixels, height=2, width=2)
    rows = build.domain("rows", "ragged", patches, prepended=1)
    build.inputs.append({"name": "image", "domain": pixels, "dtype": "f32", "width": 3})
    x = build.unfold("image", patches, height=2, width=2, stride=2)
    x = build.linear(x, normal(rng, HIDDEN, 12), normal(rng, HIDDEN), name="patch")
    x = build.prepend(x, normal(rng, 1, HIDDEN), rows, name="first")
    x = build.embed([Table("positions", normal(rng, 5, HIDDEN), "positions")], x)
    x = build.pool(layers(build, x, rng, "layer", rows), "cls", rows)
    return build.build(build.linear(x, normal(rng, 3, HIDDEN), normal(rng, 3), name="classes"))


GRAPHS: dict[str, Callable[[], Graph]] = {
    "RMS norms, a tied head": text_graph,
    "layer norms, the mean": lambda: text_graph("layer", head=False),
    "grouped and gated": gated_graph,
    "one layer twice": lambda: gated_graph(shared=True),
    "image": image_graph,
}


def sample(graph: Graph) -> Calibration:
    if graph.find_input("image"):
        image = np.random.default_rng(2).standard_normal((16 * 40, 3)).astype(np.float32)
        return Calibration({"image": image}, np.full(40, 16, np.int64))
    return random_tokens(graph, 400)


def run(graph: Graph, given: Calibration) -> Array:
    return outputs(graph, given) if graph.find_input("ids") else reference.run(graph, given.inputs)


def relative(a: Array, b: Array) -> float:
    return float(np.abs(a - b).max() / max(1, np.abs(b).max()))


@pytest.mark.parametrize("kind", GRAPHS)
def test_folding_and_turning_change_nothing(kind: str) -> None:
    graph = GRAPHS[kind]()
    given, stream = sample(graph), find_stream(graph)
    expected = run(graph, given)
    folded = fold_norms(graph, stream)
    assert relative(run(folded, given), expected) <= 1e-5
    assert {op["kind"] for op in folded.ops if op.get("in") in stream.values and op["op"] == "norm"} == {"rms"}
    turned = narrow(graph, stream.width, calibrated_profiler(graph, given))
    assert relative(run(turned, given), expected) <= 2e-5
    assert not np.allclose(_writer(turned), _writer(graph), atol=0.01)


def _writer(graph: Graph) -> Array:
    return np.asarray(next(array for name, array in graph.params.items() if name.endswith("out.weight")))


@pytest.mark.parametrize("kind", [kind for kind in GRAPHS if "gated" not in kind and "twice" not in kind])
def test_a_stream_of_few_components_loses_none(kind: str) -> None:
    """Everything is written into 15 directions; with the mean, that is taken away, 16 components hold them."""
    graph = GRAPHS[kind]()
    basis = np.linalg.qr(np.random.default_rng(4).standard_normal((HIDDEN, 15)))[0]
    graph = of_width._written(graph, find_stream(graph), (basis @ basis.T).astype(np.float64))
    given = sample(graph)
    narrowed = narrow(graph, 16, calibrated_profiler(graph, given))
    assert {narrowed.widths()[value] for value in find_stream(graph).values} == {16}
    expected = run(graph, given)
    assert relative(run(narrowed, given), expected) <= 2e-4
    assert run(narrowed, given).shape == expected.shape
    less = narrow(graph, 8, calibrated_profiler(graph, given))
    assert relative(run(less, given), expected) > 1e-2
    assert sum(array.size for array in less.params.values()) < sum(array.size for array in narrowed.params.values())


def test_a_smaller_eps_is_seen() -> None:
    graph = text_graph()
    small = [{**op, "eps": 0.3} if op["op"] == "norm" else op for op in graph.ops]
    graph = of_width._written(replace(graph, ops=small), find_stream(graph), np.diag(np.arange(HIDDEN) < 16) * 1.0)
    given = sample(graph)
    expected = run(graph, given)
    narrowed = narrow(graph, 16, calibrated_profiler(graph, given))
    assert relative(run(narrowed, given), expected) <= 2e-4
    forgotten = [{**op, "eps": 0.3} if op["op"] == "norm" else op for op in narrowed.ops]
    assert relative(run(replace(narrowed, ops=forgotten), given), expected) > 1e-3


def test_the_narrow_model_is_pruned_and_rounded_like_any_other() -> None:
    graph = text_graph("layer", head=False)
    given = sample(graph)
    narrowed = narrow(graph, 16, calibrated_profiler(graph, given))
    assert set(Channels(narrowed).spaces) == set(Channels(graph).spaces)
    pruned, _ = prune_graph(narrowed, {"layer0.out": 16}, PruneOptions("l2", refit=False))
    ids = np.random.default_rng(5).integers(0, 61, 20)
    rounded = quantize_graph(pruned)
    assert (native(pruned, ids, [20], threads=1) * native(rounded, ids, [20], threads=1)).sum() > 0.99


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (tiny_graph, "a norm is part of the residual"),
        (tiny_decoder, r"norm layer0.norm2.weight is part of the residual \(post-norm or sandwich\)"),
    ],
)
def test_a_stream_that_cannot_be_turned_is_refused_with_the_reason(make: Callable[[], Graph], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        find_stream(make())


def test_streams_that_are_read_without_a_norm_are_refused() -> None:
    rng = np.random.default_rng(0)
    build = GraphBuilder.text(61, 0, 40)
    first = build.embed([Table("words", normal(rng, 61, HIDDEN), "ids")])
    x = build.linear(first, normal(rng, HIDDEN, HIDDEN), name="mix", residual=first)
    with pytest.raises(ValueError, match="linear reads the residual as it is, without a norm"):
        find_stream(build.build(x))
    graph = text_graph(head=False)
    ops = [{**op, "kind": "max"} if op["op"] == "pool" else op for op in graph.ops]
    assert (
        relative(
            run(narrow(replace(graph, ops=ops), HIDDEN, calibrated_profiler(graph, sample(graph))), sample(graph)),
            run(replace(graph, ops=ops), sample(graph)),
        )
        <= 2e-5
    )
    residual = next(op["out"] for op in graph.ops if op.get("weight") == "layer1.down")
    with pytest.raises(ValueError, match="the residual is the output"):
        find_stream(replace(graph, output=residual))


def test_widths_and_kept_profiles() -> None:
    assert [rounded_stream(768, 0.5), rounded_stream(384, 0.5), rounded_stream(64, 0.5), rounded_stream(64, 1)] == [
        384,
        192,
        32,
        64,
    ]
    with pytest.raises(ValueError, match="width is 0; it must be above 0 and at most 1"):
        rounded_stream(64, 0)
    graph = text_graph()
    with pytest.raises(ValueError, match="a kept profile has none; give the texts"):
        narrow(graph, 16, Profiler(lambda names, _: iter(())))
    with pytest.raises(ValueError, match=r"width is 33; it must lie in 1…32"):
        narrow(graph, 33, calibrated_profiler(graph, sample(graph)))


def test_a_plan_knows_the_width_that_it_is_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = Checkpoint(text_graph("layer", head=False), {**MODEL}, TEXT, None)
    monkeypatch.setattr("pocketformer.sources.huggingface.load_checkpoint", lambda folder, tower=None: text)
    path, pocket = tmp_path / "plan.json", tmp_path / "m.pocket"
    plan = make_plan("model", width=0.5)
    plan.save(path)
    assert json.loads(path.read_text())["width"] == 0.5
    for given in (path, plan):
        with pytest.raises(ValueError, match=r"model of width 0.5, and the width given is 1; give --width 0.5"):
            compress("model", pocket, plan=given)
    make_plan("model").save(path)
    with pytest.raises(ValueError, match=r"model of width 1, and the width given is 0.5; give --width 1"):
        compress("model", pocket, plan=path, width=0.5)
    assert not pocket.exists()
    for width in ("0.5", True, 0, 1.5, None):
        path.write_text(json.dumps({"version": 1, "layers": {}, "width": width}))
        with pytest.raises(ValueError, match="above 0 and up to 1"):
            compress("model", pocket, plan=path)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    text = Checkpoint(text_graph("layer", head=False), {**MODEL}, TEXT, None)
    monkeypatch.setattr("pocketformer.sources.huggingface.load_checkpoint", lambda folder, tower=None: text)
    for weights in ("fp32", "int8"):
        command = ["compress", "model", "-o", str(tmp_path / "m.pocket"), "--weights", weights, "--width", "0.5"]
        assert main([*command, "--prune-ffn", "0.1"]) == main(command) == 0
        stored = read_pocket(tmp_path / "m.pocket")
        assert (stored.graph.weights["words"]["k"], stored.graph.weights["layer0.out"]["n"]) == (16, 16)
        assert pocketformer.load(tmp_path / "m.pocket")([[1, 2, 3]]).shape == (1, HIDDEN)
    capsys.readouterr()
    post = Checkpoint(tiny_graph(), {**MODEL}, TEXT, None)
    monkeypatch.setattr("pocketformer.sources.huggingface.load_checkpoint", lambda folder, tower=None: post)
    assert main(command) == 1
    assert "a norm is part of the residual" in capsys.readouterr().err
    assert main([*command, "--width", "2"]) == 1

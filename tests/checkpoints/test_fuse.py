"""Projections of a head multiplied into each other: the same outputs from fewer numbers, or the reason against it."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from helpers.engines import ENGINES, native, native_packed
from helpers.graphs import tiny_decoder, tiny_graph
from helpers.kernels import aligned
from helpers.torch_models import Inputs, build, make_adversarial, torch_outputs
from pocketformer import compress, load
from pocketformer.compression import compress_graph
from pocketformer.compression.fuse import fuse_attention
from pocketformer.graph import Graph
from pocketformer.sources.huggingface import load_checkpoint

LENGTHS = (1, 40, 17, 3)


def size(graph: Graph) -> int:
    return sum(array.size for array in graph.params.values())


def outputs(graph: Graph, engine: str = "native") -> np.ndarray:
    rng, lengths = np.random.default_rng(2), [min(n, graph.max_length) for n in LENGTHS]
    types = rng.integers(0, 2, sum(lengths)) if graph.type_vocab_size else None
    return ENGINES[engine](graph, rng.integers(0, graph.vocab_size, sum(lengths)), lengths, types)


@pytest.mark.parametrize(("kv_heads", "p"), [(3, 26), (1, 32)])
@pytest.mark.parametrize("relative", [False, True])
def test_the_same_outputs_from_fewer_numbers(kv_heads: int, p: int, relative: bool) -> None:
    graph = tiny_graph(kv_heads=kv_heads, head_dim=p, relative=relative)  # 3 heads over 36 columns, windows, biases
    fused, reasons = fuse_attention(graph)
    heads, e = 3, 36
    before = (heads + 2 * kv_heads) * p * (e + 1) + e * heads * p + e
    after = heads * e * (e + 1) + e * heads * e + e
    assert not reasons
    assert (
        size(fused) - size(graph)
        == 2 * (after - before)
        == sum(
            fused.params[f"layer{i}.{name}.weight"].size + fused.params[f"layer{i}.{name}.fused_bias"].size
            for i in range(2)
            for name in ("qkv", "out")
        )
        - 2 * before
    )
    assert [op["op"] for op in fused.ops].count("columns") == 0
    assert all(state["heads"] == 1 and state["head_dim"] == e for state in fused.states)
    for engine in ENGINES:
        assert np.abs(outputs(fused, engine) - outputs(graph, engine)).max() <= 1e-5
    packed, _ = compress_graph(fused)
    ids = np.arange(40)
    y = native_packed(replace(packed, params={n: aligned(a) for n, a in packed.params.items()}), ids, (40,), ids % 2)
    assert (y * native(graph, ids, (40,), ids % 2)).sum() > 0.999  # both are of length 1


@pytest.mark.parametrize("bias", ["queries", "keys", "values"])
def test_every_bias_counts_as_it_does_apart(bias: str) -> None:
    """That of keys cancels; those of queries and values do not."""
    graph = tiny_graph()
    begin = ("queries", "keys", "values").index(bias) * 78
    changed = dict(graph.params)
    for i in range(2):
        changed[f"layer{i}.qkv.bias"] = changed[f"layer{i}.qkv.bias"].copy()
        changed[f"layer{i}.qkv.bias"][begin : begin + 78] += 1
    other = replace(graph, params=changed)
    assert np.abs(outputs(fuse_attention(other)[0]) - outputs(other)).max() <= 1e-5
    assert (np.abs(outputs(other) - outputs(graph)).max() > 1e-3) == (bias != "keys")


@pytest.mark.parametrize("family", ["bert", "t5"])
def test_families(tmp_path: Path, family: str) -> None:
    """A BERT of one head, and a T5 of wide heads with its bias by distance: a third or more of their attention goes."""
    if family == "bert":
        model = build("bert", "embed", tmp_path, hidden_size=48, num_attention_heads=1)
    else:
        sizes = {"d_model": 32, "d_kv": 24, "num_heads": 3, "num_layers": 2, "d_ff": 40}
        config = transformers.T5Config(vocab_size=211, layer_norm_epsilon=1e-2, **sizes)
        model = transformers.T5EncoderModel(config).eval()
        make_adversarial(model, 3)
        model.save_pretrained(tmp_path)
    graph = load_checkpoint(tmp_path).graph
    fused, reasons = fuse_attention(graph)
    inputs = Inputs.random((1, 40, 17), 2 if family == "bert" else 0)
    expected = torch_outputs(model, inputs, "embed")
    types = inputs.types if family == "bert" else None
    y = native(fused, inputs.ids, inputs.lengths, types)
    assert not reasons
    assert np.abs(y - expected).max() <= 1e-4 * max(1, np.abs(expected).max())
    assert size(fused) < size(graph)


def test_shared_layers_are_fused_once(tmp_path: Path) -> None:
    build("albert", "embed", tmp_path, hidden_size=48, num_attention_heads=1, num_hidden_groups=1, inner_group_num=1)
    graph = load_checkpoint(tmp_path).graph
    fused, reasons = fuse_attention(graph)
    assert not reasons
    assert size(graph) - size(fused) == 2 * 48 * 48 + 2 * 48  # of the one layer that all four are
    assert np.abs(outputs(fused) - outputs(graph)).max() <= 1e-5 * np.abs(outputs(graph)).max()


def test_what_does_not_pay_or_fit_says_why(tmp_path: Path) -> None:
    plain, reasons = fuse_attention(tiny_graph(heads=6, kv_heads=6, head_dim=18))
    text = "6 heads of 18 over 36 columns: 6·36·(36 + 36) = 15,552 numbers fused, 15,552 apart"
    assert len(reasons) == 2
    assert all(text in reason for reason in reasons.values())
    assert np.array_equal(outputs(plain), outputs(tiny_graph(heads=6, kv_heads=6, head_dim=18)))
    assert all(
        "what rope makes" in reason or "what norm makes" in reason
        for reason in fuse_attention(tiny_decoder())[1].values()
    )
    wide = fuse_attention(tiny_graph(heads=1, kv_heads=1, head_dim=200, hidden=272))[1]
    assert all("272 columns, and heads at most 256" in reason for reason in wide.values())
    build("bert", "embed", tmp_path / "bert")
    with pytest.raises(ValueError, match=r"fuse_attention saves nothing here; layers\.0\.qkv: 3 heads of 26 over 78"):
        compress(tmp_path / "bert", tmp_path / "bert.pocket", fuse_attention=True)
    with pytest.raises(ValueError, match="beside a plan or limits"):
        compress(tmp_path / "bert", tmp_path / "bert.pocket", fuse_attention=True, budget="1MB")


def test_a_file_is_smaller_and_says_so(tmp_path: Path) -> None:
    build("bert", "embed", tmp_path / "bert", hidden_size=48, num_attention_heads=1)
    plain = compress(tmp_path / "bert", tmp_path / "plain.pocket", weights="fp32")
    report = compress(tmp_path / "bert", tmp_path / "fused.pocket", weights="fp32", fuse_attention=True)
    saved = 2 * 4 * (2 * 48 * 48 + 2 * 48)
    assert (report.stages[0].name, report.stages[0].before - report.stages[0].after) == ("fuse", saved)
    assert plain.file_bytes - report.file_bytes >= saved - 256
    ids = [np.arange(5, 30)]
    y, z = (load(tmp_path / f"{name}.pocket").run(ids) for name in ("plain", "fused"))
    assert np.abs(y - z).max() <= 1e-5 * np.abs(y).max()


def test_the_toy_of_the_resource_efficient_transformer() -> None:
    """3·d² + 2000·d parameters; with one head keys and values vanish, d² + 2000·d; with its 8 heads it would grow."""
    path = Path(__file__).parents[2] / "examples" / "resource_efficient.py"
    spec = importlib.util.spec_from_file_location("resource_efficient", path)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = example
    spec.loader.exec_module(example)
    one = example.Config(hidden=64, heads=1)
    graph = example.graph(one, example.weights(one))
    fused, _ = fuse_attention(graph)
    assert (size(graph), size(fused)) == (140_288, 132_096)
    assert np.abs(outputs(fused) - outputs(graph)).max() <= 1e-5 * np.abs(outputs(graph)).max()
    (reason,) = fuse_attention(example.graph(example.BASELINE, example.weights(example.BASELINE)))[1].values()
    assert "8·64·(64 + 1000) = 544,768 numbers fused, 76,288 apart" in reason


def test_torch_agrees_with_the_algebra() -> None:
    """The scores of one head, term by term."""
    torch.manual_seed(0)
    x, wq, wk = torch.randn(7, 5).double(), torch.randn(4, 5).double(), torch.randn(4, 5).double()
    bq, bk = torch.randn(4).double(), torch.randn(4).double()
    apart = torch.softmax((x @ wq.T + bq) @ (x @ wk.T + bk).T, 1)
    fused = torch.softmax((x @ (wk.T @ wq).T + wk.T @ bq) @ x.T, 1)
    assert (apart - fused).abs().max() < 1e-12

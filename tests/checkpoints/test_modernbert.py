"""ModernBERT equals transformers at the edges of its windows and far beyond; small mistakes do not pass."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.engines import ENGINES, native, native_packed
from helpers.kernels import aligned
from helpers.torch_models import HEADS, Inputs, build, deviation, torch_outputs
from pocketformer.compression import compress_graph
from pocketformer.errors import CheckpointError, UnsupportedModelError
from pocketformer.graph import Graph
from pocketformer.sources.huggingface import Checkpoint, load_checkpoint

WINDOW = 64
LENGTHS = (1, 63, 64, 65, 66, 127, 128, 129, 130, 511, 512, 513, 2049)
SIZES = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 4, "intermediate_size": 48}
LONG = {**SIZES, "local_attention": 2 * WINDOW, "max_position_embeddings": 4096, "global_attn_every_n_layers": 3}
FLAGS = ("attention_bias", "mlp_bias", "norm_bias", "classifier_bias")
Case = tuple[Checkpoint, Inputs, np.ndarray]


@pytest.fixture(scope="module")
def long_case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Every token's state matters to ``tag``: a wrong window shows wherever it is."""
    folder = tmp_path_factory.mktemp("modernbert")
    model = build("modernbert", "tag", folder, **LONG)
    inputs = Inputs.random(LENGTHS, 0)
    return load_checkpoint(folder), inputs, torch_outputs(model, inputs, "tag")


def test_parity_at_the_edges_of_windows_and_tiles(long_case: Case) -> None:
    checkpoint, inputs, expected = long_case
    actual = native(checkpoint.graph, inputs.ids, inputs.lengths)
    deviations = map(deviation, inputs.split(actual), inputs.split(expected))
    assert [n for n, each in zip(LENGTHS, deviations, strict=True) if each > 1] == []


def _local(graph: Graph, field: str, by: int) -> None:
    for op in graph.ops:
        if op["op"] == "attention" and field in op:
            op[field] += by


def _swap_theta(graph: Graph) -> None:
    first, second = "rope.full_attention", "rope.sliding_attention"
    graph.params[first], graph.params[second] = graph.params[second], graph.params[first]


def _norm_first_layer(graph: Graph) -> None:
    first = next(op for op in graph.ops if op["op"] == "linear")
    norm = next(op for op in graph.ops if op.get("weight") == "layers.1.attention_norm.weight")
    graph.ops.insert(graph.ops.index(first), {**norm, "in": first["in"], "out": "added"})
    first["in"] = "added"


def _swap_halves(graph: Graph) -> None:
    for i in range(4):
        up, gate = f"layers.{i}.ffn_up.weight", f"layers.{i}.ffn_gate.weight"
        graph.params[up], graph.params[gate] = graph.params[gate], graph.params[up]


def _all_global(graph: Graph) -> None:
    for op in graph.ops:
        op.pop("left", None), op.pop("right", None)


MUTATIONS: dict[str, Callable[[Graph], None]] = {
    "one key more to the left": lambda graph: _local(graph, "left", 1),
    "one key less to the left": lambda graph: _local(graph, "left", -1),
    "one key more to the right": lambda graph: _local(graph, "right", 1),
    "one key less to the right": lambda graph: _local(graph, "right", -1),
    "no windows": _all_global,
    "θ of local and global layers swapped": _swap_theta,
    "a norm before the first layer": _norm_first_layer,
    "the other half activated": _swap_halves,
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_mutations_break_parity(long_case: Case, mutation: str) -> None:
    checkpoint, inputs, expected = long_case
    graph = copy.deepcopy(checkpoint.graph)
    MUTATIONS[mutation](graph)
    rows = slice(0, sum(LENGTHS[:-1]))
    actual = native(graph, inputs.ids[rows], LENGTHS[:-1])
    assert deviation(actual, expected[rows]) > 1


@pytest.mark.parametrize("task", HEADS)
def test_biases_pooling_and_an_own_decoder(tmp_path: Path, task: str) -> None:
    """What the config says of biases is honoured, in both directions, and with its layers listed one by one."""
    options = {**SIZES, **dict.fromkeys(FLAGS, True), "decoder_bias": False, "tie_word_embeddings": False}
    kinds = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
    heads = {"classifier_pooling": "mean", "classifier_activation": "silu", "hidden_activation": "relu"}
    model = build("modernbert", task, tmp_path, layer_types=kinds, **options, **heads)
    graph = load_checkpoint(tmp_path).graph
    windowed = [op.get("left") for op in graph.ops if op["op"] == "attention"]
    assert windowed == [3, 3, None, 3]
    inputs = Inputs.random((1, 9, 40), 0)
    rows = np.array([0, 5, 33]) if task == "fill_mask" else None
    expected = torch_outputs(model, inputs, task, rows)
    for engine in ENGINES.values():
        assert deviation(engine(graph, inputs.ids, inputs.lengths, rows=rows), expected) <= 1


OLD = {"global_attn_every_n_layers": 2, "global_rope_theta": 80000.0, "local_rope_theta": 500.0}
NEW = {
    "layer_types": ["full_attention", "sliding_attention", "full_attention", "sliding_attention"],
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 80000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
    },
}
DIALECT_KEYS = (*OLD, *NEW)


def _write_dialect(folder: Path, dialect: dict[str, Any]) -> None:
    path = folder / "config.json"
    config = {key: value for key, value in json.loads(path.read_text()).items() if key not in DIALECT_KEYS}
    path.write_text(json.dumps({**config, **dialect}))


@pytest.mark.parametrize("dialect", [OLD, NEW], ids=["transformers 4", "transformers 5"])
def test_both_dialects_of_configs(tmp_path: Path, dialect: dict[str, Any]) -> None:
    build("modernbert", "embed", tmp_path, **SIZES)
    _write_dialect(tmp_path, dialect)
    graph = load_checkpoint(tmp_path).graph
    assert [op.get("left") for op in graph.ops if op["op"] == "attention"] == [None, 3, None, 3]
    for kind, theta in (("full_attention", 80000.0), ("sliding_attention", 500.0)):
        powers = theta ** (-np.arange(0, 16, 2) / 16)
        np.testing.assert_allclose(graph.params[f"rope.{kind}"], powers, rtol=1e-6)


def test_defaults_are_those_of_the_config_class(tmp_path: Path) -> None:
    build("modernbert", "embed", tmp_path, **{**SIZES, "local_attention": 128})
    _write_dialect(tmp_path, {})
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in config.items() if key != "local_attention"}))
    graph = load_checkpoint(tmp_path).graph
    assert [op.get("right") for op in graph.ops if op["op"] == "attention"] == [None, 64, 64, None]
    assert graph.params["rope.full_attention"][1] == pytest.approx(160_000 ** (-1 / 8), rel=1e-6)
    assert graph.params["rope.sliding_attention"][1] == pytest.approx(10_000 ** (-1 / 8), rel=1e-6)


YARN = {"rope_type": "yarn", "factor": 2.0, "rope_theta": 10000.0}


def test_scaled_rotations(tmp_path: Path) -> None:
    """Of each kind of layers its own; dynamic scaling is none within the length that the model was made for."""
    local = {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}
    for kind in (YARN, {**YARN, "rope_type": "dynamic"}):
        folder = tmp_path / kind["rope_type"]
        model = build(
            "modernbert", "embed", folder, **SIZES, rope_parameters={"full_attention": kind, "sliding_attention": local}
        )
        inputs = Inputs.random((1, 9, 140), 0)
        expected = torch_outputs(model, inputs, "embed")
        graph = load_checkpoint(folder).graph
        assert deviation(native(graph, inputs.ids, inputs.lengths), expected) <= 1
        graph.params["rope.full_attention"] = graph.params["rope.full_attention"] * np.float32(0.99)
        assert deviation(native(graph, inputs.ids, inputs.lengths), expected) > 1


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, UnsupportedModelError, "'rope_scaling'"),
        (
            {"rope_parameters": {"full_attention": {**YARN, "rope_type": "proportional"}}},
            UnsupportedModelError,
            "'rope_type' is 'proportional'",
        ),
        ({"rope_parameters": {"rope_theta": 1e4}}, CheckpointError, "'rope_parameters'.*must hold full_attention"),
        ({"layer_types": ["full_attention"]}, CheckpointError, "'layer_types'.*each of the 4 layers"),
        ({"layer_types": ["full_attention"] * 3 + ["chunked"]}, CheckpointError, "'layer_types'"),
        ({"classifier_pooling": "max"}, UnsupportedModelError, "'classifier_pooling' is 'max'"),
        ({"hidden_activation": "gelu_10"}, UnsupportedModelError, "'hidden_activation'"),
        ({"local_rope_theta": 0.5}, CheckpointError, "'rope_theta' is 0.5"),
    ],
)
def test_what_is_not_honoured_is_refused(
    tmp_path: Path, change: dict[str, Any], error: type[Exception], words: str
) -> None:
    build("modernbert", "embed", tmp_path, **SIZES)
    _write_dialect(tmp_path, change)
    with pytest.raises(error, match=words):
        load_checkpoint(tmp_path)


def test_a_missing_bias_is_named(tmp_path: Path) -> None:
    build("modernbert", "embed", tmp_path, **SIZES)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "attention_bias": True}))
    with pytest.raises(CheckpointError, match=r"attn\.Wqkv\.bias"):
        load_checkpoint(tmp_path)


def test_int8_is_near_fp32(tmp_path: Path) -> None:
    """Random weights that make attention far from uniform, a sequence beyond several windows."""
    sizes = {"hidden_size": 128, "num_attention_heads": 2, "num_hidden_layers": 3, "intermediate_size": 192}
    model = build("modernbert", "embed", tmp_path, **{**sizes, "local_attention": 32})
    inputs = Inputs.random((1, 40, 200), 0)
    packed, _ = compress_graph(load_checkpoint(tmp_path).graph)
    packed.params = {name: aligned(array) for name, array in packed.params.items()}
    actual = native_packed(packed, inputs.ids, inputs.lengths)
    expected = torch_outputs(model, inputs, "embed")
    cosine = torch.nn.functional.cosine_similarity(torch.tensor(actual), torch.tensor(expected))
    assert float(cosine.min()) > 0.999

"""Every family and head equals transformers in fp32, and the comparison notices small mistakes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.engines import ENGINES
from helpers.torch_models import FAMILIES, HEADS, LENGTHS, Inputs, build, deviation, torch_outputs, write_modules
from pocketformer.graph import Graph
from pocketformer.sources.huggingface import Checkpoint, load_checkpoint

Case = tuple[Checkpoint, Inputs, "np.ndarray | None", np.ndarray]


@pytest.fixture(scope="session")
def make_case(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Case]:
    """(family, task) → imported checkpoint, inputs of all lengths, requested rows and torch's answer; made once."""
    cases: dict[tuple[str, str], Case] = {}

    def make(family: str, task: str) -> Case:
        if (family, task) not in cases:
            folder = tmp_path_factory.mktemp(f"{family}-{task}")
            model = build(family, task, folder)
            checkpoint = load_checkpoint(folder)
            inputs = Inputs.random(LENGTHS, checkpoint.graph.type_vocab_size)
            rows = np.arange(0, sum(LENGTHS), 37) if task == "fill_mask" else None
            cases[family, task] = checkpoint, inputs, rows, torch_outputs(model, inputs, task, rows)
        return cases[family, task]

    return make


def run(engine: str, graph: Graph, inputs: Inputs, rows: np.ndarray | None = None) -> np.ndarray:
    types = inputs.types if graph.type_vocab_size else None
    return ENGINES[engine](graph, inputs.ids, inputs.lengths, types=types, rows=rows)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("task", HEADS)
@pytest.mark.parametrize("family", FAMILIES)
def test_parity(make_case: Callable[[str, str], Case], family: str, task: str, engine: str) -> None:
    checkpoint, inputs, rows, expected = make_case(family, task)
    assert (checkpoint.model["family"], checkpoint.model["task"]) == (family, task)
    assert len(checkpoint.model["labels"]) == (5 if task in ("classify", "tag") else 0)
    assert deviation(run(engine, checkpoint.graph, inputs, rows), expected) <= 1


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_is_far_from_uniform(family: str, tmp_path: Path) -> None:
    """The premise of the parity tests: logits vary, so a wrong scale, mask or bias cannot hide."""
    model = build(family, "embed", tmp_path)
    with torch.no_grad():
        attentions = model(torch.arange(5, 205)[None], output_attentions=True).attentions
    rows = [[row[row > 0].log() for row in layer.flatten(0, -2)] for layer in attentions]  # the keys that are seen
    spread = [float(torch.stack([row.std() for row in layer]).mean()) for layer in rows]
    assert min(spread) > 0.8
    assert 1.5 < np.mean(spread) < 4


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("mode", ["mean", "cls", "max"])
def test_sentence_modules(tmp_path: Path, mode: str, engine: str) -> None:
    model = build("bert", "embed", tmp_path)
    flag = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token", "max": "pooling_mode_max_tokens"}
    write_modules(tmp_path, {flag[key]: key == mode for key in flag}, "Dense", "Normalize")
    dense = torch.nn.Linear(78, 33)
    (tmp_path / "2_Dense").mkdir()
    (tmp_path / "2_Dense" / "config.json").write_text(
        '{"in_features": 78, "out_features": 33, "bias": true, '
        '"activation_function": "torch.nn.modules.activation.Tanh"}'
    )
    from safetensors.torch import save_file

    save_file({f"linear.{k}": v for k, v in dense.state_dict().items()}, tmp_path / "2_Dense" / "model.safetensors")
    graph = load_checkpoint(tmp_path).graph
    inputs = Inputs.random((1, 7, 65), 2)
    expected = []
    with torch.no_grad():
        for ids, types in zip(inputs.split(inputs.ids), inputs.split(inputs.types), strict=True):
            hidden = model(torch.tensor(ids)[None], token_type_ids=torch.tensor(types)[None]).last_hidden_state[0]
            pooled = {"mean": hidden.mean(0), "cls": hidden[0], "max": hidden.max(0).values}[mode]
            expected.append(torch.nn.functional.normalize(torch.tanh(dense(pooled)), dim=0).numpy())
    assert deviation(run(engine, graph, inputs), np.stack(expected)) <= 1


def test_albert_stores_shared_layers_once(make_case: Callable[[str, str], Case]) -> None:
    graph = make_case("albert", "embed")[0].graph
    runs = [op["weight"] for op in graph.ops if op["op"] == "linear" and op["weight"].endswith(".qkv")]
    assert len(runs) == 8
    assert len(set(runs)) == 4
    assert sum(name.endswith(".qkv.weight") for name in graph.params) == 4


@pytest.mark.parametrize("family", FAMILIES)
def test_tied_decoder_is_the_word_table(make_case: Callable[[str, str], Case], family: str) -> None:
    graph = make_case(family, "fill_mask")[0].graph
    assert graph.ops[-1]["weight"] == graph.ops[0]["tables"][0]["weight"] == "embed.words"
    assert "embed.words.bias" in graph.params


@pytest.mark.parametrize("engine", ENGINES)
def test_untied_decoder_keeps_its_own_weights(tmp_path: Path, engine: str) -> None:
    model = build("bert", "fill_mask", tmp_path, tie_word_embeddings=False)
    graph = load_checkpoint(tmp_path).graph
    assert graph.ops[-1]["weight"] == "mask.decoder"
    inputs, rows = Inputs.random((9, 4), 2), np.array([3, 10])
    assert deviation(run(engine, graph, inputs, rows), torch_outputs(model, inputs, "fill_mask", rows)) <= 1


def _swap_query_and_key(graph: Graph) -> None:
    for part in ("weight", "bias"):
        query, key, value = np.split(graph.params[f"layers.0.qkv.{part}"], 3)
        graph.params[f"layers.0.qkv.{part}"] = np.concatenate([key, query, value])


def _edit(op: str, field: str, value: object) -> Callable[[Graph], None]:
    def mutate(graph: Graph) -> None:
        for entry in graph.ops:
            if entry["op"] == op:
                entry[field] = value

    return mutate


def _shift_positions(graph: Graph) -> None:
    graph.ops[0]["tables"][1]["offset"] -= 1


def _shift_relative_bias(graph: Graph) -> None:
    graph.params["encoder.relative_bias"] = np.roll(graph.params["encoder.relative_bias"], 1, axis=1)


def _mirror_relative_bias(graph: Graph) -> None:
    graph.params["encoder.relative_bias"] = np.ascontiguousarray(graph.params["encoder.relative_bias"][:, ::-1])


def _drop(name: str) -> Callable[[Graph], None]:
    def mutate(graph: Graph) -> None:
        graph.params[name] = np.zeros_like(graph.params[name])

    return mutate


def _gelu_tanh(graph: Graph) -> None:
    _swap_activation(graph, "gelu", "gelu_tanh")


def _swap_activation(graph: Graph, old: str, new: str) -> None:
    for entry in graph.ops:
        if entry.get("activation") == old:
            entry["activation"] = new


MUTATIONS: dict[str, tuple[str, str, Callable[[Graph], None]]] = {
    "query and key swapped": ("bert", "embed", _swap_query_and_key),
    "scale of another head size": ("bert", "embed", _edit("attention", "scale", 24**-0.5)),
    "causal": ("bert", "embed", _edit("attention", "causal", True)),
    "window": ("bert", "tag", _edit("attention", "left", 480)),
    "wrong eps": ("bert", "embed", _edit("norm", "eps", 5e-3)),
    "other pooling": ("bert", "embed", _edit("pool", "kind", "max")),
    "tanh gelu": ("bert", "tag", _gelu_tanh),
    "erf gelu": ("albert", "tag", lambda graph: _swap_activation(graph, "gelu_tanh", "gelu")),
    "positions shifted": ("roberta", "embed", _shift_positions),
    "relative bias shifted": ("mpnet", "embed", _shift_relative_bias),
    "relative bias mirrored": ("mpnet", "embed", _mirror_relative_bias),
    **{
        f"no {name}": ("bert", "classify", _drop(name))
        for name in (
            "embed.norm.bias",
            "embed.types.weight",
            "layers.1.qkv.bias",
            "layers.1.attention_out.bias",
            "layers.1.attention_norm.bias",
            "layers.1.ffn_up.bias",
            "layers.1.ffn_down.bias",
            "layers.1.ffn_norm.bias",
            "pooler.bias",
            "classifier.bias",
        )
    },
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_mutations_break_parity(make_case: Callable[[str, str], Case], mutation: str) -> None:
    family, task, mutate = MUTATIONS[mutation]
    checkpoint, inputs, rows, expected = make_case(family, task)
    graph = copy.deepcopy(checkpoint.graph)
    mutate(graph)
    assert deviation(run("reference", graph, inputs, rows), expected) > 1

"""What the importer accepts, and how it refuses the rest: never a crash, always a reason and a remedy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from helpers.checkpoints import refused
from helpers.torch_models import build
from pocketformer.errors import CheckpointError, UnsupportedModelError
from pocketformer.families import FAMILIES, TASKS
from pocketformer.sources.huggingface import load_checkpoint
from pocketformer.sources.weights import open_weights

Edit = Callable[[dict[str, Any]], None]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    build("bert", "classify", tmp_path)
    return tmp_path


def edit_json(path: Path, **changes: Any) -> None:
    values = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**values, **changes}))


def edit_tensors(folder: Path, edit: Callable[[dict[str, np.ndarray]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "gptj", "architectures": ["GPTJModel"]}, ["'gptj'", "GPTJModel", "bert, distilbert, roberta"]),
        ({"model_type": None}, ["''", "mpnet"]),
        ({"architectures": ["BertForNextSentencePrediction"]}, ["'BertForNextSentencePrediction'", "ForMaskedLM"]),
        ({"architectures": ["BertLMHeadModel"]}, ["'BertLMHeadModel'"]),
        ({"position_embedding_type": "relative_key"}, ["'relative_key'", "absolute"]),
        ({"is_decoder": True}, ["is_decoder", "encoders"]),
        ({"hidden_act": "quick_gelu"}, ["'quick_gelu'", "gelu_new"]),
    ],
)
def test_unsupported_models_are_named(folder: Path, changes: dict[str, Any], words: list[str]) -> None:
    edit_json(folder / "config.json", **changes)
    refused(folder, UnsupportedModelError, *words)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_size": "78"}, ["hidden_size", "'78'", "integer"]),
        ({"hidden_size": -1}, ["hidden_size", "-1"]),
        ({"hidden_size": True}, ["hidden_size"]),
        ({"num_attention_heads": 7}, ["78", "7 heads"]),
        ({"layer_norm_eps": "tiny"}, ["layer_norm_eps", "'tiny'"]),
        ({"intermediate_size": 99}, ["intermediate.dense.weight", "[100, 78]", "[99, 78]", "model.safetensors"]),
        ({"num_hidden_layers": 3}, ["bert.encoder.layer.2.attention.self.query.weight", "[78, 78]", "missing"]),
        ({"vocab_size": 10**12}, ["word_embeddings", "[211, 78]"]),
        ({"id2label": {"0": "only one"}}, ["id2label", "5 outputs"]),
        ({"id2label": 3}, ["id2label"]),
        ({"num_hidden_layers": None}, ["no 'num_hidden_layers'"]),
    ],
)
def test_wrong_configs_are_explained(folder: Path, changes: dict[str, Any], words: list[str]) -> None:
    edit_json(folder / "config.json", **changes)
    refused(folder, CheckpointError, *words)


def test_wrong_tensors_are_named(folder: Path) -> None:
    bias = "bert.encoder.layer.1.output.dense.bias"
    edit_tensors(folder, lambda tensors: tensors.pop(bias))
    refused(folder, CheckpointError, bias, "missing", "[78]")
    edit_tensors(folder, lambda tensors: tensors.update({bias: np.full(78, np.nan, np.float32)}))
    refused(folder, CheckpointError, bias, "NaN")
    edit_tensors(folder, lambda tensors: tensors.update({bias: np.zeros(78, np.int64)}))
    refused(folder, CheckpointError, bias, "I64", "BF16")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "tf_model.h5"])
def test_pickles_are_never_opened(folder: Path, name: str) -> None:
    (folder / "model.safetensors").rename(folder / name)
    refused(folder, CheckpointError, name, "save_pretrained")


def test_missing_files(folder: Path) -> None:
    refused(folder / "nowhere", CheckpointError, "nowhere", "not a folder")
    (folder / "model.safetensors").unlink()
    refused(folder, CheckpointError, "no model.safetensors")
    (folder / "config.json").unlink()
    refused(folder, CheckpointError, "config.json", "missing")
    (folder / "config.json").write_text("[1, 2")
    refused(folder, CheckpointError, "config.json", "not valid JSON")


def test_shards_equal_one_file(folder: Path) -> None:
    whole = load_checkpoint(folder).graph
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map = {name: f"model-0000{i % 2 + 1}-of-00002.safetensors" for i, name in enumerate(sorted(tensors))}
    for shard in set(weight_map.values()):
        save_file({n: t for n, t in tensors.items() if weight_map[n] == shard}, folder / shard)
    index = folder / "model.safetensors.index.json"
    edit_json(index, weight_map=weight_map)
    sharded = load_checkpoint(folder).graph
    assert sharded.ops == whole.ops
    assert all(np.array_equal(sharded.params[name], array) for name, array in whole.params.items())
    edit_json(index, weight_map={**weight_map, "x": "../model.safetensors"})
    refused(folder, CheckpointError, "../model.safetensors", "outside")
    edit_json(index, weight_map={**weight_map, "x": "model-00003-of-00003.safetensors"})
    refused(folder, CheckpointError, "model-00003", "missing")
    edit_json(index, weight_map=[1])
    refused(folder, CheckpointError, "weight_map")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened_exactly(tmp_path: Path, dtype: torch.dtype) -> None:
    model = build("bert", "classify", tmp_path).to(dtype)
    model.save_pretrained(tmp_path)
    graph = load_checkpoint(tmp_path).graph
    expected = model.state_dict()["classifier.weight"].float().numpy()
    assert graph.params["classifier.weight"].dtype == np.float32
    assert np.array_equal(graph.params["classifier.weight"], expected)


def test_tensorflow_norm_names(folder: Path) -> None:
    expected = load_checkpoint(folder).graph.params

    def rename(tensors: dict[str, np.ndarray]) -> None:
        for name in [name for name in tensors if "LayerNorm" in name]:
            new = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
            tensors[new] = tensors.pop(name)

    edit_tensors(folder, rename)
    actual = load_checkpoint(folder).graph.params
    assert all(np.array_equal(actual[name], array) for name, array in expected.items())


def test_labels_and_problem_type(folder: Path) -> None:
    assert load_checkpoint(folder).model["labels"] == [f"LABEL_{i}" for i in range(5)]
    names = {str(i): name for i, name in enumerate("abcde")}
    edit_json(folder / "config.json", id2label=names, problem_type="multi_label_classification")
    model = load_checkpoint(folder).model
    assert model["labels"] == list("abcde")
    assert model["problem_type"] == "multi_label_classification"


@pytest.mark.parametrize(
    ("sentence", "tokenizer", "expected"),
    [(None, None, 512), (None, 128, 128), (None, 1e30, 512), (64, 128, 64), (4096, 128, 512)],
)
def test_truncation_rule(folder: Path, sentence: int | None, tokenizer: float | None, expected: int) -> None:
    if sentence is not None:
        edit_json(folder / "sentence_bert_config.json", max_seq_length=sentence, do_lower_case=False)
    if tokenizer is not None:
        edit_json(folder / "tokenizer_config.json", model_max_length=tokenizer)
    assert load_checkpoint(folder).text["max_length"] == expected


def test_reserved_positions_shorten_the_limit(tmp_path: Path) -> None:
    build("roberta", "embed", tmp_path)
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint.graph.max_length == checkpoint.text["max_length"] == 512
    edit_json(tmp_path / "config.json", max_position_embeddings=2)
    refused(tmp_path, CheckpointError, "2 rows", "max_position_embeddings")


def test_damaged_safetensors(tmp_path: Path) -> None:
    """Truncated, bit-flipped and lying files: an explained error or a model whose every tensor is finite."""
    path = tmp_path / "model.safetensors"
    save_file({"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(4, np.float16)}, path)
    good = path.read_bytes()
    rng = np.random.default_rng(0)
    survived = 0
    messages: list[str] = []
    for case in range(2000):
        data = bytearray(good)
        if case % 4 == 0:
            del data[rng.integers(0, len(data)) :]
        elif case % 4 == 1:
            data += bytes(int(rng.integers(1, 64)))
        else:
            for _ in range(rng.integers(1, 4)):
                data[rng.integers(0, len(data))] ^= 1 << int(rng.integers(0, 8))
        path.write_bytes(data)
        try:
            weights = open_weights(tmp_path)
            assert np.isfinite(weights.tensor("a", 2, 3)).all()
            weights.tensor("b", 4)
            survived += 1
        except CheckpointError as error:
            messages.append(str(error))
    assert 0 < survived < 1000
    assert all(str(path) in message for message in messages)


def test_documentation_lists_what_works() -> None:
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in page for name in FAMILIES)
    assert all(f"`{suffix}`" in page and f"`{task}`" in page for suffix, task in TASKS.items())

"""LoRA adapters: what peft would compute with them, written out in torch, equals the graph; the rest is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from helpers.engines import native
from helpers.torch_models import Inputs, build, deviation, torch_outputs
from pocketformer.errors import CheckpointError, UnsupportedModelError
from pocketformer.sources.huggingface import load_checkpoint

CONFIG: dict[str, Any] = {
    "peft_type": "LORA",
    "base_model_name_or_path": "acme/base-encoder",
    "r": 4,
    "lora_alpha": 12,
    "lora_dropout": 0.1,
    "bias": "none",
    "fan_in_fan_out": False,
    "target_modules": ["query", "value"],
    "inference_mode": True,
    "init_lora_weights": True,
    "use_rslora": False,
    "use_dora": False,
    "lora_bias": False,
    "rank_pattern": {},
    "alpha_pattern": {},
    "qalora_group_size": 16,
    "peft_version": "0.21.2",
    "task_type": None,
}


class LoRA:
    """Writes an adapter beside ``folder``'s model and applies it to the torch ``model``, module by module."""

    def __init__(self, model: torch.nn.Module, folder: Path, prefix: str = "", **config: Any) -> None:
        self.model, self.folder, self.prefix = model, folder, f"base_model.model.{prefix}"
        self.config = {**CONFIG, **config}
        self.tensors: dict[str, torch.Tensor] = {}
        self.generator = torch.Generator().manual_seed(1)

    def random(self, *shape: int) -> torch.Tensor:
        return 0.3 * torch.randn(shape, generator=self.generator)

    @torch.no_grad()
    def adapt(self, module: str, rank: int = 4, alpha: float = 12, *, dora: bool = False) -> None:
        weight = self.model.get_submodule(module).weight
        a, b = self.random(rank, weight.shape[1]), self.random(weight.shape[0], rank)
        changed = weight + self.scale(alpha, rank) * b @ a
        if dora:
            magnitude = 1 + self.random(weight.shape[0]).abs()
            self.tensors[f"{self.prefix}{module}.lora_magnitude_vector"] = magnitude
            changed *= (magnitude / changed.norm(dim=1))[:, None]
        weight.copy_(changed)
        self.tensors |= {f"{self.prefix}{module}.lora_A.weight": a, f"{self.prefix}{module}.lora_B.weight": b}

    @torch.no_grad()
    def adapt_embedding(self, module: str, rank: int = 4, alpha: float = 12) -> None:
        weight = self.model.get_submodule(module).weight
        a, b = self.random(rank, weight.shape[0]), self.random(weight.shape[1], rank)
        weight += self.scale(alpha, rank) * (b @ a).T
        self.tensors |= {f"{self.prefix}{module}.lora_embedding_A": a, f"{self.prefix}{module}.lora_embedding_B": b}

    @torch.no_grad()
    def replace(self, name: str, spelling: str | None = None) -> None:
        parameter = self.model.get_parameter(name)
        parameter += self.random(*parameter.shape)
        self.tensors[self.prefix + (spelling or name)] = parameter.clone()

    def scale(self, alpha: float, rank: int) -> float:
        return alpha / (math.sqrt(rank) if self.config["use_rslora"] else rank)

    def save(self) -> None:
        (self.folder / "adapter_config.json").write_text(json.dumps(self.config))
        save_file(self.tensors, self.folder / "adapter_model.safetensors")


def assert_parity(model: torch.nn.Module, folder: Path, task: str) -> None:
    graph = load_checkpoint(folder).graph
    inputs = Inputs.random((1, 9, 64), graph.type_vocab_size)
    rows = np.array([3, 70]) if task == "fill_mask" else None
    types = inputs.types if graph.type_vocab_size else None
    actual = native(graph, inputs.ids, inputs.lengths, types=types, rows=rows)
    assert deviation(actual, torch_outputs(model, inputs, task, rows)) <= 1


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize(
    ("family", "task", "modules"),
    [
        ("bert", "embed", ["encoder.layer.0.attention.self.query", "encoder.layer.1.output.dense"]),
        ("roberta", "tag", ["roberta.encoder.layer.1.intermediate.dense"]),
        ("distilbert", "classify", ["distilbert.transformer.layer.2.attention.v_lin", "pre_classifier"]),
        ("mpnet", "fill_mask", ["mpnet.encoder.layer.0.attention.attn.k", "lm_head.dense"]),
    ],
)
def test_merged(tmp_path: Path, family: str, task: str, modules: list[str], dora: bool) -> None:
    model = build(family, task, tmp_path)
    lora = LoRA(model, tmp_path, use_dora=dora)
    for module in modules:
        lora.adapt(module, dora=dora)
    plain = load_checkpoint(tmp_path).graph
    lora.save()
    assert_parity(model, tmp_path, task)
    changed = load_checkpoint(tmp_path).graph.params
    differing = {name for name in plain.params if not np.array_equal(plain.params[name], changed[name])}
    assert len(differing) == len(modules)


def test_shared_layers_and_embeddings(tmp_path: Path) -> None:
    model = build("albert", "tag", tmp_path)
    lora = LoRA(model, tmp_path, use_rslora=True)
    lora.adapt("albert.encoder.albert_layer_groups.0.albert_layers.1.ffn")
    lora.adapt_embedding("albert.embeddings.word_embeddings")
    lora.save()
    assert_parity(model, tmp_path, "tag")


def test_patterns_choose_rank_and_scale(tmp_path: Path) -> None:
    model = build("bert", "embed", tmp_path)
    patterns = {"rank_pattern": {"output.dense": 2}, "alpha_pattern": {r"encoder\.layer\.1\..*": 3, "query": 1}}
    lora = LoRA(model, tmp_path, **patterns)
    lora.adapt("encoder.layer.0.attention.output.dense", rank=2)
    lora.adapt("encoder.layer.1.output.dense", rank=2, alpha=3)
    lora.adapt("encoder.layer.1.attention.self.query", alpha=3)
    lora.adapt("encoder.layer.0.attention.self.query", alpha=1)
    lora.save()
    assert_parity(model, tmp_path, "embed")


def test_whole_tensors_replace(tmp_path: Path) -> None:
    """Trained biases (``bias="lora_only"``) and ``modules_to_save``."""
    model = build("bert", "classify", tmp_path)
    lora = LoRA(model, tmp_path, bias="lora_only", modules_to_save=["classifier"])
    query = "bert.encoder.layer.0.attention.self.query"
    lora.adapt(query)
    lora.replace(f"{query}.bias", f"{query}.base_layer.bias")
    lora.replace("classifier.weight")
    lora.replace("classifier.bias")
    lora.save()
    assert_parity(model, tmp_path, "classify")


@pytest.mark.parametrize(("family", "prefix"), [("bert", "bert."), ("xlm-roberta", "roberta."), ("mpnet", "mpnet.")])
def test_an_adapter_may_be_trained_with_a_head(tmp_path: Path, family: str, prefix: str) -> None:
    model = build(family, "embed", tmp_path)
    lora = LoRA(model, tmp_path, prefix)
    lora.adapt("encoder.layer.1.intermediate.dense")
    lora.save()
    assert_parity(model, tmp_path, "embed")


@pytest.mark.parametrize("task", ["classify", "tag", "answer"])
def test_an_adapter_brings_its_task_and_head(tmp_path: Path, task: str) -> None:
    """The model beside it is a bare encoder; the head is in the adapter alone."""
    types = {"classify": "SEQ_CLS", "tag": "TOKEN_CLS", "answer": "QUESTION_ANS"}
    model = build("distilbert", task, tmp_path)
    model.distilbert.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["DistilBertModel"]
    lora = LoRA(model, tmp_path, task_type=types[task], modules_to_save=["classifier", "pre_classifier", "qa_outputs"])
    lora.adapt("distilbert.transformer.layer.0.ffn.lin1")
    heads = ("classifier", "pre_classifier", "qa_outputs")
    for name in [name for name, _ in model.named_parameters() if name.startswith(heads)]:
        lora.replace(name)
    lora.save()
    assert load_checkpoint(tmp_path).model["task"] == task
    assert_parity(model, tmp_path, task)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"peft_type": "IA3"}, ["peft_type", "'IA3'", "merge_and_unload"]),
        ({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 20}, ["'PROMPT_TUNING'"]),
        ({"init_lora_weights": "pissa"}, ["init_lora_weights", "'pissa'"]),
        ({"lora_bias": True}, ["lora_bias"]),
        ({"trainable_token_indices": [1, 2]}, ["trainable_token_indices", "[1, 2]"]),
        ({"layer_replication": [[0, 2], [1, 2]]}, ["layer_replication"]),
        ({"an_option_of_next_year": 1}, ["an_option_of_next_year"]),
    ],
)
def test_what_is_not_honoured_is_named(tmp_path: Path, changes: dict[str, Any], words: list[str]) -> None:
    lora = LoRA(build("bert", "embed", tmp_path), tmp_path, **changes)
    lora.adapt("encoder.layer.0.attention.self.query")
    lora.save()
    with pytest.raises(UnsupportedModelError) as info:
        load_checkpoint(tmp_path)
    assert all(word in str(info.value) for word in words)


@pytest.mark.parametrize("base", ["acme/base-encoder", "/somewhere/else", None])
def test_an_adapter_alone_names_its_model(tmp_path: Path, base: str | None) -> None:
    lora = LoRA(build("bert", "embed", tmp_path), tmp_path, base_model_name_or_path=base)
    lora.adapt("encoder.layer.0.attention.self.query")
    lora.save()
    (tmp_path / "config.json").unlink()
    with pytest.raises(CheckpointError, match=f"only an adapter of {base or 'a model that it does not name'}"):
        load_checkpoint(tmp_path)


def test_damaged_adapters_are_explained(tmp_path: Path) -> None:
    lora = LoRA(build("bert", "embed", tmp_path), tmp_path)
    query = "encoder.layer.0.attention.self.query"
    lora.adapt(query)
    lora.save()
    tensors = dict(lora.tensors)

    def refused(error: type[Exception], words: str) -> None:
        with pytest.raises(error, match=words):
            load_checkpoint(tmp_path)

    save_file(
        {name.replace("layer.0", "layer.9"): t for name, t in tensors.items()}, tmp_path / "adapter_model.safetensors"
    )
    refused(CheckpointError, r"'encoder\.layer\.9\.attention\.self\.query'.*does not hold")
    save_file({name: t for name, t in tensors.items() if "lora_A" in name}, tmp_path / "adapter_model.safetensors")
    refused(CheckpointError, "lacks lora_A or lora_B")
    save_file({name: t[:, :9].contiguous() for name, t in tensors.items()}, tmp_path / "adapter_model.safetensors")
    refused(CheckpointError, r"lora_A.weight.*\[4, 9\].*\[4, 78\]")
    odd = {f"base_model.model.{query}.lora_ga_s": torch.ones(2)}
    save_file({**tensors, **odd}, tmp_path / "adapter_model.safetensors")
    refused(UnsupportedModelError, "lora_ga_s")
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    refused(CheckpointError, "adapter_model.bin.*never")

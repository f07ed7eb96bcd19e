"""GTE's encoders, whose code transformers does not have: against a twin in torch, written from their description."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from helpers.engines import ENGINES, native
from helpers.torch_models import VOCAB, Inputs, deviation
from pocketformer.errors import UnsupportedModelError
from pocketformer.sources.huggingface import load_checkpoint

HIDDEN, HEADS, FFN, LAYERS, LABELS = 48, 4, 70, 2, 3
HEAD = HIDDEN // HEADS
LENGTHS = (1, 7, 65, 129, 300)
CONFIG = {
    "model_type": "new",
    "auto_map": {"AutoConfig": "Alibaba-NLP/new-impl--configuration.NewConfig", "AutoModel": "Alibaba-NLP/new-impl--x"},
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "intermediate_size": FFN,
    "max_position_embeddings": 512,
    "type_vocab_size": 0,
    "layer_norm_type": "layer_norm",
    "layer_norm_eps": 1e-2,
    "hidden_act": "gelu",
    "position_embedding_type": "rope",
    "rope_theta": 500000,
    "rope_scaling": {"type": "ntk", "factor": 2.0},
    "pack_qkv": True,
    "logn_attention_scale": False,
    "logn_attention_clip1": False,
    "unpad_inputs": False,
    "use_memory_efficient_attention": False,
}
TASKS = {
    "embed": "NewModel",
    "classify": "NewForSequenceClassification",
    "tag": "NewForTokenClassification",
    "fill_mask": "NewForMaskedLM",
}


class Twin:
    """A random checkpoint and what it computes."""

    def __init__(self, task: str, **changes: Any) -> None:
        self.task, self.config = task, {**CONFIG, **changes, "architectures": [TASKS[task]]}
        self.generator = torch.Generator().manual_seed(3)
        self.base = "" if task == "embed" else "new."
        self.tensors: dict[str, Tensor] = {}
        self._add(f"{self.base}embeddings.word_embeddings.weight", VOCAB, HIDDEN, gain=HIDDEN**0.5)
        if self.config["type_vocab_size"]:
            self._add(f"{self.base}embeddings.token_type_embeddings.weight", 2, HIDDEN, gain=HIDDEN**0.5)
        self._norm(f"{self.base}embeddings.LayerNorm")
        for i in range(LAYERS):
            layer = f"{self.base}encoder.layer.{i}."
            self._linear(f"{layer}attention.qkv_proj", 3 * HIDDEN, HIDDEN)
            self.tensors[f"{layer}attention.qkv_proj.weight"][: 2 * HIDDEN] *= 2.5
            self._linear(f"{layer}attention.o_proj", HIDDEN, HIDDEN)
            self._add(f"{layer}mlp.up_gate_proj.weight", 2 * FFN, HIDDEN, gain=1.5)
            self._linear(f"{layer}mlp.down_proj", HIDDEN, FFN)
            self._norm(f"{layer}attn_ln")
            self._norm(f"{layer}mlp_ln")
        if task == "classify":
            self._linear("new.pooler.dense", HIDDEN, HIDDEN)
        if task in ("classify", "tag"):
            self._linear("classifier", LABELS, HIDDEN)
        if task == "fill_mask":
            self._linear("lm_head.dense", HIDDEN, HIDDEN)
            self._norm("lm_head.norm")
            self._add("lm_head.decoder.bias", VOCAB, gain=0.2)

    def _add(self, name: str, *shape: int, gain: float = 0.7) -> None:
        scale = gain / shape[-1] ** 0.5 if len(shape) > 1 else gain
        self.tensors[name] = scale * torch.randn(shape, generator=self.generator)

    def _linear(self, name: str, n: int, k: int) -> None:
        self._add(f"{name}.weight", n, k)
        self._add(f"{name}.bias", n, gain=0.2)

    def _norm(self, name: str) -> None:
        self._add(f"{name}.weight", HIDDEN, gain=0.3)
        self.tensors[f"{name}.weight"] += 1
        self._add(f"{name}.bias", HIDDEN, gain=0.2)

    def save(self, folder: Path) -> None:
        save_file(self.tensors, folder / "model.safetensors")
        labels = {"id2label": {str(i): f"L{i}" for i in range(LABELS)}}
        (folder / "config.json").write_text(json.dumps({**self.config, **labels}))

    def linear(self, x: Tensor, name: str) -> Tensor:
        return functional.linear(x, self.tensors[f"{name}.weight"], self.tensors.get(f"{name}.bias"))

    def norm(self, x: Tensor, name: str) -> Tensor:
        parameters = self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"]
        return functional.layer_norm(x, (HIDDEN,), *parameters, self.config["layer_norm_eps"])

    def angles(self, length: int) -> Tensor:
        theta, scaling = float(self.config["rope_theta"]), self.config["rope_scaling"] or {"factor": 1.0}
        factor = scaling["factor"]
        pairs = torch.arange(0, HEAD, 2).float() / HEAD
        turns = 1 / (theta * factor) ** pairs / factor ** (2 / HEAD)
        return torch.outer(torch.arange(length).float(), turns)

    def hidden(self, ids: Tensor, types: Tensor) -> Tensor:
        x = self.tensors[f"{self.base}embeddings.word_embeddings.weight"][ids]
        if self.config["type_vocab_size"]:
            x = x + self.tensors[f"{self.base}embeddings.token_type_embeddings.weight"][types]
        x = self.norm(x, f"{self.base}embeddings.LayerNorm")
        angles = self.angles(len(ids))
        for i in range(LAYERS):
            layer = f"{self.base}encoder.layer.{i}."
            parts = self.linear(x, f"{layer}attention.qkv_proj").view(len(ids), 3, HEADS, HEAD).permute(1, 2, 0, 3)
            q, k = (self._turned(part, angles) for part in parts[:2])
            mixed = torch.softmax(q @ k.mT / math.sqrt(HEAD), -1) @ parts[2]
            mixed = self.linear(mixed.transpose(0, 1).reshape(len(ids), HIDDEN), f"{layer}attention.o_proj")
            x = self.norm(x + mixed, f"{layer}attn_ln")
            up, gate = self.linear(x, f"{layer}mlp.up_gate_proj").chunk(2, -1)
            wide = getattr(functional, self.config["hidden_act"])(gate) * up
            x = self.norm(x + self.linear(wide, f"{layer}mlp.down_proj"), f"{layer}mlp_ln")
        return x

    @staticmethod
    def _turned(x: Tensor, angles: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        cos, sin = angles.cos(), angles.sin()
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)

    def output(self, ids: Tensor, types: Tensor) -> Tensor:
        x = self.hidden(ids, types)
        if self.task == "embed":
            return x.mean(0, keepdim=True)
        if self.task == "classify":
            return self.linear(torch.tanh(self.linear(x[:1], "new.pooler.dense")), "classifier")
        if self.task == "tag":
            return self.linear(x, "classifier")
        x = self.norm(functional.gelu(self.linear(x, "lm_head.dense")), "lm_head.norm")
        return functional.linear(
            x, self.tensors["new.embeddings.word_embeddings.weight"], self.tensors["lm_head.decoder.bias"]
        )

    def outputs(self, inputs: Inputs) -> np.ndarray:
        pairs = zip(inputs.split(inputs.ids), inputs.split(inputs.types), strict=True)
        return torch.cat([self.output(torch.tensor(ids), torch.tensor(types)) for ids, types in pairs]).numpy()


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("types", [0, 2])
def test_parity(tmp_path: Path, task: str, types: int) -> None:
    twin = Twin(task, type_vocab_size=types)
    twin.save(tmp_path)
    checkpoint = load_checkpoint(tmp_path)
    assert (checkpoint.model["family"], checkpoint.model["task"]) == ("new", task)
    inputs = Inputs.random(LENGTHS, types)
    rows = np.arange(0, sum(LENGTHS), 37) if task == "fill_mask" else None
    expected = twin.outputs(inputs) if rows is None else twin.outputs(inputs)[rows]
    given = inputs.types if types else None
    for engine in ENGINES.values() if task == "embed" else [native]:
        assert deviation(engine(checkpoint.graph, inputs.ids, inputs.lengths, types=given, rows=rows), expected) <= 1


@pytest.mark.parametrize(
    "change",
    [
        {"rope_scaling": None},
        {"rope_scaling": {"type": "ntk", "factor": 8.0}},
        {"rope_theta": 20000},
        {"hidden_act": "relu"},
    ],
    ids=str,
)
def test_settings_that_matter(tmp_path: Path, change: dict[str, Any]) -> None:
    inputs = Inputs.random(LENGTHS, 0)
    twin = Twin("embed", **change)
    twin.save(tmp_path)
    actual = native(load_checkpoint(tmp_path).graph, inputs.ids, inputs.lengths)
    assert deviation(actual, twin.outputs(inputs)) <= 1
    assert deviation(actual, Twin("embed").outputs(inputs)) > 1


@pytest.mark.parametrize(
    "change",
    [
        {"rope_scaling": {"type": "ntk", "factor": 2.0, "mixed_b": 0.6}},
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        {"position_embedding_type": "absolute"},
        {"layer_norm_type": "rms_norm"},
        {"logn_attention_scale": True},
        {"pack_qkv": False},
        {"auto_map": {"AutoModel": "modeling.NewModel"}},
    ],
    ids=str,
)
def test_refused_by_name(tmp_path: Path, change: dict[str, Any]) -> None:
    Twin("embed", **change).save(tmp_path)
    with pytest.raises(UnsupportedModelError, match=f"'{next(iter(change))}'"):
        load_checkpoint(tmp_path)

"""Encoders with one rotation for all layers, NomicBERT and EuroBERT, equal transformers with every head."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from helpers.engines import ENGINES, native
from helpers.torch_models import HEADS, VOCAB, Inputs, deviation, make_adversarial, torch_outputs
from pocketformer.errors import UnsupportedModelError
from pocketformer.sources.huggingface import load_checkpoint

_SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "intermediate_size": 70,
    "max_position_embeddings": 512,
}
_EUROBERT = {
    **_SIZES,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-2,
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "mask_token_id": 3},
}
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "nomic": ("nomic_bert", "NomicBert", {**_SIZES, "layer_norm_eps": 1e-2}),
    "eurobert": ("eurobert", "EuroBert", _EUROBERT),
    "eurobert, bos": ("eurobert", "EuroBert", {**_EUROBERT, "classifier_pooling": "bos", "mlp_bias": True}),
    "eurobert, mean": ("eurobert", "EuroBert", {**_EUROBERT, "classifier_pooling": "mean", "attention_bias": True}),
}
CASES = [
    (name, task) for name in MODELS for task in HEADS if task != "answer" and (task == "classify" or "," not in name)
]
LENGTHS = (1, 7, 65, 129, 300)


def build(folder: Path, name: str, task: str, **options: Any) -> torch.nn.Module:
    _, prefix, sizes = MODELS[name]
    kind = getattr(transformers, prefix + HEADS[task])
    config = kind.config_class(**{**sizes, **options}, num_labels=5)
    config._attn_implementation = "eager"
    model = kind(config).eval()
    make_adversarial(model, 2)
    for part, parameter in model.named_parameters():
        if part.endswith(("q_proj.weight", "k_proj.weight")):
            parameter.data *= 1.8 / 0.7
    model.save_pretrained(folder)
    return model


def edit(folder: Path, remove: tuple[str, ...] = (), **changes: Any) -> None:
    path = folder / "config.json"
    values = {key: value for key, value in json.loads(path.read_text()).items() if key not in remove}
    path.write_text(json.dumps({**values, **changes}))


@pytest.mark.parametrize(("name", "task"), CASES)
def test_parity(tmp_path: Path, name: str, task: str) -> None:
    model = build(tmp_path, name, task)
    checkpoint = load_checkpoint(tmp_path)
    assert (checkpoint.model["family"], checkpoint.model["task"]) == (MODELS[name][0], task)
    inputs = Inputs.random(LENGTHS, checkpoint.graph.type_vocab_size)
    rows = np.arange(0, sum(LENGTHS), 37) if task == "fill_mask" else None
    expected = torch_outputs(model, inputs, task, rows)
    types = inputs.types if checkpoint.graph.type_vocab_size else None
    for engine in ENGINES.values() if task == "embed" else [native]:
        assert deviation(engine(checkpoint.graph, inputs.ids, inputs.lengths, types=types, rows=rows), expected) <= 1


@pytest.mark.parametrize(("name", "theta"), [("nomic", 1000.0), ("eurobert", 10000.0)])
def test_the_rotation_matters(tmp_path: Path, name: str, theta: float) -> None:
    model = build(tmp_path, name, "embed")
    checkpoint = load_checkpoint(tmp_path)
    inputs = Inputs.random((9, 65), 0)
    expected = torch_outputs(model, inputs, "embed") if name == "eurobert" else None
    graph = checkpoint.graph
    assert graph.params["rope"][1] == pytest.approx(theta ** (-2 / 12), rel=1e-6)
    plain = native(graph, inputs.ids, inputs.lengths)
    assert expected is None or deviation(plain, expected) <= 1
    turned = copy.deepcopy(graph)
    turned.params["rope"] = turned.params["rope"] ** np.float32(1.1)
    assert deviation(native(turned, inputs.ids, inputs.lengths), plain) > 1


def test_the_config_of_nomics_own_code(tmp_path: Path) -> None:
    """The keys of GPT-2's config; a scaling that only longer texts than those in training see ends texts there."""
    build(tmp_path, "nomic", "embed")
    expected = load_checkpoint(tmp_path).graph
    old = {"n_embd": 48, "n_head": 4, "n_layer": 2, "n_inner": 70, "n_positions": 512, "layer_norm_epsilon": 1e-2}
    new = tuple(key for key in _SIZES if key != "vocab_size")
    removed = (*new, "layer_norm_eps", "head_dim", "rope_parameters", "hidden_act")
    code = {"AutoModel": "nomic-ai/nomic-bert-2048--modeling_hf_nomic_bert.NomicBertModel"}
    edit(tmp_path, removed, **old, rotary_emb_base=1000, activation_function="swiglu", rotary_emb_fraction=1.0)
    edit(tmp_path, auto_map=code)
    found = load_checkpoint(tmp_path).graph
    assert found.description() == expected.description()
    edit(tmp_path, rotary_scaling_factor=2, max_trained_positions=256)
    assert load_checkpoint(tmp_path).graph.max_length == 256


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("nomic", {"prenorm": True}),
        ("nomic", {"moe_every_n_layers": 2}),
        ("nomic", {"qkv_proj_bias": True}),
        ("nomic", {"num_heads_kv": 2}),
        ("nomic", {"rotary_emb_fraction": 0.5}),
        ("nomic", {"activation_function": "gelu"}),
        ("eurobert", {"classifier_pooling": "max"}),
    ],
)
def test_refused_by_name(tmp_path: Path, name: str, change: dict[str, Any]) -> None:
    build(tmp_path, name, "embed")
    edit(tmp_path, **change)
    with pytest.raises(UnsupportedModelError, match=f"'{next(iter(change))}' is"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["nomic", "eurobert"])
def test_scaled_rotations(tmp_path: Path, name: str) -> None:
    """A known scaling is in the frequencies; another is refused."""
    scaled = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}
    model = build(tmp_path, name, "embed", rope_parameters=scaled)
    graph = load_checkpoint(tmp_path).graph
    inputs = Inputs.random((7, 65), graph.type_vocab_size)
    types = inputs.types if graph.type_vocab_size else None
    actual = native(graph, inputs.ids, inputs.lengths, types=types)
    assert deviation(actual, torch_outputs(model, inputs, "embed")) <= 1
    edit(tmp_path, rope_parameters={**scaled, "rope_type": "proportional"})
    with pytest.raises(UnsupportedModelError, match="'rope_type' is 'proportional'"):
        load_checkpoint(tmp_path)

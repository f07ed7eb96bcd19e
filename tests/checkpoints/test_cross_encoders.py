"""Cross-encoders as sentence-transformers saves them: the checkpoint they were, and what their scores are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.checkpoints import refused
from helpers.sentence_modules import save_modules, save_settings
from helpers.torch_models import build
from pocketformer.errors import UnsupportedModelError
from pocketformer.sources.huggingface import load_checkpoint


@pytest.mark.parametrize("marker", ["config_sentence_transformers.json", "sentence_bert_config.json"])
def test_a_cross_encoder_is_the_checkpoint_it_was(tmp_path: Path, marker: str) -> None:
    build("bert", "classify", tmp_path)
    plain = load_checkpoint(tmp_path)
    save_modules(tmp_path, [])
    values = {"model_type": "CrossEncoder"} if marker.startswith("config") else {}
    save_settings(tmp_path, marker, **values, **({} if values else {"transformer_task": "sequence-classification"}))
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint.model == plain.model
    assert checkpoint.model["task"] == "classify"
    assert checkpoint.graph.ops == plain.graph.ops
    assert all(np.array_equal(array, plain.graph.params[name]) for name, array in checkpoint.graph.params.items())


SIGMOID, IDENTITY = "torch.nn.modules.activation.Sigmoid", "torch.nn.modules.linear.Identity"


@pytest.mark.parametrize(
    ("config", "settings", "expected"),
    [
        ({}, {"activation_fn": SIGMOID}, "sigmoid"),
        ({"sentence_transformers": {"activation_fn": IDENTITY, "version": "4.1.0"}}, {}, "identity"),
        ({"sbert_ce_default_activation_function": IDENTITY}, {}, "identity"),
        ({"sbert_ce_default_activation_function": None}, {}, None),
    ],
)
def test_scores_of_cross_encoders(
    tmp_path: Path, config: dict[str, Any], settings: dict[str, Any], expected: str | None
) -> None:
    build("bert", "classify", tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    save_settings(tmp_path, "config.json", **values, **config)
    if settings:
        save_modules(tmp_path, [])
        save_settings(tmp_path, "config_sentence_transformers.json", model_type="CrossEncoder", **settings)
    assert load_checkpoint(tmp_path).model.get("activation") == expected


def test_cross_encoders_that_are_refused(tmp_path: Path) -> None:
    folder = tmp_path
    build("bert", "embed", folder)
    save_modules(folder, [])
    save_settings(folder, "config_sentence_transformers.json", model_type="CrossEncoder")
    refused(folder, UnsupportedModelError, "['BertModel']", "ForSequenceClassification")
    build("bert", "classify", folder)
    softmax = "torch.nn.modules.activation.Softmax"
    save_settings(folder, "config_sentence_transformers.json", model_type="CrossEncoder", activation_fn=softmax)
    refused(folder, UnsupportedModelError, softmax, SIGMOID)
    prompts = {"prompts": {"q": "find: "}, "default_prompt_name": "q"}
    save_settings(folder, "config_sentence_transformers.json", model_type="CrossEncoder", **prompts)
    refused(folder, UnsupportedModelError, "'default_prompt_name' is 'q'")

"""Settings of config.json: what the reference honours is honoured, or refused by its name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file, save_model

from helpers.checkpoints import refused
from helpers.engines import native
from helpers.torch_models import Inputs, build, deviation, make_adversarial, torch_outputs
from pocketformer.errors import CheckpointError, UnsupportedModelError
from pocketformer.sources import foreign
from pocketformer.sources.huggingface import load_checkpoint


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def assert_parity(folder: Path, task: str, model: torch.nn.Module | None = None) -> None:
    """The graph of ``folder`` computes what ``model``, or transformers from the same folder, does."""
    classes = {
        "embed": transformers.AutoModel,
        "classify": transformers.AutoModelForSequenceClassification,
        "tag": transformers.AutoModelForTokenClassification,
        "answer": transformers.AutoModelForQuestionAnswering,
        "fill_mask": transformers.AutoModelForMaskedLM,
    }
    model = model or classes[task].from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    checkpoint = load_checkpoint(folder)
    assert checkpoint.model["task"] == task
    graph = checkpoint.graph
    inputs = Inputs.random((2, 33, 64), graph.type_vocab_size)
    rows = np.array([1, 40]) if task == "fill_mask" else None
    types = inputs.types if graph.type_vocab_size else None
    actual = native(graph, inputs.ids, inputs.lengths, types=types, rows=rows)
    assert deviation(actual, torch_outputs(model, inputs, task, rows)) <= 1


@pytest.mark.parametrize(
    ("family", "key", "task"), [("bert", "hidden_act", "fill_mask"), ("distilbert", "activation", "tag")]
)
@pytest.mark.parametrize(
    "name",
    ["gelu_python", "gelu_fast", "gelu_accurate", "gelu_python_tanh", "gelu_pytorch_tanh", "gelu_new", "swish", "relu"],
)
def test_activations(tmp_path: Path, family: str, key: str, task: str, name: str) -> None:
    build(family, task, tmp_path, **{key: name})
    assert_parity(tmp_path, task)


@pytest.mark.parametrize("name", ["gelu_10", "quick_gelu", "mish", "leaky_relu", "relu2", "linear", "laplace"])
def test_other_activations_are_named(tmp_path: Path, name: str) -> None:
    build("roberta", "embed", tmp_path, hidden_act=name)
    refused(tmp_path, UnsupportedModelError, "hidden_act", repr(name), "gelu_fast")


@pytest.mark.parametrize("kind", ["Bert", "Albert"])
def test_pre_training_heads_fill_masks(tmp_path: Path, kind: str) -> None:
    build(kind.lower(), "fill_mask", tmp_path)
    model = getattr(transformers, f"{kind}ForPreTraining").from_pretrained(tmp_path, attn_implementation="eager").eval()
    make_adversarial(model, 3)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [f"{kind}ForPreTraining"]
    assert_parity(tmp_path, "fill_mask")


def test_a_pre_training_head_that_is_not_there_is_named(tmp_path: Path) -> None:
    build("bert", "embed", tmp_path)
    edit(tmp_path, architectures=["BertForPreTraining"])
    refused(tmp_path, CheckpointError, "cls.predictions.transform.dense.weight")


@pytest.mark.parametrize(("family", "task"), [("bert", "classify"), ("xlm-roberta", "embed"), ("albert", "fill_mask")])
def test_float64(tmp_path: Path, family: str, task: str) -> None:
    build(family, task, tmp_path).double().save_pretrained(tmp_path)
    dtypes = {
        tensor.dtype for tensor in load_file(tmp_path / "model.safetensors").values() if tensor.is_floating_point()
    }
    assert dtypes == {torch.float64}
    assert_parity(tmp_path, task)


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "albert", "mpnet", "camembert"])
def test_an_untied_decoder_must_be_there(tmp_path: Path, family: str) -> None:
    build(family, "fill_mask", tmp_path)
    edit(tmp_path, tie_word_embeddings=False)
    refused(tmp_path, CheckpointError, "decoder" if family not in ("distilbert",) else "vocab_projector", "tie_word")


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_a_decoder_of_its_own_wins_over_tying(tmp_path: Path, family: str) -> None:
    """As in transformers, which does not tie what the file holds with two values."""
    build(family, "fill_mask", tmp_path, tie_word_embeddings=False)
    edit(tmp_path, tie_word_embeddings=True)
    assert_parity(tmp_path, "fill_mask")


@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta", "mpnet"])
def test_tensors_stored_once_under_another_name(tmp_path: Path, family: str) -> None:
    """``save_model`` of safetensors keeps the first name of the alphabet: of a RoBERTa its decoder, no word table."""
    model = build(family, "fill_mask", tmp_path)
    save_model(model, str(tmp_path / "model.safetensors"))
    stored = load_file(tmp_path / "model.safetensors")
    assert any("word_embeddings" in name for name in stored) == (family == "bert")
    assert_parity(tmp_path, "fill_mask", model)


def test_distilbert_answers_to_the_common_names_of_its_sizes(tmp_path: Path) -> None:
    build("distilbert", "classify", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for key, common in (("dim", "hidden_size"), ("n_heads", "num_attention_heads"), ("n_layers", "num_hidden_layers")):
        config[common] = config.pop(key)
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert_parity(tmp_path, "classify")


@pytest.mark.parametrize(
    "harmless",
    [
        {"chunk_size_feed_forward": 3},
        {"classifier_dropout": 0.4, "hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.5},
        {"use_cache": False, "output_attentions": True, "output_hidden_states": True, "return_dict": True},
        {"gradient_checkpointing": True, "initializer_range": 9.0, "torchscript": True},
        {"num_labels": 5, "finetuning_task": "sst-2", "directionality": "bidi", "embedding_size": 7},
        {"pruned_heads": {}, "adapters": {"adapters": {}, "fusions": {}}, "auto_map": {}, "quantization_config": None},
        {"auto_map": {"AutoTokenizer": ["tokenization_x.XTokenizer", None]}, "sinusoidal_pos_embds": True},
    ],
)
@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_settings_without_effect_on_the_result(tmp_path: Path, family: str, harmless: dict[str, Any]) -> None:
    model = build(family, "classify", tmp_path)
    edit(tmp_path, **harmless)
    assert_parity(tmp_path, "classify", model)


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("bert", {"position_embedding_type": "relative_key_query"}, ["relative_key_query"]),
        ("roberta", {"position_embedding_type": "relative_key"}, ["'relative_key'"]),
        ("albert", {"position_embedding_type": "relative_key"}, ["'relative_key'"]),
        ("xlm-roberta", {"is_decoder": True}, ["is_decoder"]),
        ("camembert", {"add_cross_attention": True}, ["add_cross_attention"]),
        ("roberta", {"is_decoder": True, "architectures": ["RobertaModel"]}, ["is_decoder"]),
        ("mpnet", {"relative_attention_num_buckets": 64}, ["relative_attention_num_buckets", "64"]),
        ("bert", {"pruned_heads": {"0": [1]}}, ["pruned_heads", "{'0': [1]}"]),
        (
            "distilbert",
            {"quantization_config": {"quant_method": "fp8"}},
            ["quantization_config", "fp8"],
        ),
        ("roberta", {"adapters": {"adapters": {"sst-2": "1"}}}, ["adapters", "sst-2"]),
        ("bert", {"architectures": ["JinaBertModel"]}, ["'JinaBertModel'"]),
        ("bert", {"architectures": ["BertModelWithHead"]}, ["'BertModelWithHead'"]),
        ("roberta", {"architectures": ["RobertaForCausalLM"]}, ["'RobertaForCausalLM'"]),
        ("xlm-roberta", {"architectures": ["XLMRobertaForMultipleChoice"]}, ["'XLMRobertaForMultipleChoice'"]),
        ("distilbert", {"architectures": ["DistilBertForMultipleChoice"]}, ["'DistilBertForMultipleChoice'"]),
    ],
)
def test_settings_that_change_the_result_are_named(
    tmp_path: Path, family: str, changes: dict[str, Any], words: list[str]
) -> None:
    build(family, "embed", tmp_path)
    edit(tmp_path, **changes)
    refused(tmp_path, UnsupportedModelError, *words)


CODE = {
    "in the repository": {"AutoModel": "modeling_x.XModel"},
    "in another repository": {
        "AutoConfig": "acme/x--configuration_x.XConfig",
        "AutoModel": "acme/x--modeling_x.XModel",
    },
    "of one head": {"AutoModelForSequenceClassification": "acme/x--modeling_x.XForSequenceClassification"},
    "of the config alone": {"AutoConfig": "configuration_x.XConfig", "AutoTokenizer": ["x.XTokenizer", None]},
}


@pytest.mark.parametrize("kind", CODE)
def test_code_of_a_checkpoint_is_refused(tmp_path: Path, kind: str) -> None:
    build("bert", "classify", tmp_path)
    edit(tmp_path, auto_map=CODE[kind])
    refused(tmp_path, UnsupportedModelError, "auto_map", next(iter(CODE[kind].values())), "save_pretrained")


@pytest.mark.parametrize("known", [True, False])
def test_code_that_is_known_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: bool) -> None:
    folder = tmp_path / "models--acme--tiny" / "snapshots" / "0"
    model = build("bert", "classify", folder)
    edit(folder, auto_map={"AutoModel": "modeling_x.XModel", "AutoConfig": "acme/common--configuration_x.XConfig"})
    monkeypatch.setattr(foreign, "SAME_COMPUTATION", {"acme/tiny", "acme/common" if known else "acme/other"})
    if known:
        assert_parity(folder, "classify", model)
    else:
        refused(folder, UnsupportedModelError, "acme/common")


def test_older_names_of_tensors(tmp_path: Path) -> None:
    """Buffers that older releases saved, and heads of another task, are no part of the model."""
    model = build("bert", "tag", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["bert.embeddings.position_ids"] = torch.arange(512)[None]
    tensors["bert.pooler.dense.weight"] = torch.zeros(78, 78)
    tensors["cls.seq_relationship.weight"] = torch.zeros(2, 78)
    save_file(tensors, tmp_path / "model.safetensors")
    assert_parity(tmp_path, "tag", model)

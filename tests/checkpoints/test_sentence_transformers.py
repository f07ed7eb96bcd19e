"""Modules and settings of sentence-transformers: the embedding equals torch's, and what is not honoured is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.checkpoints import refused
from helpers.engines import ENGINES
from helpers.sentence_modules import MEAN, TYPES, WIDTH, Step, save_modules, save_settings
from helpers.torch_models import LENGTHS, Inputs, build, deviation
from pocketformer.errors import CheckpointError, UnsupportedModelError
from pocketformer.sources import sentence_settings, sentence_transformers
from pocketformer.sources.huggingface import Checkpoint, load_checkpoint


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    build("bert", "embed", tmp_path)
    return tmp_path


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def dense(n: int, k: int, activation: str, seed: int = 0, **config: Any) -> Step:
    tensors = {"linear.weight": random(n, k, seed=seed) / k**0.5, "linear.bias": random(n, seed=seed + 1)}
    if config.get("use_residual") and n != k:
        tensors["residual.weight"] = random(n, k, seed=seed + 2) / k**0.5
    if config.get("bias") is False:
        del tensors["linear.bias"]
    values = {"in_features": k, "out_features": n, "bias": True, "activation_function": activation}
    names = {"module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding"}
    return "Dense", {**values, **names, **config}, tensors


def layer_norm(width: int) -> Step:
    return (
        "LayerNorm",
        {"dimension": width},
        {"norm.weight": 1 + 0.3 * random(width), "norm.bias": random(width, seed=3)},
    )


NORMALIZE: Step = ("Normalize", {"module_input_name": "sentence_embedding"}, {})
DROPOUT: Step = ("Dropout", {"dropout": 0.5}, {})
FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "torch.nn.modules.linear.Identity": lambda x: x,
    "torch.nn.modules.activation.Tanh": torch.tanh,
    "torch.nn.modules.activation.GELU": torch.nn.functional.gelu,
    "torch.nn.modules.activation.ReLU": torch.relu,
    "torch.nn.modules.activation.SiLU": torch.nn.functional.silu,
}


def applied(x: torch.Tensor, steps: Sequence[Step]) -> torch.Tensor:
    """``steps`` after the pooling, as sentence-transformers computes them."""
    for kind, config, tensors in steps:
        if kind == "Dense":
            assert config is not None
            y = torch.nn.functional.linear(x, tensors["linear.weight"], tensors.get("linear.bias"))
            y = FUNCTIONS[config["activation_function"]](y)
            if config.get("use_residual"):
                y = y + (x @ tensors["residual.weight"].T if "residual.weight" in tensors else x)
            x = y
        elif kind == "LayerNorm":
            x = torch.nn.functional.layer_norm(x, (x.shape[-1],), tensors["norm.weight"], tensors["norm.bias"])
        elif kind == "Normalize":
            x = torch.nn.functional.normalize(x, dim=-1)
    return x


GELU, TANH = "torch.nn.modules.activation.GELU", "torch.nn.modules.activation.Tanh"
CHAINS: dict[str, list[Step]] = {
    "dropout": [DROPOUT],
    "layer norm": [layer_norm(WIDTH), NORMALIZE],
    "dense without bias": [dense(33, WIDTH, TANH, bias=False)],
    "residual of equal width": [dense(WIDTH, WIDTH, GELU, use_residual=True), DROPOUT, NORMALIZE],
    "residual of another width": [dense(20, WIDTH, GELU, use_residual=True), layer_norm(20)],
    "two layers": [dense(50, WIDTH, TANH), DROPOUT, layer_norm(50), dense(16, 50, GELU, seed=7), NORMALIZE],
    **{name: [dense(24, WIDTH, name)] for name in FUNCTIONS},
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("chain", CHAINS)
@torch.no_grad()
def test_modules_equal_torch(tmp_path: Path, chain: str, engine: str) -> None:
    model = build("bert", "embed", tmp_path)
    save_modules(tmp_path, [MEAN, *CHAINS[chain]])
    checkpoint = load_checkpoint(tmp_path)
    inputs = Inputs.random(LENGTHS[:6], 2)
    hidden = [
        model(input_ids=torch.tensor(ids)[None], token_type_ids=torch.tensor(types)[None]).last_hidden_state[0].mean(0)
        for ids, types in zip(inputs.split(inputs.ids), inputs.split(inputs.types), strict=True)
    ]
    expected = applied(torch.stack(hidden), CHAINS[chain]).numpy()
    actual = ENGINES[engine](checkpoint.graph, inputs.ids, inputs.lengths, types=inputs.types)
    assert deviation(actual, expected) <= 1


def kinds(checkpoint: Checkpoint) -> list[str]:
    return [op["kind"] for op in checkpoint.graph.ops if op["op"] == "pool"]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, ["mean"]),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": False}, ["mean"]),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, ["cls"]),
        ({"pooling_mode": "max"}, ["max"]),
        ({"pooling_mode": ["cls"]}, ["cls"]),
        ({"pooling_mode": "mean", "pooling_mode_cls_token": True}, ["mean"]),
    ],
)
@pytest.mark.parametrize("types", [None, {kind: f"sentence_transformers.models.{kind}" for kind in TYPES}])
def test_poolings(folder: Path, config: dict[str, Any], expected: list[str], types: dict[str, str] | None) -> None:
    save_modules(folder, [("Pooling", config, {})], types)
    assert kinds(load_checkpoint(folder)) == expected


POOLED: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "mean": lambda x: x.mean(0),
    "cls": lambda x: x[0],
    "last": lambda x: x[-1],
    "mean_sqrt": lambda x: x.sum(0) / len(x) ** 0.5,
    "weighted_mean": lambda x: (torch.arange(1.0, len(x) + 1)[:, None] * x).sum(0) / (len(x) * (len(x) + 1) / 2),
}
SEVERAL = {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True, "pooling_mode_lasttoken": True}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"pooling_mode": "lasttoken"}, ["last"]),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, ["mean_sqrt"]),
        ({"pooling_mode_weightedmean_tokens": True}, ["weighted_mean"]),
        (SEVERAL, ["cls", "mean", "last"]),
        ({"pooling_mode": ["mean", "cls"]}, ["mean", "cls"]),
    ],
)
@pytest.mark.parametrize("engine", ENGINES)
@torch.no_grad()
def test_poolings_equal_torch(tmp_path: Path, config: dict[str, Any], expected: list[str], engine: str) -> None:
    """Several stand side by side, in the order of their columns."""
    model = build("bert", "embed", tmp_path)
    save_modules(tmp_path, [("Pooling", config, {}), dense(24, WIDTH * len(expected), TANH)])
    checkpoint = load_checkpoint(tmp_path)
    assert kinds(checkpoint) == expected
    inputs = Inputs.random(LENGTHS[:6], 2)
    rows = []
    for ids, types in zip(inputs.split(inputs.ids), inputs.split(inputs.types), strict=True):
        x = model(input_ids=torch.tensor(ids)[None], token_type_ids=torch.tensor(types)[None]).last_hidden_state[0]
        rows.append(torch.cat([POOLED[kind](x) for kind in expected]))
    embedded = applied(torch.stack(rows), [dense(24, WIDTH * len(expected), TANH)]).numpy()
    actual = ENGINES[engine](checkpoint.graph, inputs.ids, inputs.lengths, types=inputs.types)
    assert deviation(actual, embedded) <= 1


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([("Pooling", {"pooling_mode": "median"}, {})], ["'pooling_mode' is 'median'", "weightedmean"]),
        ([("Pooling", {"pooling_mode": []}, {})], ["'pooling_mode' is []"]),
        ([MEAN, ("LSTM", {}, {})], ["'LSTM'"]),
        ([MEAN, MEAN], ["Transformer → Pooling → Pooling of a SentenceTransformer"]),
        ([NORMALIZE, MEAN], ["Transformer → Normalize → Pooling"]),
        ([], ["lists Transformer of a SentenceTransformer; supported: Transformer, then Pooling"]),
        ([("WeightedLayerPooling", {}, {}), MEAN], ["'WeightedLayerPooling'"]),
        ([("SpladePooling", {}, {}), NORMALIZE], ["of a SparseEncoder; supported: Transformer, then SpladePooling"]),
        ([("MultiVectorMask", {}, {}), MEAN], ["of a MultiVectorEncoder"]),
        ([MEAN, ("custom_code.Whitening", {}, {})], ["'custom_code.Whitening'", "never run"]),
        ([MEAN, dense(8, WIDTH, "torch.nn.modules.activation.Sigmoid")], ["Sigmoid", "SiLU"]),
        ([MEAN, dense(8, WIDTH, "my_code.Swish")], ["'my_code.Swish'"]),
        ([MEAN, dense(8, WIDTH, TANH, module_input_name="token_embeddings")], ["'module_input_name'", "token_emb"]),
        ([MEAN, ("Normalize", {"module_output_name": "unit"}, {})], ["'module_output_name' is 'unit'"]),
    ],
)
def test_modules_that_are_refused(folder: Path, steps: list[Step], words: list[str]) -> None:
    names = {kind: f"sentence_transformers.models.{kind}" for kind, _, _ in steps if "." not in kind}
    save_modules(folder, steps, {**names, **TYPES})
    refused(folder, UnsupportedModelError, *words)


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([MEAN, dense(8, WIDTH + 1, TANH)], ["'in_features' is 79", "78 columns"]),
        ([MEAN, layer_norm(WIDTH - 1)], ["'dimension' is 77", "78 columns"]),
        ([MEAN, ("Dense", {"in_features": WIDTH, "out_features": 8}, {})], ["2_Dense", "no model.safetensors"]),
    ],
)
def test_modules_that_do_not_fit(folder: Path, steps: list[Step], words: list[str]) -> None:
    save_modules(folder, steps)
    refused(folder, CheckpointError, *words)


def test_modules_stay_inside_the_folder(folder: Path) -> None:
    (folder / "modules.json").write_text('[{"type": "a.Transformer", "path": "../x"}]')
    refused(folder, CheckpointError, "../x", "outside")


def test_modules_win_over_the_head(tmp_path: Path) -> None:
    build("bert", "classify", tmp_path)
    save_modules(tmp_path, [("Pooling", {"pooling_mode_cls_token": True}, {})])
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint.model["task"] == "embed"
    assert kinds(checkpoint) == ["cls"]


def test_an_encoder_in_a_folder_of_its_own(tmp_path: Path) -> None:
    """Older repositories keep the encoder and its settings in ``0_Transformer``."""
    home = tmp_path / "0_Transformer"
    build("bert", "embed", home)
    save_settings(home, "sentence_bert_config.json", max_seq_length=100)
    (tmp_path / "1_Pooling").mkdir()
    save_settings(tmp_path / "1_Pooling", "config.json", pooling_mode_cls_token=True)
    kinds_and_paths = [("Transformer", "0_Transformer"), ("Pooling", "1_Pooling")]
    modules = [{"type": f"sentence_transformers.models.{kind}", "path": where} for kind, where in kinds_and_paths]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    checkpoint = load_checkpoint(tmp_path)
    assert (kinds(checkpoint), checkpoint.text["max_length"]) == (["cls"], 100)


def test_prompts_similarity_and_dimensions(folder: Path) -> None:
    save_modules(folder, [("Pooling", {"pooling_mode": "mean", "include_prompt": False}, {})])
    plain = load_checkpoint(folder)
    assert (plain.model["similarity"], plain.model["truncate_dim"]) == ("cosine", None)
    assert plain.text["prompts"] == {}
    assert plain.text["default_prompt_name"] is None
    assert plain.text["include_prompt"] is False
    prompts = {"query": "query: ", "document": "", "other": None}
    save_settings(
        folder,
        "config_sentence_transformers.json",
        prompts=prompts,
        default_prompt_name="query",
        similarity_fn_name="dot",
        truncate_dim=16,
    )
    checkpoint = load_checkpoint(folder)
    assert (checkpoint.model["similarity"], checkpoint.model["truncate_dim"]) == ("dot", 16)
    assert checkpoint.text["prompts"] == {"query": "query: ", "document": "", "other": ""}
    assert checkpoint.text["default_prompt_name"] == "query"


def test_settings_without_modules_are_not_read(folder: Path) -> None:
    """sentence-transformers builds a model anew where there is no ``modules.json``."""
    save_settings(folder, "config_sentence_transformers.json", prompts={"query": "q"}, truncate_dim=3)
    checkpoint = load_checkpoint(folder)
    assert (checkpoint.text["prompts"], checkpoint.model["truncate_dim"]) == ({}, None)
    assert checkpoint.text["include_prompt"] is True


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"truncate_dim": 0}, ["'truncate_dim' is 0"]),
        ({"truncate_dim": "8"}, ["'truncate_dim' is '8'"]),
        ({"prompts": ["a"]}, ["'prompts' is ['a']", "an object"]),
        ({"prompts": {"a": 3}}, ["the prompt 'a' is 3"]),
        ({"default_prompt_name": "passage", "prompts": {"a": "b"}}, ["'passage'", "only query, document, a"]),
        ({"similarity_fn_name": 3}, ["'similarity_fn_name' is 3"]),
    ],
)
def test_wrong_values_are_explained(folder: Path, values: dict[str, Any], words: list[str]) -> None:
    save_modules(folder, [MEAN])
    save_settings(folder, "config_sentence_transformers.json", **values)
    refused(folder, CheckpointError, "config_sentence_transformers.json", *words)


@pytest.mark.parametrize("model_type", ["SparseEncoder", "MultiVectorEncoder", "CrossEncoder", "StaticEncoder"])
def test_other_kinds_of_models_are_named(folder: Path, model_type: str) -> None:
    save_modules(folder, [MEAN])
    save_settings(folder, "config_sentence_transformers.json", model_type=model_type)
    refused(folder, UnsupportedModelError, f"Transformer → Pooling of a {model_type}", "supported:")


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet"])
def test_lengths_of_every_settings_file(folder: Path, name: str) -> None:
    save_modules(folder, [MEAN])
    save_settings(folder, "tokenizer_config.json", model_max_length=300)
    save_settings(folder, f"sentence_{name}_config.json", max_seq_length=128, do_lower_case=False)
    assert load_checkpoint(folder).text["max_length"] == 128


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"max_seq_length": None}, 300),
        ({"max_seq_length": 4096}, 512),
        ({"max_seq_length": 128, "processor_kwargs": {"model_max_length": 64}}, 64),
        ({"max_seq_length": 128, "tokenizer_args": {"model_max_length": 60, "use_fast": True}}, 60),
        ({"processing_kwargs": {"text": {"max_length": 32, "truncation": True}}}, 32),
        ({"processing_kwargs": {"common": {"return_tensors": "pt"}, "image": {"size": 3}}}, 300),
        ({"model_kwargs": {"torch_dtype": "float32", "add_pooling_layer": False}, "unpad_inputs": True}, 300),
    ],
)
def test_which_length_wins(folder: Path, values: dict[str, Any], expected: int) -> None:
    save_modules(folder, [MEAN])
    save_settings(folder, "tokenizer_config.json", model_max_length=300)
    save_settings(folder, "sentence_bert_config.json", **values)
    assert load_checkpoint(folder).text["max_length"] == expected


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"query_length": 32}, ["'query_length' is 32"]),
        ({"document_length": 300}, ["'document_length' is 300"]),
        ({"query_expansion": {"strategy": "fixed", "length": 32}}, ["'query_expansion'"]),
        ({"tokenizer_name_or_path": "other/model"}, ["'tokenizer_name_or_path' is 'other/model'"]),
        ({"transformer_task": "fill-mask"}, ["'transformer_task' is 'fill-mask'", "feature-extraction"]),
        ({"model_kwargs": {"variant": "fp16"}}, ["'model_kwargs'", "'variant'"]),
        ({"model_args": {"subfolder": "x"}}, ["'model_args'", "'subfolder'"]),
        ({"processing_kwargs": {"text": {"add_special_tokens": False}}}, ["'add_special_tokens'"]),
        ({"processing_kwargs": {"text": {"truncation": False}}}, ["processing_kwargs", "always cut"]),
        (
            {"modality_config": {"text": {"method": "forward", "method_output_name": "pooler_output"}}},
            ["pooler_output"],
        ),
        ({"invented": True}, ["'invented' is True"]),
    ],
)
def test_settings_that_are_refused(folder: Path, values: dict[str, Any], words: list[str]) -> None:
    save_modules(folder, [MEAN])
    save_settings(folder, "sentence_bert_config.json", **values)
    refused(folder, UnsupportedModelError, "sentence_bert_config.json", *words)


def test_overrides_of_the_config(folder: Path) -> None:
    save_modules(folder, [MEAN])
    save_settings(folder, "sentence_bert_config.json", config_args={"hidden_act": "relu", "revision": "main"})
    assert {op.get("activation") for op in load_checkpoint(folder).graph.ops} >= {"relu"}


def test_documentation_lists_modules_and_activations() -> None:
    page = (Path(__file__).parents[2] / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    assert all(name in page for name in sentence_transformers._AFTER_POOLING)
    assert all(name.rsplit(".", 1)[-1] in page for name in sentence_transformers._ACTIVATIONS)
    assert all(f"`{mode}`" in page for mode in sentence_transformers._POOLINGS)
    assert all(name.split("_")[1] in page for name in sentence_settings.FILES)

"""Decoders that embed, classify and tag texts equal transformers, and small mistakes are noticed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, processors
from torch.nn import functional

import pocketformer
from checkpoints.test_sentence_transformers import NORMALIZE, Step, dense, save_modules, save_settings
from helpers.checkpoints import refused
from helpers.engines import ENGINES, native
from helpers.programs import quantize_graph
from helpers.torch_decoders import BYTES, VOCAB, add_tokenizer, build, change_config
from helpers.torch_models import Inputs, deviation
from pocketformer.errors import UnsupportedModelError
from pocketformer.sources.huggingface import Checkpoint, load_checkpoint

LENGTHS = (1, 2, 5, 6, 7, 12, 63, 65, 129)  # around the windows and the tiles
LAST: Step = ("Pooling", {"embedding_dimension": 48, "pooling_mode": "lasttoken", "include_prompt": True}, {})
MEAN: Step = ("Pooling", {"word_embedding_dimension": 48, "pooling_mode_mean_tokens": True}, {})
IDENTITY = "torch.nn.modules.linear.Identity"
GEMMA = [MEAN, dense(64, 48, IDENTITY, bias=False), dense(48, 64, IDENTITY, seed=4, bias=False), NORMALIZE]
GEMMA_OPTIONS: dict[str, Any] = {"use_bidirectional_attention": True, "sliding_window": 10}
CHAINS: dict[str, tuple[str, list[Step], dict[str, Any]]] = {
    "qwen3": ("ForCausalLM", [LAST, NORMALIZE], {}),  # as Qwen3-Embedding is saved
    "mistral": ("Model", [LAST, NORMALIZE], {}),  # as E5-Mistral is
    "llama": ("Model", [], {}),
    "gemma3_text": ("Model", GEMMA, GEMMA_OPTIONS),  # as EmbeddingGemma is
    "phi3": ("ForCausalLM", [LAST], {}),
    "gpt2": ("Model", [], {}),
}


def inputs() -> Inputs:
    drawn = Inputs.random(LENGTHS, 0)
    return Inputs(drawn.ids % (VOCAB - 3) + 3, drawn.types, drawn.lengths)


@torch.no_grad()
def hidden_states(model: Any, ids: np.ndarray) -> torch.Tensor:
    body = model.model if hasattr(model, "lm_head") else model
    state: torch.Tensor = body(input_ids=torch.tensor(ids)[None]).last_hidden_state[0]
    return state


def embedding(hidden: torch.Tensor, steps: list[Step]) -> torch.Tensor:
    x = hidden[-1] if LAST in steps else hidden.mean(0)
    for kind, _, tensors in steps:
        if kind == "Dense":
            x = functional.linear(x, tensors["linear.weight"])
        elif kind == "Normalize":
            x = functional.normalize(x, dim=0)
    return x


def embedder(name: str, folder: Path, **options: Any) -> tuple[Checkpoint, np.ndarray]:
    suffix, steps, own = CHAINS[name]
    model = build(name, folder, suffix=suffix, **{**own, **options})
    if steps:
        save_modules(folder, steps)
    states = [hidden_states(model, ids) for ids in inputs().split(inputs().ids)]
    return load_checkpoint(folder), torch.stack([embedding(state, steps) for state in states]).numpy()


@pytest.mark.parametrize("name", CHAINS)
def test_embeddings_equal_transformers(name: str, tmp_path: Path) -> None:
    checkpoint, expected = embedder(name, tmp_path)
    assert (checkpoint.model["family"], checkpoint.model["task"]) == (name, "embed")
    for engine in ENGINES.values():
        assert deviation(engine(checkpoint.graph, inputs().ids, LENGTHS), expected) <= 1


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("gemma3_text", {"sliding_window": 8}),
        ("gemma3_text", {"sliding_window": 12}),
        ("gemma3_text", {"use_bidirectional_attention": False}),
        ("mistral", {"sliding_window": 8}),
        ("mistral", {"sliding_window": 10}),
        ("qwen3", {"rms_norm_eps": 2e-2}),
    ],
)
def test_a_wrong_setting_is_noticed(name: str, changes: dict[str, Any], tmp_path: Path) -> None:
    _, expected = embedder(name, tmp_path)
    change_config(tmp_path, **changes)
    assert deviation(native(load_checkpoint(tmp_path).graph, inputs().ids, LENGTHS), expected) > 10


@pytest.mark.parametrize("name", CHAINS)
def test_int8_stays_close(name: str, tmp_path: Path) -> None:
    """Of random weights, whose errors nothing trained against; the rotation of heads is part of it."""
    checkpoint, expected = embedder(name, tmp_path)
    rounded = quantize_graph(checkpoint.graph)
    assert all(state["rotate"] in (8, 16) for state in rounded.states)
    actual = native(rounded, inputs().ids, LENGTHS)
    cosine = (actual * expected).sum(1) / np.linalg.norm(actual, axis=1) / np.linalg.norm(expected, axis=1)
    print(f"\n{name}: cosine mean {cosine.mean():.5f}, min {cosine.min():.5f}")
    assert cosine.mean() >= 0.998


@pytest.mark.parametrize(
    ("name", "task"),
    [
        *[("qwen3", "classify"), ("gemma3_text", "classify"), ("llama", "classify"), ("gpt2", "classify")],
        *[("llama", "tag"), ("gpt2", "tag")],
    ],
)
def test_heads_equal_transformers(name: str, task: str, tmp_path: Path) -> None:
    suffix = {"classify": "ForSequenceClassification", "tag": "ForTokenClassification"}[task]
    model = build(name, tmp_path, suffix=suffix, num_labels=5)
    checkpoint = load_checkpoint(tmp_path)
    assert (checkpoint.model["task"], len(checkpoint.model["labels"])) == (task, 5)
    with torch.no_grad():
        logits = [model(torch.tensor(ids)[None]).logits[0] for ids in inputs().split(inputs().ids)]
    expected = torch.stack(logits) if task == "classify" else torch.cat(logits)
    assert deviation(native(checkpoint.graph, inputs().ids, LENGTHS), expected.numpy()) <= 1


def test_what_is_not_honoured_is_refused_by_name(tmp_path: Path) -> None:
    build("gemma3_text", tmp_path, **GEMMA_OPTIONS)
    refused(tmp_path, UnsupportedModelError, "use_bidirectional_attention", "predicts none")
    change_config(tmp_path, architectures=["Gemma3ForQuestionAnswering"])
    refused(tmp_path, UnsupportedModelError, "Gemma3ForQuestionAnswering")


def with_end(folder: Path) -> Tokenizer:
    """A tokenizer that ends every text with </s>, as Qwen3-Embedding's does with its own."""
    tokenizer = add_tokenizer(folder)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 2)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer


def test_texts_with_prompts(tmp_path: Path) -> None:
    """A folder like that of Qwen3-Embedding, from compression to the embedding of a query."""
    model = build("qwen3", tmp_path, suffix="ForCausalLM", vocab_size=BYTES)
    with_end(tmp_path)
    save_modules(tmp_path, [LAST, NORMALIZE])
    prompts = {"query": "Instruct: find\nQuery:", "document": ""}
    save_settings(tmp_path, "config_sentence_transformers.json", prompts=prompts, similarity_fn_name="cosine")
    file = tmp_path / "model.pocket"
    pocketformer.compress(tmp_path, file, weights="fp32")
    embedder = pocketformer.load(file)
    assert isinstance(embedder, pocketformer.Embedder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text, actual in (
        ("Instruct: find\nQuery:a bee", embedder.encode_query("a bee")),
        ("a bee", embedder.encode_document("a bee")),
    ):
        ids = tokenizer(text).input_ids
        assert ids[-1] == 2
        expected = embedding(hidden_states(model, np.array(ids)), [LAST, NORMALIZE])
        assert deviation(actual[None], expected[None].numpy()) <= 1


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"add_eos_token": True}, ["<s>", "b", "</s>"]),
        ({"add_bos_token": True, "add_eos_token": True}, ["<s>", "b", "</s>"]),
        ({"add_bos_token": True}, ["<s>", "b"]),
        ({"add_bos_token": None}, ["<s>", "b"]),
        ({"add_eos_token": False}, ["<s>", "b"]),
    ],
)
def test_the_tokens_that_settings_add(settings: dict[str, Any], expected: list[str], tmp_path: Path) -> None:
    build("mistral", tmp_path, suffix="Model", vocab_size=BYTES)
    add_tokenizer(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    named = {"bos_token": "<s>", "eos_token": "</s>", **settings}
    path.write_text(json.dumps({**json.loads(path.read_text()), **named}))
    content = load_checkpoint(tmp_path).tokenizer_json
    assert content is not None
    tokenizer = Tokenizer.from_str(content.decode())
    assert tokenizer.encode("b").tokens == expected
    assert tokenizer.encode("b", "b").tokens == (expected * 2 if "</s>" in expected else ["<s>", "b", "b"])


def test_a_classifier_whose_texts_end_with_padding_is_refused(tmp_path: Path) -> None:
    build("qwen3", tmp_path, suffix="ForSequenceClassification", vocab_size=BYTES, num_labels=2)
    with_end(tmp_path)
    load_checkpoint(tmp_path)
    change_config(tmp_path, pad_token_id=2)
    refused(tmp_path, UnsupportedModelError, "pad_token_id", "2")

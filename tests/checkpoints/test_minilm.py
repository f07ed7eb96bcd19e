"""all-MiniLM-L6-v2 as imported equals torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer

from helpers.engines import ENGINES
from helpers.models import model_folder
from pocketformer.sources.huggingface import Checkpoint, load_checkpoint

TEXTS = [
    "A cat sits on the mat.",
    "The quick brown fox jumps over the lazy dog, again and again, until the dog has had enough of it.",
    "ok",
    "Zürich’s trams — naïve façade, 東京 and emoji 🙂 — all in one line!",
    "The kettle whistles while the rain drums on the roof of the old station. " * 12,
]


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return load_checkpoint(model_folder("minilm"))


def tokenize(checkpoint: Checkpoint, texts: list[str]) -> list[list[int]]:
    assert checkpoint.tokenizer_json is not None
    tokenizer = Tokenizer.from_str(checkpoint.tokenizer_json.decode())
    tokenizer.no_padding()
    tokenizer.enable_truncation(checkpoint.text["max_length"])
    return [encoding.ids for encoding in tokenizer.encode_batch(texts)]


def test_metadata(checkpoint: Checkpoint) -> None:
    assert checkpoint.model == {
        "name": "all-MiniLM-L6-v2",
        "family": "bert",
        "task": "embed",
        "labels": [],
        # 22,713,216 published, less the 384·385 of the pooler that sentence embeddings do not use
        "params": 22_713_216 - 384 * 385,
        "weights": "fp32",
        "license": "apache-2.0",
        "similarity": "cosine",
        "truncate_dim": None,
    }
    assert checkpoint.text == {
        "max_length": 256,
        "mask_token_id": 103,
        "prompts": {"query": "", "document": ""},
        "default_prompt_name": None,
        "include_prompt": True,
    }
    assert [op["op"] for op in checkpoint.graph.ops][-2:] == ["pool", "normalize"]


@torch.no_grad()
def torch_embeddings(sequences: list[list[int]]) -> np.ndarray[Any, Any]:
    model = transformers.AutoModel.from_pretrained(model_folder("minilm"), attn_implementation="eager").eval()
    hidden = [model(torch.tensor(ids)[None]).last_hidden_state[0] for ids in sequences]
    return torch.stack([torch.nn.functional.normalize(h.mean(0), dim=0) for h in hidden]).numpy()


@pytest.mark.parametrize("engine", ENGINES)
def test_embeddings_equal_torch(checkpoint: Checkpoint, engine: str) -> None:
    sequences = tokenize(checkpoint, TEXTS)
    expected = torch_embeddings(sequences)
    actual = ENGINES[engine](checkpoint.graph, np.concatenate(sequences), [len(ids) for ids in sequences])
    assert np.abs(actual - expected).max() < 1e-6
    assert (actual * expected).sum(1).min() >= 0.999999

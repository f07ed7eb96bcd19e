"""A checkpoint of XLM-RoBERTa's kind with random weights and any number of words, written without much memory."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from math import prod
from pathlib import Path

import numpy as np


def write_checkpoint(
    folder: Path, *, words: int, hidden: int = 768, ffn: int = 3072, layers: int = 12, positions: int = 514
) -> int:
    """Writes ``config.json`` and ``model.safetensors`` (float32); returns the bytes of the largest tensor."""
    config = {
        "architectures": ["XLMRobertaForMaskedLM"],
        "model_type": "xlm-roberta",
        "vocab_size": words,
        "type_vocab_size": 1,
        "max_position_embeddings": positions,
        "hidden_size": hidden,
        "num_attention_heads": hidden // 64,
        "num_hidden_layers": layers,
        "intermediate_size": ffn,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "pad_token_id": 1,
    }
    (folder / "config.json").write_text(json.dumps(config))
    shapes = dict(_tensors(words, hidden, ffn, layers, positions))
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 4 * prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
    encoded = json.dumps(header).encode()
    encoded = encoded.ljust(-(-len(encoded) // 8) * 8)
    numbers = np.random.default_rng(0).standard_normal(1 << 20).astype(np.float32)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for name, shape in shapes.items():
            left = prod(shape)
            scaled = np.abs(numbers) if "LayerNorm.weight" in name else numbers * np.float32(0.04)
            while left:
                file.write(scaled[:left].data)
                left -= min(left, len(scaled))
    return max(4 * prod(shape) for shape in shapes.values())


def _tensors(words: int, hidden: int, ffn: int, layers: int, positions: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    def linear(name: str, n: int, k: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f"{name}.weight", (n, k)
        yield f"{name}.bias", (n,)

    def norm(name: str) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f"{name}.LayerNorm.weight", (hidden,)
        yield f"{name}.LayerNorm.bias", (hidden,)

    tables = {"word_embeddings": words, "position_embeddings": positions, "token_type_embeddings": 1}
    for table, rows in tables.items():
        yield f"roberta.embeddings.{table}.weight", (rows, hidden)
    yield from norm("roberta.embeddings")
    for i in range(layers):
        layer = f"roberta.encoder.layer.{i}"
        for part in ("query", "key", "value"):
            yield from linear(f"{layer}.attention.self.{part}", hidden, hidden)
        yield from linear(f"{layer}.attention.output.dense", hidden, hidden)
        yield from norm(f"{layer}.attention.output")
        yield from linear(f"{layer}.intermediate.dense", ffn, hidden)
        yield from linear(f"{layer}.output.dense", hidden, ffn)
        yield from norm(f"{layer}.output")
    yield from linear("lm_head.dense", hidden, hidden)
    yield "lm_head.layer_norm.weight", (hidden,)
    yield "lm_head.layer_norm.bias", (hidden,)
    yield "lm_head.bias", (words,)

"""Models with random weights, for shapes whose checkpoints are not at hand: time does not depend on the values."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np

from pocketformer.compression import QuantizeOptions, compress
from pocketformer.compression.quantize import quantize_graph
from pocketformer.fetch import cache_folder
from pocketformer.graph import Array, GraphBuilder, Table
from pocketformer.packing import pack_graph
from pocketformer.pocketfile import write_pocket

BERT_BASE = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "position_embedding_type": "absolute",
}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")
SENTENCE_FILES = ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json")


def bert_base_folder(source: Path, target: Path) -> Path:
    """A checkpoint folder of BERT-base's shape with the tokenizer and pooling of the sentence encoder ``source``."""
    from safetensors.numpy import save_file

    target.mkdir(parents=True, exist_ok=True)
    for name in (*TOKENIZER_FILES, *SENTENCE_FILES):
        if (source / name).is_file():
            shutil.copy(source / name, target / name)
    pooling = json.loads((source / "1_Pooling" / "config.json").read_text())
    (target / "1_Pooling").mkdir(exist_ok=True)
    hidden = {"word_embedding_dimension": BERT_BASE["hidden_size"]}
    (target / "1_Pooling" / "config.json").write_text(json.dumps(pooling | hidden))
    save_file(_bert_tensors(), target / "model.safetensors", metadata={"format": "pt"})
    (target / "config.json").write_text(json.dumps(BERT_BASE))
    return target


def _bert_tensors() -> dict[str, Array]:
    rng = np.random.default_rng(0)
    width, ffn = 768, 3072
    tensors: dict[str, Array] = {}

    def normal(name: str, *shape: int) -> None:
        tensors[name] = rng.standard_normal(shape, np.float32) * np.float32(0.04)

    def linear(name: str, n: int, k: int) -> None:
        normal(f"{name}.weight", n, k)
        normal(f"{name}.bias", n)

    def norm(name: str) -> None:
        tensors[f"{name}.weight"] = np.ones(width, np.float32)
        tensors[f"{name}.bias"] = np.zeros(width, np.float32)

    for table, rows in (("word", 30522), ("position", 512), ("token_type", 2)):
        normal(f"embeddings.{table}_embeddings.weight", rows, width)
    norm("embeddings.LayerNorm")
    for layer in (f"encoder.layer.{i}" for i in range(12)):
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            linear(f"{layer}.attention.{part}", width, width)
        norm(f"{layer}.attention.output.LayerNorm")
        linear(f"{layer}.intermediate.dense", ffn, width)
        linear(f"{layer}.output.dense", width, ffn)
        norm(f"{layer}.output.LayerNorm")
    linear("pooler.dense", width, width)
    return tensors


def bert_base(source: Path) -> Path:
    """The int8 pocket file of that folder, made once. Rounded without feedback, which random weights do not need."""
    target = cache_folder() / "bench" / "bert-base.int8.pocket"
    if not target.exists():
        folder = bert_base_folder(source, target.parent / "bert-base")
        compress(folder, target, options=QuantizeOptions(random_tokens=0))
        shutil.rmtree(folder)
    return target


def toy(target: Path, weights: str) -> Path:
    """The 67,072-parameter encoder of fixed_cost.cpp: attention over four heads of 8 between two tables of 1,000."""
    rng = np.random.default_rng(0)
    build = GraphBuilder.text(1000, 0, 64)
    x = build.embed([Table("words", rng.standard_normal((1000, 32), np.float32), "ids")])
    qkv = build.linear(x, rng.standard_normal((96, 32), np.float32), name="qkv")
    y = build.attention(qkv, heads=4, head_dim=8)
    graph = build.build(build.linear(y, rng.standard_normal((1000, 32), np.float32), name="head"))
    if weights == "int8":
        graph = quantize_graph(graph, QuantizeOptions(random_tokens=0))
    model = {"name": "toy", "family": "toy", "task": "embed", "labels": None, "params": 67072, "weights": weights}
    write_pocket(target, pack_graph(graph), model, {"max_length": 64, "pad_token_id": 0}, None)
    return target

"""Folders of sentence-transformers: modules and settings beside a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

WIDTH = 78
# What version 6 of the package writes as types.
TYPES = {
    "Transformer": "sentence_transformers.base.modules.transformer.Transformer",
    "Pooling": "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
    "Dense": "sentence_transformers.base.modules.dense.Dense",
    "Normalize": "sentence_transformers.base.modules.normalize.Normalize",
    "LayerNorm": "sentence_transformers.sentence_transformer.modules.layer_norm.LayerNorm",
    "Dropout": "sentence_transformers.sentence_transformer.modules.dropout.Dropout",
}
Step = tuple[str, "dict[str, Any] | None", "dict[str, torch.Tensor]"]
MEAN: Step = ("Pooling", {"embedding_dimension": WIDTH, "pooling_mode": "mean", "include_prompt": True}, {})


def save_modules(folder: Path, steps: Sequence[Step], types: dict[str, str] | None = None) -> None:
    """Writes ``modules.json`` with a Transformer and ``steps``: (kind, config, tensors)."""
    modules = []
    for i, (kind, config, tensors) in enumerate([("Transformer", None, {}), *steps]):
        where = f"{i}_{kind}" if i else ""
        modules.append({"idx": i, "name": str(i), "path": where, "type": (types or TYPES).get(kind, kind)})
        (folder / where).mkdir(exist_ok=True)
        if config is not None:
            (folder / where / "config.json").write_text(json.dumps(config))
        if tensors:
            save_file(tensors, folder / where / "model.safetensors")
    (folder / "modules.json").write_text(json.dumps(modules))


def save_settings(folder: Path, name: str, **values: Any) -> None:
    (folder / name).write_text(json.dumps(values))

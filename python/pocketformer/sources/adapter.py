"""LoRA adapters beside a model, merged into its weights as they are read (arXiv 2106.09685; DoRA: 2402.09353)."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CheckpointError, UnsupportedModelError
from ..lazy import Float32, lazy
from .config import Config
from .names import Names, without_wrappers
from .weights import Weights, no_safetensors, open_file

_CONFIG, _FILE = "adapter_config.json", "adapter_model.safetensors"
_MAGNITUDE = "lora_magnitude_vector"
_PARTS = ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", _MAGNITUDE)

_HARMLESS = {
    # what the merge reads
    *("peft_type", "r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "init_lora_weights"),
    # what chose the tensors that the file holds, by name
    *("target_modules", "exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern", "bias"),
    "save_embedding_layers",
    # what matters in training, or says where the adapter came from
    *("lora_dropout", "inference_mode", "task_type", "base_model_name_or_path", "revision", "auto_mapping"),
    *("peft_version", "megatron_core", "runtime_config", "loftq_config", "eva_config", "ensure_weight_tying"),
    "qalora_group_size",
    # peft itself sets it to false for what these families have: linear layers
    "fan_in_fan_out",
}
_TASKS = {
    "FEATURE_EXTRACTION": "embed",
    "SEQ_CLS": "classify",
    "TOKEN_CLS": "tag",
    "QUESTION_ANS": "answer",
}
_PLAIN_STARTS = (None, True, False, "gaussian", "orthogonal", "eva")


@dataclass(frozen=True)
class Adapter:
    """The tensors of an adapter by module: low-rank parts, and those that replace a tensor as a whole."""

    config: Config
    tensors: Weights
    parts: dict[str, dict[str, str]] = field(default_factory=dict)
    whole: dict[str, str] = field(default_factory=dict)

    def replacement(self, spellings: tuple[str, ...]) -> str | None:
        """The adapter's name of the tensor that replaces the one of these ``spellings``."""
        return next((self.whole[name] for name in spellings if name in self.whole), None)

    def merged(self, spellings: tuple[str, ...], weight: Float32) -> Float32:
        """``weight`` [n, k], plus the low-rank product that the adapter has for the tensor of these ``spellings``."""
        modules = (name.removesuffix(".weight") for name in spellings)
        module = next((name for name in modules if name in self.parts), None)
        if module is None:
            return weight
        parts, (n, k) = self.parts[module], weight.shape
        scale = np.float32(self._scale(module))
        embedding = "lora_embedding_A" in parts
        first, second = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A", "lora_B")
        if first not in parts or second not in parts:
            raise CheckpointError(f"{self.config.path.parent / _FILE}: {module!r} lacks {first} or {second}")
        rank = self.tensors.shape(parts[first])[0]
        if embedding:  # a lookup reads columns of A, so that the product stands on its side
            right = self.tensors.tensor(parts[second], k, rank).T
            left = self.tensors.tensor(parts[first], rank, n).T
        else:
            right = self.tensors.tensor(parts[first], rank, k)
            left = self.tensors.tensor(parts[second], n, rank)
        magnitude = self.tensors.vector(parts[_MAGNITUDE], n) if _MAGNITUDE in parts else None
        if magnitude is not None and embedding:
            raise UnsupportedModelError(f"{self.config.path}: 'use_dora' on {module!r}, an embedding, is not supported")

        def rows(begin: int, end: int) -> Float32:
            total = np.asarray(weight[begin:end]) + scale * (left[begin:end] @ right)
            if magnitude is not None:
                total *= (magnitude[begin:end] / np.linalg.norm(total, axis=1))[:, None]
            return np.asarray(total, np.float32)

        return lazy(weight.shape, rows)

    @property
    def task(self) -> str | None:
        """The task that the adapter was trained for, where it says so."""
        return _TASKS.get(str(self.config.values.get("task_type")))

    def check_targets(self, names: Names) -> None:
        """Raises CheckpointError when a part has no tensor in the model that it could change."""
        for module in self.parts:
            weight = f"{module}.weight"
            if not (weight in names.stored or weight in names or f"{names.base}.{weight}" in names):
                raise CheckpointError(
                    f"{self.config.path.parent / _FILE} adapts {module!r}, which the model beside it does not hold; "
                    "put the adapter beside the model that it was trained on"
                )

    def _scale(self, module: str) -> float:
        rank = self._by_pattern(module, "rank_pattern", "r")
        alpha = self._by_pattern(module, "alpha_pattern", "lora_alpha")
        return alpha / (math.sqrt(rank) if self.config.flag("use_rslora") else rank)

    def _by_pattern(self, module: str, patterns: str, default: str) -> float:
        """The number for ``module``: of the first pattern that its name ends with, else the adapter's own."""
        for pattern, value in (self.config.values.get(patterns) or {}).items():
            if re.fullmatch(rf"(.*\.)?({pattern})", module):
                return float(value)
        return self.config.number(default, 8)


def open_adapter(folder: Path) -> Adapter | None:
    """The adapter in ``folder``, or None if there is none.

    Raises:
        CheckpointError: its safetensors file is missing or damaged.
        UnsupportedModelError: it is no LoRA adapter, or an option that would change the result is not honoured.
    """
    path = folder / _CONFIG
    if not path.is_file():
        return None
    config = Config.read(path)
    kind = config.text("peft_type", "LORA")
    config.refuse("peft_type", kind != "LORA", "only LORA adapters are merged; merge it with peft: merge_and_unload()")
    start = config.values.get("init_lora_weights")
    changed = "such a start changes the model's own weights; merge it with peft: merge_and_unload()"
    config.refuse("init_lora_weights", start not in _PLAIN_STARTS, changed)
    for key, value in config.values.items():
        config.refuse(key, key not in _HARMLESS and bool(value), "not honoured; merge it with peft: merge_and_unload()")
    if not (folder / _FILE).is_file():
        raise no_safetensors(folder, "adapter_model")
    tensors = open_file(folder / _FILE)
    adapter = Adapter(config, tensors)
    for name in tensors.entries:
        _sort_in(adapter, name)
    return adapter


def _sort_in(adapter: Adapter, stored: str) -> None:
    name = without_wrappers(stored).removeprefix("base_model.model.").replace(".base_layer.", ".")
    module, _, part = name.removesuffix(".weight").rpartition(".")
    if part in _PARTS:
        adapter.parts.setdefault(module, {})[part] = stored
    elif "lora_" in name:
        raise UnsupportedModelError(
            f"{adapter.config.path.parent / _FILE}: tensor {stored!r} is no part of a plain LoRA adapter; "
            "merge it with peft: merge_and_unload()"
        )
    else:
        adapter.whole[name] = stored


def refuse_lone_adapter(folder: Path) -> None:
    """Raises CheckpointError for an adapter without a model, naming the model that it belongs to."""
    path = folder / _CONFIG
    if path.is_file() and not (folder / "config.json").is_file():
        base: Any = Config.read(path).values.get("base_model_name_or_path")
        raise CheckpointError(
            f"{folder} holds only an adapter of {base or 'a model that it does not name'}; download that model and put "
            f"{_CONFIG} and {_FILE} beside its config.json"
        )

"""Settings of a ``config.json`` that change what a model computes, whatever its family, and are not honoured."""

from __future__ import annotations

from ..errors import UnsupportedModelError
from .config import Config

SAME_COMPUTATION: frozenset[str] = frozenset({"nomic-ai/nomic-bert-2048", "Alibaba-NLP/new-impl"})
"""Repositories (``owner/name``) with code of their own that was read and computes what a family here computes."""


def refuse_foreign_computation(config: Config, repository: str | None) -> None:
    """Raises UnsupportedModelError, naming the setting.

    ``auto_map`` names code that ships with a checkpoint: such a model calls itself ``bert`` and may have other
    positions, activations or heads. Code of :data:`SAME_COMPUTATION` is the exception.
    """
    for key, code in _own_code(config).items():
        home = code.rsplit("--", 1)[0] if "--" in code else repository
        if home not in SAME_COMPUTATION:
            raise UnsupportedModelError(
                f"{config.path}: 'auto_map' names {code!r} for {key}: code that ships with "
                f"{home or 'the checkpoint'} and may compute something else than its model_type says; if the weights "
                f"are those of a plain {config.text('model_type', '')}, load them with transformers, save_pretrained, "
                "and pass the new folder"
            )
    quantized = config.values.get("quantization_config")
    config.refuse("quantization_config", quantized, "save the model in float32, float16 or bfloat16")
    pruned = config.values.get("pruned_heads")
    config.refuse("pruned_heads", pruned, "layers with different numbers of heads are not supported")
    adapters = config.values.get("adapters")
    used = adapters.get("adapters") if isinstance(adapters, dict) else adapters
    config.refuse("adapters", used, "adapters of the adapters library are not applied; merge them first")


def _own_code(config: Config) -> dict[str, str]:
    """The entries of ``auto_map`` that concern the model; others concern its tokenizer."""
    entries = config.values.get("auto_map")
    if not isinstance(entries, dict):
        return {}
    concerned = {key: value for key, value in entries.items() if key.startswith(("AutoModel", "AutoConfig")) and value}
    return {key: str(value[0] if isinstance(value, list) else value) for key, value in concerned.items()}

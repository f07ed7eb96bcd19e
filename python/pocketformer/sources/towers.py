"""One half of a model of images and texts, whose config holds a config for each."""

from __future__ import annotations

from typing import Any

from ..errors import CheckpointError, UnsupportedModelError
from .config import Config

TOWERS = ("vision", "text")
_MODELS = ("clip", "siglip")


def of_tower(config: Config, tower: str | None) -> Config:
    """The config of ``tower`` in one of both; that of any other model as it is.

    Raises:
        ValueError: ``tower`` is another word.
        UnsupportedModelError: it is missing for a model of both, or given for another.
    """
    if tower is not None and tower not in TOWERS:
        raise ValueError(f"tower is {tower!r}; it must be one of {', '.join(TOWERS)}")
    model = config.values.get("model_type")
    if model not in _MODELS:
        if tower is not None and not str(model).endswith(f"_{tower}_model"):
            raise UnsupportedModelError(f"{config.path}: model_type {model!r} has no {tower} tower; leave tower out")
        return config
    if tower is None:
        raise UnsupportedModelError(
            f"{config.path}: model_type {model!r} has two towers, and a pocket file holds one: pass tower='vision' or "
            "tower='text' (--tower)"
        )
    values: dict[str, Any] = {}
    for key in (f"{tower}_config", f"{tower}_config_dict"):  # older files repeat it under the second name, which counts
        part = config.values.get(key) or {}
        if not isinstance(part, dict):
            raise CheckpointError(f"{config.path}: {key!r} is {part!r}; it must be an object")
        values |= part
    inherited = {
        key: config.values[key] for key in ("architectures", "auto_map", "_name_or_path") if key in config.values
    }
    return Config({**values, **inherited, "model_type": f"{model}_{tower}_model"}, config.path)

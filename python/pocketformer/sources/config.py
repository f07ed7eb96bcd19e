"""JSON files of a checkpoint, read with typed, explained errors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, UnsupportedModelError

_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}
_COUNTS_OF_LAYERS = ("num_hidden_layers", "num_layers", "n_layers", "n_layer")
MAX_LAYERS = 65_536  # as many tensors as a checkpoint may have: nothing is built for layers that cannot be there


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``.

    Raises:
        CheckpointError: the file is missing, is not JSON, or holds something else than an object.
    """
    values = _parse(path)
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds a {type(values).__name__}, not a JSON object; download it again")
    return values


def read_json_list(path: Path) -> list[dict[str, Any]]:
    """The JSON list of objects in ``path``; errors as in :func:`read_json`."""
    values = _parse(path)
    if not isinstance(values, list) or not all(isinstance(v, dict) for v in values):
        raise CheckpointError(f"{path} does not hold a JSON list of objects; download it again")
    return values


def _parse(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; pass a folder written by save_pretrained") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}); download it again") from error


@dataclass(frozen=True)
class Config:
    """Typed access to a ``config.json``."""

    values: dict[str, Any]
    path: Path

    @classmethod
    def read(cls, path: Path) -> Config:
        return cls(read_json(path), path)

    def renamed(self, old: Mapping[str, str]) -> Config:
        """With settings under the keys of ``old`` too, which others call by its values; a key of its own wins."""
        return replace(self, values={**{key: self.values.get(name) for key, name in old.items()}, **self.values})

    def integer(self, key: str, default: int | None = None, *, minimum: int = 1) -> int:
        value = self._get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
            raise CheckpointError(f"{self.path}: {key!r} is {value!r}; it must be an integer of at least {minimum}")
        if key in _COUNTS_OF_LAYERS and value > MAX_LAYERS:
            raise CheckpointError(f"{self.path}: {key!r} is {value}; the limit is {MAX_LAYERS}, the file is damaged")
        return value

    def integers(self, key: str, default: tuple[int, ...]) -> tuple[int, ...]:
        """A list as long as ``default``, of integers of at least 1."""
        value = self._get(key, default)
        if (
            not isinstance(value, (list, tuple))
            or len(value) != len(default)
            or not all(type(n) is int and n >= 1 for n in value)
        ):
            raise CheckpointError(
                f"{self.path}: {key!r} is {value!r}; it must be a list of {len(default)} integers of at least 1"
            )
        return tuple(value)

    def number(self, key: str, default: float) -> float:
        value = self._get(key, default)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < float("inf"):
            raise CheckpointError(f"{self.path}: {key!r} is {value!r}; it must be a number of at least 0")
        return float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        return bool(self._get(key, default))

    def text(self, key: str, default: str) -> str:
        value = self._get(key, default)
        if not isinstance(value, str):
            raise CheckpointError(f"{self.path}: {key!r} is {value!r}; it must be a string")
        return value

    def activation(self, key: str, default: str = "gelu") -> str:
        """The operator field for a transformers activation name."""
        name = self.text(key, default)
        if name not in _ACTIVATIONS:
            raise UnsupportedModelError(
                f"{self.path}: {key!r} is {name!r}; supported activations: {', '.join(_ACTIVATIONS)}"
            )
        return _ACTIVATIONS[name]

    def refuse(self, key: str, value: object, why: str) -> None:
        """Raises when an option has a value that the graph would not honour."""
        if value:
            raise UnsupportedModelError(f"{self.path}: {key!r} is {self.values.get(key)!r}; {why}")

    def _get(self, key: str, default: object) -> object:
        value = self.values.get(key)
        if value is None:
            value = default
        if value is None:
            raise CheckpointError(f"{self.path} has no {key!r}; pass the config.json that belongs to the weights")
        return value

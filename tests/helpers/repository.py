"""What is said of a public repository, from which a tiny one is made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class Pooling:
    """The sentence-transformers side of a repository: pooling ``mode``, the modules after it, the limit of texts."""

    mode: str
    max_seq_length: int
    tail: tuple[str, ...] = ()
    do_lower_case: bool = False


@dataclass(frozen=True)
class Repository:
    """``config`` has the settings of the repository's config.json but for sizes; ``files`` are the others it holds.

    ``task`` is what it imports as, or None with the ``reason`` that a refusal names. ``legacy`` adds what old releases
    saved: the buffer of position ids, and norms called gamma and beta. ``saved_as`` is the class whose tensors the file
    holds, where that is another than ``architecture``. ``renamed`` gives the keys of config.json that are not those of
    transformers' class.
    """

    name: str
    architecture: str
    task: str | None
    config: dict[str, Any]
    files: tuple[str, ...]
    pooling: Pooling | None = None
    dtype: torch.dtype = torch.float32
    legacy: bool = False
    reason: str = ""
    saved_as: str = ""
    renamed: dict[str, str] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        """Its cells in the table of docs/models.md."""
        if not self.task:
            return f"`{self.architecture}` | refused: `{self.reason}`"
        steps = f": {', '.join((self.pooling.mode, *self.pooling.tail))}" if self.pooling else ""
        return f"`{self.architecture}` | {self.task}{steps}"

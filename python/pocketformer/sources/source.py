"""What a family needs to know about a checkpoint, whatever format it comes in.

Families speak the names that Hugging Face checkpoints use (``bert.encoder.layer.0.output.dense.weight``); a source of
another format translates them.
"""

from __future__ import annotations

from typing import Protocol

from ..lazy import Float32
from .config import Config

__all__ = ["Config", "Source", "Tensors"]


class Tensors(Protocol):
    """Tensors by name, as float32. A name that is missing or has another shape raises CheckpointError."""

    def __contains__(self, name: str) -> bool: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def weight(self, name: str, *shape: int) -> Float32:
        """A matrix of ``shape``, read when it is used (:class:`~pocketformer.lazy.LazyArray`)."""
        ...

    def vector(self, name: str, length: int) -> Float32:
        """A vector of ``length``, in memory."""
        ...


class Source(Tensors, Protocol):
    """A checkpoint: its tensors, and what is known about it.

    ``name`` is what to call the model, ``repository`` (``owner/name``) where it came from and ``license`` its licence,
    the last two None where nothing says. Its tokenizer is read apart, since that takes the sizes of the graph
    (:func:`~pocketformer.sources.tokenizer.read_tokenizer`).
    """

    @property
    def config(self) -> Config: ...
    @property
    def name(self) -> str: ...
    @property
    def repository(self) -> str | None: ...
    @property
    def license(self) -> str | None: ...

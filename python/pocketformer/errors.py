"""Exceptions that callers may want to tell apart."""

from __future__ import annotations


class CheckpointError(ValueError):
    """A checkpoint folder that is incomplete, inconsistent or not safe to read."""


class UnsupportedModelError(ValueError):
    """A model whose architecture, head or option has no counterpart here."""


class PocketFileError(ValueError):
    """A pocket file, or a graph about to become one, that breaks the format (docs/format.md)."""


class TaskError(TypeError):
    """A method of ``Model`` that does not fit what the model was trained for."""

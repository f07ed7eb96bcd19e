"""Exceptions of the public interface."""

from __future__ import annotations


class PocketFileError(ValueError):
    """A pocket file, or a graph about to become one, that breaks the format (docs/format.md)."""

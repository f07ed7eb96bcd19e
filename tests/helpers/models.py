"""Real models for tests, from the cache of ``pocketformer.fetch`` (downloaded on first use)."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from pocketformer.fetch import fetch


@cache
def model_folder(name: str) -> Path:
    """The checkpoint folder of ``name`` (``minilm``). Raises RuntimeError when it cannot be downloaded."""
    return fetch(name)

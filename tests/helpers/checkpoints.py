"""What tests of checkpoints share."""

from __future__ import annotations

from pathlib import Path

import pytest

from pocketformer.sources.huggingface import load_checkpoint


def refused(folder: Path, error: type[Exception], *words: str) -> None:
    """Loading ``folder`` raises ``error``, whose message holds each of ``words``."""
    with pytest.raises(error) as info:
        load_checkpoint(folder)
    for word in words:
        assert word in str(info.value)

"""What tests of plans share."""

from __future__ import annotations

import pytest

from helpers.checkpoints import tiny_checkpoint
from pocketformer.sources.huggingface import Checkpoint


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> Checkpoint:
    """A checkpoint that every folder holds."""
    found = tiny_checkpoint()
    monkeypatch.setattr("pocketformer.sources.huggingface.load_checkpoint", lambda folder, tower=None: found)
    return found

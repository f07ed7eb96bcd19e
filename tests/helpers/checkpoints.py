"""What tests of checkpoints share."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.graphs import MODEL, TEXT, TOKENIZER_JSON, tiny_graph
from pocketformer.sources.huggingface import Checkpoint, load_checkpoint


def tiny_checkpoint() -> Checkpoint:
    return Checkpoint(tiny_graph(ffn=256, layers=2), {**MODEL}, TEXT, TOKENIZER_JSON)


def refused(folder: Path, error: type[Exception], *words: str) -> None:
    """Loading ``folder`` raises ``error``, whose message holds each of ``words``."""
    with pytest.raises(error) as info:
        load_checkpoint(folder)
    for word in words:
        assert word in str(info.value)

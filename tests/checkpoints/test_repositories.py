"""Common public repositories at tiny size: imported and equal to transformers, or refused by name."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer

from helpers.engines import native
from helpers.repositories import REPOSITORIES, table
from helpers.repository import Repository
from helpers.tiny_repositories import SENTENCES, expected_output, rebuild
from helpers.torch_models import deviation
from pocketformer.errors import UnsupportedModelError
from pocketformer.sources.huggingface import load_checkpoint

IMPORTED = [repository for repository in REPOSITORIES if repository.task]
REFUSED = [repository for repository in REPOSITORIES if not repository.task]
PAGE = Path(__file__).parents[2] / "docs" / "models.md"


def name(repository: Repository) -> str:
    return repository.name


@pytest.mark.parametrize("repository", IMPORTED, ids=name)
def test_imported_and_equal_to_transformers(repository: Repository, tmp_path: Path) -> None:
    model = rebuild(repository, tmp_path)
    checkpoint = load_checkpoint(tmp_path)
    assert (checkpoint.model["task"], checkpoint.model["license"]) == (repository.task, "apache-2.0")
    if repository.task in ("classify", "tag"):
        assert checkpoint.model["labels"] == list(repository.config["id2label"].values())
    assert checkpoint.tokenizer_json is not None
    ours = Tokenizer.from_str(checkpoint.tokenizer_json.decode())
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    sequences = [theirs(text).input_ids for text in SENTENCES]
    assert [ours.encode(text).ids for text in SENTENCES] == sequences
    ids = np.concatenate(sequences)
    rows = np.arange(len(ids)) if repository.task == "fill_mask" else None
    types = np.zeros_like(ids) if checkpoint.graph.type_vocab_size else None
    actual = native(checkpoint.graph, ids, [len(sequence) for sequence in sequences], types=types, rows=rows)
    expected = torch.cat([expected_output(repository, model, tmp_path, sequence) for sequence in sequences])
    assert deviation(actual, expected.numpy()) <= 1


@pytest.mark.parametrize("repository", REFUSED, ids=name)
def test_refused_by_name(repository: Repository, tmp_path: Path) -> None:
    rebuild(repository, tmp_path)
    with pytest.raises(UnsupportedModelError, match=re.escape(repository.reason)):
        load_checkpoint(tmp_path)


def test_the_page_lists_them() -> None:
    """``PYTHONPATH=tests python -m helpers.repositories`` prints the table."""
    assert len(IMPORTED) >= 23
    assert table() in PAGE.read_text(encoding="utf-8")

"""A tokenizer that fails on a text fails with an error that says so, whatever the library underneath raises."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from helpers.graphs import MODEL, TEXT, tiny_graph
from helpers.hostile_files import lie
from pocketformer import load
from pocketformer.errors import PocketFileError
from pocketformer.packing import pack_graph
from pocketformer.pocketfile import write_pocket
from pocketformer.tasks.text import _explained

UNIGRAM: dict[str, Any] = {"type": "Unigram", "unk_id": 0, "vocab": [["[UNK]", 0.0], ["a", -1.0], ["cat", -2.0]]}


def encode(path: Path, model: dict[str, Any], text: str = "a cat sat") -> None:
    tokenizer = json.dumps({"version": "1.0", "added_tokens": [], "model": model}).encode()
    write_pocket(path, pack_graph(tiny_graph()), MODEL, TEXT, tokenizer)
    load(path).encode(text)


def test_a_tokenizer_without_unknown_token(tmp_path: Path) -> None:
    encode(tmp_path / "good.pocket", UNIGRAM)
    with pytest.raises(PocketFileError, match=r"its tokenizer fails.*unk_id"):
        encode(tmp_path / "bad.pocket", UNIGRAM | {"unk_id": None})


def test_mutated_tokenizers(tmp_path: Path) -> None:
    rng, refused = random.Random(0), 0
    for _ in range(150):
        model = json.loads(json.dumps(UNIGRAM))
        lie(model, rng)
        try:
            encode(tmp_path / "mutated.pocket", model)
        except ValueError:  # PocketFileError, and texts without tokens
            refused += 1
    assert refused > 20


def test_a_panic_is_explained() -> None:
    class PanicError(BaseException):
        """Rust's panics reach Python as such."""

    with pytest.raises(PocketFileError, match="broken"), _explained(PocketFileError, "broken"):
        raise PanicError
    with pytest.raises(KeyboardInterrupt), _explained(PocketFileError, "broken"):
        raise KeyboardInterrupt

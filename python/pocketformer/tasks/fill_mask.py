"""What may stand in a gap: the likeliest tokens for each mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..engine import Engine
from .classify import softmax
from .text import TextReader


class Candidate(NamedTuple):
    """A token of the vocabulary, its probability in the gap and its id."""

    text: str
    score: float
    id: int


def fill_mask(engine: Engine, reader: TextReader, texts: Sequence[str], top_k: int) -> list[list[list[Candidate]]]:
    """For each text, for each mask in it, the ``top_k`` likeliest tokens. Only the masked rows meet the vocabulary."""
    mask_id = engine.file.text.get("mask_token_id")
    tokenizer = reader.tokenizer
    mask = None if mask_id is None else tokenizer.id_to_token(mask_id)
    if mask is None:
        raise ValueError(f"{engine.file.path} names no mask token; call the model on token ids with rows")
    sequences = reader.sequences(texts)
    rows = [np.flatnonzero(ids == mask_id) for ids in sequences]
    for text, found in zip(texts, rows, strict=True):
        if not len(found):
            raise ValueError(f"the text {text[:60]!r} has no {mask} that the model can see; put one where a word lacks")
    results: list[list[list[Candidate]]] = [[] for _ in texts]
    for batch, logits in engine.run_batches(sequences, rows=rows):
        probabilities = softmax(logits)
        k = min(top_k, probabilities.shape[1])
        best = np.argsort(-probabilities, axis=1, kind="stable")[:, :k]
        gaps = [
            [Candidate(tokenizer.decode([token]).strip(), float(row[token]), token) for token in order.tolist()]
            for order, row in zip(best, probabilities, strict=True)
        ]
        for i in batch:
            results[i], gaps = gaps[: len(rows[i])], gaps[len(rows[i]) :]
    return results

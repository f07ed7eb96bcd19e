"""Entities in texts: labels of tokens, merged to words and spans."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..engine import Engine, Outputs
from .classify import softmax
from .text import TextReader

if TYPE_CHECKING:
    from tokenizers import Encoding

OUTSIDE = "O"


class Entity(NamedTuple):
    """A span ``text[start:end]`` of one label; ``score`` is the mean probability of its words."""

    label: str
    score: float
    text: str
    start: int
    end: int


class _Word(NamedTuple):
    begins: bool  # a B- label: a new entity even beside one of the same kind
    label: str
    score: float
    start: int
    end: int


def tag(engine: Engine, reader: TextReader, texts: Sequence[str]) -> list[list[Entity]]:
    """The entities of each text in order; tokens labelled O belong to none."""
    encodings = reader.encodings(texts)
    sequences = [np.array(encoding.ids, np.int32) for encoding in encodings]
    names = engine.file.model["labels"] or [f"LABEL_{i}" for i in range(engine.width)]
    results: list[list[Entity]] = [[] for _ in texts]
    for batch, logits in engine.run_batches(sequences):
        ends = np.cumsum([len(sequences[i]) for i in batch])
        for i, rows in zip(batch, np.split(softmax(logits), ends[:-1]), strict=True):
            results[i] = _merge(_words(encodings[i], rows, names, texts[i]), texts[i])
    return results


def _words(encoding: Encoding, probabilities: Outputs, names: Sequence[str], text: str) -> list[_Word]:
    """Each word with the label of its first piece: that is how taggers are trained."""
    words: list[_Word] = []
    last = None
    for word, (start, end), row in zip(encoding.word_ids, encoding.offsets, probabilities, strict=True):
        if word is None:
            continue
        if word == last:
            words[-1] = words[-1]._replace(end=end)
            continue
        last = word
        while start < end and text[start].isspace():  # some tokenizers count the space before a word as its part
            start += 1
        best = int(row.argmax())
        prefix, _, label = names[best].partition("-")
        if prefix not in ("B", "I") or not label:
            prefix, label = "I", names[best]
        words.append(_Word(prefix == "B", label, float(row[best]), start, end))
    return words


def _merge(words: Sequence[_Word], text: str) -> list[Entity]:
    groups: list[list[_Word]] = []
    for word in words:
        if groups and not word.begins and groups[-1][-1].label == word.label:
            groups[-1].append(word)
        else:
            groups.append([word])
    return [
        Entity(
            group[0].label,
            sum(word.score for word in group) / len(group),
            text[group[0].start : group[-1].end],
            group[0].start,
            group[-1].end,
        )
        for group in groups
        if group[0].label != OUTSIDE
    ]

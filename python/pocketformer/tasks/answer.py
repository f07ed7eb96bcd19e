"""Answers to questions: the best spans of a context."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..engine import Engine, Outputs
from .classify import softmax
from .text import TextReader

if TYPE_CHECKING:
    from tokenizers import Encoding


class Answer(NamedTuple):
    """The span ``context[start:end]``; ``score`` is the probability of its start times that of its end."""

    text: str
    score: float
    start: int
    end: int


def answer(
    engine: Engine,
    reader: TextReader,
    questions: Sequence[str],
    contexts: Sequence[str],
    top_k: int,
    max_answer_tokens: int,
) -> list[list[Answer]]:
    """The ``top_k`` best spans for each question; windows of a long context compete by their scores."""
    windows: list[Encoding] = []
    owners: list[int] = []
    for owner, (question, context) in enumerate(zip(questions, contexts, strict=True)):
        found = reader.windows(question, context)
        windows += found
        owners += [owner] * len(found)
    sequences = [np.array(window.ids, np.int32) for window in windows]
    # The best span of each stretch of text: overlapping windows see some twice.
    best: list[dict[tuple[int, int], float]] = [{} for _ in questions]
    for batch, logits in engine.run_batches(sequences, reader.types(windows)):
        ends = np.cumsum([len(sequences[i]) for i in batch])
        for i, rows in zip(batch, np.split(logits, ends[:-1]), strict=True):
            spans = best[owners[i]]
            for span, score in _spans(windows[i], rows, top_k, max_answer_tokens):
                spans[span] = max(score, spans.get(span, 0.0))
    results = []
    for spans, context in zip(best, contexts, strict=True):
        ranked = sorted(spans.items(), key=lambda item: (-item[1], item[0]))[:top_k]
        results.append([Answer(context[start:end], score, start, end) for (start, end), score in ranked])
    return results


def _spans(
    window: Encoding, logits: Outputs, top_k: int, max_answer_tokens: int
) -> list[tuple[tuple[int, int], float]]:
    """The ``top_k`` best token spans of one window, widened to whole words."""
    tokens = [i for i, sequence in enumerate(window.sequence_ids) if sequence == 1]
    if not tokens:
        return []
    starts, ends = softmax(logits[tokens].T)
    scores = np.triu(np.outer(starts, ends))
    scores = np.tril(scores, max_answer_tokens - 1)
    flat = scores.ravel()
    order = np.argsort(-flat, kind="stable")[:top_k]
    words = window.word_ids
    result = []
    for first, last in zip(*np.unravel_index(order, scores.shape), strict=True):
        if scores[first, last] > 0:
            begin, end = _whole_words(words, tokens[first], tokens[last])
            result.append(((window.offsets[begin][0], window.offsets[end][1]), float(scores[first, last])))
    return result


def _whole_words(words: Sequence[int | None], first: int, last: int) -> tuple[int, int]:
    while first > 0 and words[first] is not None and words[first - 1] == words[first]:
        first -= 1
    while last + 1 < len(words) and words[last] is not None and words[last + 1] == words[last]:
        last += 1
    return first, last

"""Answers to questions: the best spans of a context, weighed against there being none."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, overload

import numpy as np

from ..batches import Progress, token_outputs
from ..engine import Ids, Outputs
from ..graph import GLOBALS
from ..model import Model
from .classify import softmax
from .inputs import as_list
from .spans import continues_word, continuing_prefix, is_blankless
from .windows import Passage

Span = tuple[int, int]


class Answer(NamedTuple):
    """The span ``context[start:end]``; ``score`` is the probability of its start times that of its end.

    The empty answer is the span 0 to 0.
    """

    text: str
    score: float
    start: int
    end: int


class Reader(Model):
    """Questions and contexts to answers."""

    _method = "answer"

    @overload
    def answer(  # type: ignore[overload-overlap]  # str is iterable
        self,
        question: str,
        context: str,
        *,
        top_k: int = 1,
        max_answer_tokens: int = 15,
        allow_empty: bool = False,
        max_length: int | None = None,
        progress: Progress | None = None,
    ) -> list[Answer]: ...
    @overload
    def answer(
        self,
        question: Iterable[str],
        context: Iterable[str],
        *,
        top_k: int = 1,
        max_answer_tokens: int = 15,
        allow_empty: bool = False,
        max_length: int | None = None,
        progress: Progress | None = None,
    ) -> list[list[Answer]]: ...
    def answer(
        self,
        question: str | Iterable[str],
        context: str | Iterable[str],
        *,
        top_k: int = 1,
        max_answer_tokens: int = 15,
        allow_empty: bool = False,
        max_length: int | None = None,
        progress: Progress | None = None,
    ) -> list[Answer] | list[list[Answer]]:
        """The ``top_k`` best spans of the context, best first; lists of questions and contexts go pair by pair.

        A context of any length works: up to ``max_length`` tokens, question included, it is read in one pass, beyond in
        overlapping windows, which a UserWarning says once. None takes :attr:`max_length`; less takes less memory.
        ``progress(done, total)`` is called after each batch of passes. Spans are widened to whole words, except in
        scripts without blanks. Probabilities are over the context and the special tokens around it; models
        trained on questions without answer (SQuAD 2) point at the first of those: the surer they are, the lower all
        spans score.
        With ``allow_empty`` the empty answer takes part, with the lowest probability of no answer that any window
        gives, so that all must agree. An empty context has no other answer.

        Raises ValueError for a question that leaves no room, or a ``max_length`` beyond what the model reads.
        """
        check_count("top_k", top_k)
        check_count("max_answer_tokens", max_answer_tokens)
        (questions, single), (contexts, _) = as_list(question, "question"), as_list(context, "context")
        if len(questions) != len(contexts):
            raise ValueError(f"{len(questions)} questions and {len(contexts)} contexts; give one context a question")
        length = self._reader.check_length(max_length)
        spans, nulls = self._spans(questions, contexts, top_k, max_answer_tokens, length, progress)
        results = []
        for text, found, null in zip(contexts, spans, nulls, strict=True):
            if allow_empty:
                found[0, 0] = null
            ranked = sorted(found.items(), key=lambda item: (-item[1], item[0]))[:top_k]
            results.append([Answer(text[start:end], score, start, end) for (start, end), score in ranked])
        return results[0] if single else results

    def _spans(
        self,
        questions: Sequence[str],
        contexts: Sequence[str],
        top_k: int,
        longest: int,
        max_length: int,
        progress: Progress | None,
    ) -> tuple[list[dict[Span, float]], list[float]]:
        """For each question the spans with their scores, and the probability of no answer."""
        windows: list[Passage] = []
        owners: list[int] = []
        for owner, pair in enumerate(zip(questions, contexts, strict=True)):
            found = self._reader.windows(*pair, max_length)
            windows += found
            owners += [owner] * len(found)
        sequences = [window.ids for window in windows]
        # The best span of each stretch of text: overlapping windows see some twice.
        best: list[dict[Span, float]] = [{} for _ in questions]
        nulls = [1.0] * len(questions)
        types, counts = self._reader.types(windows), self._globals(windows)
        for i, logits in token_outputs(self._engine, sequences, types, counts=counts, progress=progress):
            owner = owners[i]
            null, spans = self._window(windows[i], logits, contexts[owner], top_k, longest)
            nulls[owner] = min(nulls[owner], null)
            for span, score in spans.items():
                best[owner][span] = max(score, best[owner].get(span, 0.0))
        return best, nulls

    def _globals(self, windows: Sequence[Passage]) -> dict[str, Ids]:
        """Of a model that asks for it: the tokens before the separator behind the question."""
        if self._engine.file.graph.find_input(GLOBALS) is None:
            return {}
        return {GLOBALS: np.array([window.asked for window in windows], np.int32)}

    def _window(
        self, window: Passage, logits: Outputs, context: str, top_k: int, longest: int
    ) -> tuple[float, dict[Span, float]]:
        """The probability of no answer, and the ``top_k`` best spans of one window."""
        count = window.end - window.begin
        if count == 0:
            return float(window.first), {}
        # Training leaves all tokens in the softmax. Those of the question are out here, as in the pipeline of
        # transformers 4; the special ones at both ends are where a model points when there is no answer.
        edges = [i for i, special in ((0, window.first), (len(window.ids) - 1, window.last)) if special]
        starts, ends = softmax(logits[[*range(window.begin, window.end), *edges]].T)
        nothing = float(starts[count] * ends[count]) if window.first else 0.0
        # Row by first token, column by how many follow: of a long document a square would be gigabytes.
        longest = min(longest, count)
        padded = np.pad(ends[:count], (0, longest - 1))
        scores = starts[:count, None] * np.lib.stride_tricks.sliding_window_view(padded, longest)
        spans: dict[Span, float] = {}
        for place in np.argsort(-scores, axis=None, kind="stable").tolist():
            first, more = divmod(place, longest)
            if len(spans) == top_k or scores[first, more] <= 0:
                break
            start, end = self._whole_words(window, context, first, first + more)
            if start < end:  # not a blank alone
                spans.setdefault((start, end), float(scores[first, more]))
        return nothing, spans

    def _whole_words(self, window: Passage, context: str, first: int, last: int) -> Span:
        """The characters of the context's tokens ``first`` to ``last`` and of the rest of the words at both ends."""
        offsets, words = window.offsets, window.words
        knows_words = bool(continuing_prefix(self._reader.any_tokenizer()))

        def joined(left: int) -> bool:
            if words[left] < 0 or words[left] != words[left + 1]:
                return False
            start = offsets[left + 1][0]
            if start < offsets[left][1]:  # pieces of one character, or a mark of the blank before it
                return True
            return not is_blankless(context[start]) if knows_words else continues_word(context, start)

        while first > 0 and joined(first - 1):
            first -= 1
        while last + 1 < len(words) and joined(last):
            last += 1
        start, end = int(offsets[first][0]), int(offsets[last][1])
        while start < end and context[start].isspace():  # some tokenizers count the blank before a word as its part
            start += 1
        return start, end


def check_count(name: str, value: int) -> None:
    """Raises ValueError for a count below 1."""
    if value < 1:
        raise ValueError(f"{name} is {value}; it must be at least 1")

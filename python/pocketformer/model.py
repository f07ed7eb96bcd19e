"""The public face of a pocket file: ``load`` it, give it texts or token ids."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import ArrayLike

from .engine import BATCH_TOKENS, Engine, Ids, Outputs, Progress, describe
from .errors import TaskError
from .ids import ragged
from .tasks.text import TextReader, as_list

if TYPE_CHECKING:
    from .tasks.answer import Answer
    from .tasks.classify import Label
    from .tasks.fill_mask import Candidate
    from .tasks.tag import Entity

_METHODS = {
    "embed": "encode",
    "classify": "classify",
    "tag": "tag",
    "answer": "answer",
    "fill_mask": "fill_mask",
    "features": "__call__ on token ids",
}


def load(path: str | os.PathLike[str], threads: int | None = None) -> Model:
    """Opens the pocket file ``path``: maps it, checks it, copies nothing.

    ``threads`` is the most that one call uses; None takes the CPUs that this process may use (affinity and cgroup
    quota). The result never depends on it.

    Example:
        >>> model = pocketformer.load("minilm.pocket")  # doctest: +SKIP
        >>> model.encode("A cat sits on the mat.").shape  # doctest: +SKIP
        (384,)

    Raises:
        OSError: the file cannot be opened.
        PocketFileError: the file breaks the format.
        ValueError: ``threads`` is not a positive integer, or POCKETFORMER_ISA names what this CPU lacks.
    """
    return Model(path, threads)


class Model:
    """An open pocket file. Any number of threads may call it at once; it survives fork and pickles as its path.

    The method that fits the file's task works on texts; the others raise TaskError, a TypeError. Calling the model
    works on token ids whatever the task.
    """

    def __init__(self, path: str | os.PathLike[str], threads: int | None = None) -> None:
        self._path = os.path.abspath(path)
        self._threads = threads
        self._engine = Engine(self._path, threads)
        self._reader = TextReader(self._engine.file, self._engine.threads)

    def __reduce__(self) -> tuple[Any, ...]:
        return load, (self._path, self._threads)

    def __repr__(self) -> str:
        model = self._engine.file.model
        return (
            f"<pocketformer.Model {model['name']!r}: {model['task']}, {model['weights']}, {self._engine.program.isa}>"
        )

    @property
    def task(self) -> str:
        """``embed``, ``classify``, ``tag``, ``answer``, ``fill_mask`` or ``features``."""
        return str(self._engine.file.model["task"])

    @property
    def labels(self) -> list[str]:
        """The names of the outputs of ``classify`` and ``tag``; empty for other tasks."""
        return list(self._engine.file.model["labels"] or [])

    @property
    def width(self) -> int:
        """Columns of the output: the embedding's dimensions, labels, 2 (start, end) or the vocabulary."""
        return self._engine.width

    @property
    def max_length(self) -> int:
        """Tokens, special ones included, at which texts are cut."""
        return self._reader.max_length

    @property
    def threads(self) -> int:
        """The most threads that one call uses."""
        return self._engine.threads

    def info(self) -> dict[str, Any]:
        """What the file holds and how it runs here, ready for JSON."""
        return describe(self._engine)

    def plan(self, lengths: Sequence[int], *, rows: int = 0) -> int:
        """Bytes of working memory for one run over sequences of ``lengths`` tokens; the weights are not counted.

        ``rows`` is the number of chosen token rows of a model that takes them. Raises ValueError for a length that the
        model does not allow.
        """
        return self._engine.program.arena_bytes([int(n) for n in lengths], self._engine.threads, rows)

    def __call__(
        self,
        input_ids: ArrayLike | Sequence[ArrayLike],
        attention_mask: ArrayLike | None = None,
        token_type_ids: ArrayLike | Sequence[ArrayLike] | None = None,
        *,
        rows: ArrayLike | None = None,
    ) -> Outputs:
        """Runs token ids as they are, special tokens included, in one pass.

        ``input_ids`` is a list of sequences of any lengths or an integer array [sequences, tokens]; with
        ``attention_mask`` [sequences, tokens] padding at either end is left out before it costs anything.
        ``token_type_ids`` has the form of ``input_ids`` and defaults to zeros. ``rows`` are token indices, counted over
        all sequences end to end without padding, for a model that works on chosen rows (``fill_mask``).

        Returns float32 [sequences | tokens | rows, width]; ``info()["output"]`` says which.

        Raises TypeError for anything but integers, ValueError for ids, lengths or rows that do not fit the model.
        """
        sequences, types = ragged(input_ids, attention_mask, token_type_ids)
        chosen = None if rows is None else np.ascontiguousarray(rows, np.int64)
        return self._engine.run(sequences, types, chosen)

    def encode(
        self,
        texts: str | Iterable[str],
        *,
        batch_tokens: int = BATCH_TOKENS,
        progress: Progress | None = None,
    ) -> Outputs:
        """Embeddings: float32 [texts, width] in the order of ``texts``, or [width] for a single string.

        Texts of like length run together, at most ``batch_tokens`` tokens at once: more takes more memory, and the
        result is the same to the last bit. ``progress(done, total)`` is called after each batch.

        Raises TaskError when the file does not embed.
        """
        self._require("embed")
        if batch_tokens < 1:
            raise ValueError(f"batch_tokens is {batch_tokens}; it must be at least 1")
        listed, single = as_list(texts)
        sequences: list[Ids] = self._reader.sequences(listed)
        result = np.empty((len(listed), self.width), np.float32)
        for batch, rows in self._engine.run_batches(sequences, batch_tokens=batch_tokens, progress=progress):
            result[batch] = rows
        return result[0] if single else result

    @overload
    def classify(self, texts: str) -> list[Label]: ...  # type: ignore[overload-overlap]  # str is iterable
    @overload
    def classify(self, texts: Iterable[str]) -> list[list[Label]]: ...
    def classify(self, texts: str | Iterable[str]) -> list[Label] | list[list[Label]]:
        """All labels with their probabilities, best first, for each text (a plain list for a single string).

        Probabilities are a softmax over the labels, independent for multi-label models, and plain values for
        regressions.
        """
        self._require("classify")
        from .tasks.classify import classify

        listed, single = as_list(texts)
        results = classify(self._engine, self._reader, listed)
        return results[0] if single else results

    @overload
    def tag(self, texts: str) -> list[Entity]: ...  # type: ignore[overload-overlap]  # str is iterable
    @overload
    def tag(self, texts: Iterable[str]) -> list[list[Entity]]: ...
    def tag(self, texts: str | Iterable[str]) -> list[Entity] | list[list[Entity]]:
        """The entities in each text, with offsets in characters (a plain list for a single string)."""
        self._require("tag")
        from .tasks.tag import tag

        listed, single = as_list(texts)
        results = tag(self._engine, self._reader, listed)
        return results[0] if single else results

    @overload
    def answer(  # type: ignore[overload-overlap]  # str is iterable
        self, question: str, context: str, *, top_k: int = 1, max_answer_tokens: int = 15
    ) -> list[Answer]: ...
    @overload
    def answer(
        self, question: Iterable[str], context: Iterable[str], *, top_k: int = 1, max_answer_tokens: int = 15
    ) -> list[list[Answer]]: ...
    def answer(
        self,
        question: str | Iterable[str],
        context: str | Iterable[str],
        *,
        top_k: int = 1,
        max_answer_tokens: int = 15,
    ) -> list[Answer] | list[list[Answer]]:
        """The ``top_k`` best spans of the context, best first; lists of questions and contexts go pair by pair.

        A context of any length works: it is read in overlapping windows. An empty context has no answers.
        """
        self._require("answer")
        _check_count("top_k", top_k)
        _check_count("max_answer_tokens", max_answer_tokens)
        from .tasks.answer import answer

        (questions, single), (contexts, _) = as_list(question), as_list(context)
        if len(questions) != len(contexts):
            raise ValueError(f"{len(questions)} questions and {len(contexts)} contexts; give one context a question")
        results = answer(self._engine, self._reader, questions, contexts, top_k, max_answer_tokens)
        return results[0] if single else results

    @overload
    def fill_mask(self, texts: str, *, top_k: int = 5) -> list[list[Candidate]]: ...  # type: ignore[overload-overlap]  # str is iterable
    @overload
    def fill_mask(self, texts: Iterable[str], *, top_k: int = 5) -> list[list[list[Candidate]]]: ...
    def fill_mask(
        self, texts: str | Iterable[str], *, top_k: int = 5
    ) -> list[list[Candidate]] | list[list[list[Candidate]]]:
        """The ``top_k`` likeliest tokens for each mask in each text (one level less for a single string).

        The mask is the model's own token, such as ``[MASK]``; :attr:`mask_token` names it.
        """
        self._require("fill_mask")
        _check_count("top_k", top_k)
        from .tasks.fill_mask import fill_mask

        listed, single = as_list(texts)
        results = fill_mask(self._engine, self._reader, listed, top_k)
        return results[0] if single else results

    @property
    def mask_token(self) -> str | None:
        """The text of the mask token, or None if the model has none."""
        mask_id = self._engine.file.text.get("mask_token_id")
        return None if mask_id is None else self._reader.tokenizer.id_to_token(mask_id)

    def _require(self, task: str) -> None:
        if self.task != task:
            raise TaskError(
                f"{self._path} is a model for the task {self.task!r}, not {task!r}; use Model.{_METHODS[self.task]}"
            )


def _check_count(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} is {value}; it must be at least 1")

"""Texts to an embedding for each token, compared token by token.

Khattab and Zaharia, "ColBERT" (arXiv 2004.12832).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import numpy as np

from ..batches import BATCH_TOKENS, Progress, token_outputs
from ..engine import Ids, Outputs
from ..graph import SEEN
from ..model import Model
from .answer import check_count
from .inputs import Text, as_texts
from .prompts import Prompts, prompted


class MultiVectorEmbedder(Model):
    """Texts to embeddings of their tokens, float32 [tokens, width] each."""

    _method = "encode"

    @property
    def prompts(self) -> dict[str, str]:
        """What each named prompt puts before a text."""
        return Prompts.of(self._engine).named

    @property
    def similarity_fn_name(self) -> str:
        """``maxsim``, or ``meanmaxsim``: the same over the number of the query's tokens."""
        return str(self._engine.file.model.get("similarity") or "maxsim")

    def encode_query(
        self,
        texts: str | Iterable[Text | list[str]],
        *,
        prompt: str | None = None,
        batch_tokens: int = BATCH_TOKENS,
        progress: Progress | None = None,
    ) -> Any:
        """Embeddings of queries: a list of float32 [tokens, width], or one array for a single string.

        ``prompt`` names one of :attr:`prompts`; None takes ``query``, an empty string none. Where the checkpoint says
        so, queries are filled up with mask tokens, whose embeddings count too.
        """
        name = Prompts.of(self._engine).query if prompt is None else prompt
        return self._encode(texts, name, "query", batch_tokens, progress)

    def encode_document(
        self,
        texts: str | Iterable[Text | list[str]],
        *,
        prompt: str | None = None,
        batch_tokens: int = BATCH_TOKENS,
        progress: Progress | None = None,
    ) -> Any:
        """Embeddings of documents, in the form of :meth:`encode_query`.

        None for ``prompt`` takes the first of ``document``, ``passage`` and ``corpus`` that there is. Tokens that the
        checkpoint leaves out, mostly punctuation, have no row.
        """
        name = Prompts.of(self._engine).document if prompt is None else prompt
        return self._encode(texts, name, "document", batch_tokens, progress)

    def encode(
        self,
        texts: str | Iterable[Text | list[str]],
        *,
        prompt: str | None = None,
        batch_tokens: int = BATCH_TOKENS,
        progress: Progress | None = None,
    ) -> Any:
        """Embeddings of texts that are neither queries nor documents: with the default prompt and the full length."""
        return self._encode(texts, prompt, None, batch_tokens, progress)

    def similarity(self, queries: Any, documents: Any) -> Outputs:
        """Scores float32 [queries, documents]; more is more alike.

        For each token of a query its largest dot product with any token of the document, summed. Both are embeddings,
        one or a list, or texts, which are encoded as queries and as documents.
        """
        first, second = self._arrays(queries, "query"), self._arrays(documents, "document")
        scores = np.array([[maxsim(a, b) for b in second] for a in first], np.float32).reshape(len(first), len(second))
        if self.similarity_fn_name == "meanmaxsim":
            scores /= np.array([max(len(a), 1) for a in first], np.float32)[:, None]
        return scores

    def rank(self, query: str, documents: Iterable[str], top_k: int | None = None) -> list[tuple[int, float]]:
        """The ``documents`` that fit ``query`` best: (index, score), best first; None for ``top_k`` takes all."""
        if top_k is not None:
            check_count("top_k", top_k)
        listed, _ = as_texts(documents)
        scores = self.similarity(query, listed)[0]
        return [(int(i), float(scores[i])) for i in np.argsort(-scores, kind="stable")[:top_k]]

    def _encode(
        self,
        texts: str | Iterable[Text | list[str]],
        prompt: str | None,
        role: Literal["query", "document"] | None,
        batch_tokens: int,
        progress: Progress | None,
    ) -> Any:
        check_count("batch_tokens", batch_tokens)
        settings = self._engine.file.text
        listed, single = as_texts(texts)
        expansion = settings.get("expansion") if role == "query" else None
        limit = settings.get(f"{role}_length") if role else None
        if expansion:
            # A fixed length is the limit too; a least length only lifts a smaller one.
            limit = expansion["length"] if expansion["fixed"] else limit and max(limit, expansion["length"])
        limit = limit and min(limit, self._engine.file.graph.max_length)
        prefix = Prompts.of(self._engine).prefix(prompt)
        sequences, types = self._reader.inputs(prompted(listed, prefix), max_length=limit)
        counts = None
        if expansion:
            lengths = [len(ids) for ids in sequences]
            sequences = [_filled(ids, expansion["length"], expansion["token_id"]) for ids in sequences]
            types = types and [_filled(ids, expansion["length"], 0) for ids in types]
            counts = None if expansion["attend"] else {SEEN: np.array(lengths, np.int32)}
        skipped = settings.get("skipped_ids") or []
        skips = bool(skipped) and (role or "document") in (settings.get("skipped_in") or ["document"])
        results: list[Outputs] = [np.zeros((0, self.width), np.float32)] * len(listed)
        outputs = token_outputs(
            self._engine, sequences, types, counts=counts, batch_tokens=batch_tokens, progress=progress
        )
        for i, rows in outputs:
            results[i] = rows[~np.isin(sequences[i], skipped)] if skips else rows
        return results[0] if single else results

    def _arrays(self, value: Any, role: Literal["query", "document"]) -> list[Outputs]:
        if isinstance(value, np.ndarray) and value.ndim == 2:
            return [value]
        listed = [value] if isinstance(value, str) else list(value)
        if listed and isinstance(listed[0], str):
            return list(self.encode_query(listed) if role == "query" else self.encode_document(listed))
        return [np.asarray(array, np.float32) for array in listed]


def maxsim(query: Outputs, document: Outputs) -> float:
    """The sum over the rows of ``query`` [n, width] of the largest dot product with a row of ``document`` [m, width].

    0 where either has no rows.
    """
    if not len(query) or not len(document):
        return 0.0
    return float((query @ document.T).max(axis=1).sum())


def _filled(ids: Ids, length: int, token: int) -> Ids:
    return np.concatenate([ids, np.full(max(0, length - len(ids)), token, np.int32)])

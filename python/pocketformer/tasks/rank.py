"""Documents in the order in which they fit a query, by a cross-encoder that reads both together."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

import numpy as np

from .classify import Classifier, sigmoid
from .inputs import as_list
from .text import check_unicode

Hit: TypeAlias = tuple[int, float]
"""The index of a document and its score."""


class Ranker(Classifier):
    """A classifier with a single label: a cross-encoder, whose label says how well two texts fit."""

    def rank(self, query: str, documents: Iterable[str], top_k: int | None = None) -> list[Hit]:
        """The ``top_k`` documents that fit ``query`` best, or all, as (index, score), best first.

        The score is the probability that sentence-transformers' ``CrossEncoder.predict`` gives, or the plain output
        where the checkpoint asks for the identity. Like lengths run together; the longer of query and document is cut
        where they exceed :attr:`max_length`.

        Example:
            >>> model = pocketformer.load("ms-marco-minilm.pocket")  # doctest: +SKIP
            >>> model.rank("Who wrote it?", ["It rains.", "Ada wrote the letter."], top_k=1)  # doctest: +SKIP
            [(1, 0.98)]

        Raises TypeError for a query or document that is no str, ValueError for ``top_k`` below 1.
        """
        if not isinstance(query, str):
            raise TypeError(f"query is {type(query).__name__}; rank takes one query, a str, at a time")
        check_unicode("query", query)
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k is {top_k}; it must be at least 1, or None for all documents")
        listed, single = as_list(documents, "documents")
        if single:
            raise TypeError("documents is a str; pass a list of them")
        logits = self._logits([(query, document) for document in listed], name="documents")[:, 0]
        scores = logits if self._engine.file.model.get("activation") == "identity" else sigmoid(logits)
        # The order is that of the logits: far from zero the probabilities of different documents round to the same.
        order = np.argsort(-logits, kind="stable")[:top_k]
        return [(int(i), float(scores[i])) for i in order]

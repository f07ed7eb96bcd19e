"""Texts to weights of words of the vocabulary, for inverted indices.

Formal et al., "SPLADE v2" (arXiv 2109.10086).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from ..batches import Progress, run_batches
from ..engine import Outputs
from ..model import Model
from .answer import check_count
from .embed import SIMILARITIES, Similarity
from .inputs import Text, as_texts
from .prompts import Prompts, prompted

# Every token of a run has a logit for each entry of the vocabulary: 16 MB for 128 tokens and 30,522 entries.
BATCH_TOKENS = 128


class SparseEmbedding(NamedTuple):
    """The entries of the vocabulary that count, int32 [n], ascending, and their weights, float32 [n], all above 0."""

    indices: NDArray[np.int32]
    values: NDArray[np.float32]


class SparseEmbedder(Model):
    """Texts to sparse embeddings: log(1 + the largest logit that any token gives an entry of the vocabulary)."""

    _method = "encode"

    @property
    def prompts(self) -> dict[str, str]:
        """What each named prompt puts before a text."""
        return Prompts.of(self._engine).named

    @property
    def similarity_fn_name(self) -> Similarity:
        """``dot`` where the checkpoint names nothing else."""
        return cast(Similarity, self._engine.file.model.get("similarity") or "dot")

    def encode(
        self,
        texts: str | Iterable[Text | list[str]],
        *,
        prompt: str | None = None,
        max_active_dims: int | None = None,
        batch_tokens: int = BATCH_TOKENS,
        progress: Progress | None = None,
    ) -> Any:
        """A :class:`SparseEmbedding` for each text, or a single one for a string.

        ``prompt`` is that of :meth:`Embedder.encode`. ``max_active_dims`` keeps only so many of the largest weights of
        each text (default: the checkpoint's own, else all). A run over many tokens takes their number times the
        vocabulary in working memory: ``batch_tokens`` bounds it, and the result is the same to the last bit.
        """
        check_count("batch_tokens", batch_tokens)
        most = max_active_dims or self._engine.file.model.get("max_active_dims")
        if max_active_dims is not None:
            check_count("max_active_dims", max_active_dims)
        listed, single = as_texts(texts)
        prompts = Prompts.of(self._engine)
        prefix = prompts.prefix(prompt)
        sequences, types = self._reader.inputs(prompted(listed, prefix))
        results: list[SparseEmbedding] = [SparseEmbedding(np.zeros(0, np.int32), np.zeros(0, np.float32))] * len(listed)
        batches = run_batches(self._engine, sequences, types, batch_tokens=batch_tokens, progress=progress)
        twice = self._engine.file.model.get("activation") == "log1p_relu"
        for batch, logits in batches:
            for i, row in zip(batch.tolist(), logits, strict=True):
                results[i] = _sparse(row, most, twice)
        return results[0] if single else results

    def encode_query(self, texts: str | Iterable[Text | list[str]], **options: Any) -> Any:
        """:meth:`encode` with the prompt ``query`` where the checkpoint has it."""
        return self.encode(texts, **{"prompt": Prompts.of(self._engine).query, **options})

    def encode_document(self, texts: str | Iterable[Text | list[str]], **options: Any) -> Any:
        """:meth:`encode` with the prompt ``document``, ``passage`` or ``corpus``, the first that the checkpoint has."""
        return self.encode(texts, **{"prompt": Prompts.of(self._engine).document, **options})

    def decode(self, embedding: SparseEmbedding, top_k: int | None = None) -> list[tuple[str, float]]:
        """The tokens of an embedding with their weights, largest first."""
        if top_k is not None:
            check_count("top_k", top_k)
        tokenizer = self._reader.tokenizer()
        order = np.argsort(-embedding.values, kind="stable")[:top_k]
        pairs = zip(embedding.indices[order].tolist(), embedding.values[order].tolist(), strict=True)
        return [(tokenizer.id_to_token(index) or f"[{index}]", weight) for index, weight in pairs]

    def similarity(self, a: Any, b: Any) -> Outputs:
        """How alike each of ``a`` is to each of ``b``: float32 [a, b]; more is more alike.

        Both are embeddings, one or a list, or texts, which are encoded.
        """
        first, second = self._rows(a), self._rows(b)
        # Only entries that either side has can count.
        used = np.unique(np.concatenate([np.zeros(0, np.int32), *(row.indices for row in (*first, *second))]))
        return SIMILARITIES[self.similarity_fn_name](_dense(first, used), _dense(second, used))

    def _rows(self, value: Any) -> Sequence[SparseEmbedding]:
        if isinstance(value, SparseEmbedding):
            return [value]
        listed: list[Any] = [value] if isinstance(value, str) else list(value)
        if listed and not isinstance(listed[0], SparseEmbedding):
            return cast(Sequence[SparseEmbedding], self.encode(listed))
        return listed


def _sparse(logits: NDArray[np.float32], most: int | None, twice: bool) -> SparseEmbedding:
    indices = np.flatnonzero(logits > 0)
    if most is not None and len(indices) > most:
        indices = np.sort(indices[np.argsort(-logits[indices], kind="stable")[:most]])
    values = np.log1p(logits[indices])
    return SparseEmbedding(indices.astype(np.int32), np.log1p(values) if twice else values)


def _dense(rows: Sequence[SparseEmbedding], used: NDArray[np.int32]) -> Outputs:
    """Rows with a column for each entry of ``used``."""
    result = np.zeros((len(rows), len(used)), np.float32)
    for row, (indices, values) in zip(result, rows, strict=True):
        row[np.searchsorted(used, indices)] = values
    return result

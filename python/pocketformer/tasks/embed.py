"""Embeddings of texts, and how alike they are."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Any, Literal, TypeAlias, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..batches import BATCH_TOKENS, Progress, sequence_outputs
from ..engine import Ids, Outputs, Rows
from ..model import Model
from .inputs import Text, as_list, as_texts
from .late_chunking import POOLS, LateChunking, Span, check_chunks, joined
from .precision import Precision, check_precision, quantized
from .prompts import Prompts, prompted

Similarity: TypeAlias = Literal["cosine", "dot", "euclidean", "manhattan"]


class Embedder(Model):
    """Texts to embeddings."""

    _method = "encode"

    @property
    def width(self) -> int:
        """Dimensions of the embeddings that :meth:`encode` gives."""
        return self._dimensions(None)

    @property
    def prompts(self) -> dict[str, str]:
        """What each named prompt puts before a text."""
        return Prompts.of(self._engine).named

    @property
    def similarity_fn_name(self) -> Similarity:
        """``cosine``, ``dot``, ``euclidean`` or ``manhattan``: what the model was trained for."""
        return cast(Similarity, self._engine.file.model.get("similarity") or "cosine")

    def encode(
        self,
        texts: str | Iterable[Text | list[str]],
        *,
        prompt: str | None = None,
        precision: Precision = "float32",
        normalize: bool = False,
        truncate_dim: int | None = None,
        ranges: ArrayLike | None = None,
        max_length: int | None = None,
        late_chunking: bool = False,
        batch_tokens: int = BATCH_TOKENS,
        progress: Progress | None = None,
    ) -> NDArray[Any]:
        """Embeddings: float32 [texts, width] in the order of ``texts``, or [width] for a single string.

        A text is a str, or a pair ``(a, b)`` that the model reads together. ``prompt`` names one of :attr:`prompts`,
        which is put before each text; None takes the checkpoint's default, and an empty string none.

        ``truncate_dim`` keeps the first dimensions (of models trained so, Kusupati et al., arXiv 2205.13147; default:
        the checkpoint's own), and ``normalize`` then gives each row the length 1. ``precision`` is named as in
        sentence-transformers: ``float32``, ``float16``, ``int8`` and ``uint8`` (255 steps of each dimension between
        ``ranges`` [2, width], its lowest and highest value; None takes those of these texts), ``binary`` and
        ``ubinary`` (signs, eight to a byte).

        Texts are cut at ``max_length`` tokens, special ones included; None takes :attr:`max_length`, and
        ``info()["max_length"]`` is the most. With ``late_chunking`` the texts are the consecutive chunks of one
        document, with the white space between them, and each is embedded within the whole: see :meth:`encode_chunks`.

        Texts of like length run together, at most ``batch_tokens`` tokens at once: more takes more memory, and the
        result is the same to the last bit. ``progress(done, total)`` is called after each batch.

        Raises ValueError for an unknown prompt or precision, a ``truncate_dim`` beyond the width or a ``max_length``
        beyond what the model reads.
        """
        if batch_tokens < 1:
            raise ValueError(f"batch_tokens is {batch_tokens}; it must be at least 1")
        check_precision(precision)
        width = self._dimensions(truncate_dim)
        single = isinstance(texts, str)
        if late_chunking:
            document, chunks = joined(as_list(texts)[0])  # type: ignore[arg-type]  # pairs are refused
            rows = self._chunks(document, chunks, prompt, max_length, progress)
            return _finished(rows[:, :width], normalize, precision, ranges)[0 if single else slice(None)]
        self._reader.check_length(max_length)
        listed: list[Text] = list(as_list(texts)[0]) if _is_plain(texts) else as_texts(texts)[0]  # type: ignore[arg-type]
        prompts = Prompts.of(self._engine)
        prefix = prompts.prefix(prompt)
        sequences, types = self._reader.inputs(prompted(listed, prefix), max_length=max_length)
        counts = prompts.skipped(prefix, self._reader, sequences, max_length)
        sequences, chosen = self._pooled(sequences)
        options: dict[str, Any] = {"counts": counts, "batch_tokens": batch_tokens, "progress": progress}
        rows = sequence_outputs(self._engine, sequences, types, chosen, **options)[:, :width]
        result = _finished(rows, normalize, precision, ranges)
        return result[0] if single else result

    def encode_chunks(
        self,
        document: str,
        chunks: Iterable[Span],
        *,
        prompt: str | None = None,
        precision: Precision = "float32",
        normalize: bool = False,
        truncate_dim: int | None = None,
        ranges: ArrayLike | None = None,
        max_length: int | None = None,
        progress: Progress | None = None,
    ) -> NDArray[Any]:
        """Embeddings of parts of one document, each of which has seen all of it: float32 [chunks, width].

        ``chunks`` are ``(start, end)`` in characters of ``document``, in any order; they may overlap. The document goes
        through the model in one pass, and the states of the tokens that start in a chunk are pooled (late chunking,
        Günther et al., arXiv 2409.04701). Special tokens and those of the prompt belong to no chunk.

        A document beyond ``max_length`` tokens (None takes :attr:`max_length`) is read in overlapping windows, which a
        UserWarning says once; each token is taken from the window that has more around it. ``progress(done, total)`` is
        called after each. The other arguments are those of :meth:`encode`.

        Example:
            >>> sentences = [m.span() for m in re.finditer(r"[^.]+.", document)]  # doctest: +SKIP
            >>> model.encode_chunks(document, sentences).shape  # doctest: +SKIP
            (12, 768)

        Raises ValueError for a chunk that lies outside of the document or has no token, and for a model that does not
        pool by the mean or maximum of its tokens.
        """
        check_precision(precision)
        width = self._dimensions(truncate_dim)
        texts, single = as_list(document, "document")
        if not single:
            raise TypeError(f"document is a {type(document).__name__}; pass one str, or the chunks of it to encode")
        rows = self._chunks(texts[0], check_chunks(list(chunks), len(document)), prompt, max_length, progress)
        return _finished(rows[:, :width], normalize, precision, ranges)

    def encode_query(self, texts: str | Iterable[Text | list[str]], **options: Any) -> NDArray[Any]:
        """:meth:`encode` with the prompt ``query`` where the checkpoint has it."""
        return self.encode(texts, **{"prompt": Prompts.of(self._engine).query, **options})

    def encode_document(self, texts: str | Iterable[Text | list[str]], **options: Any) -> NDArray[Any]:
        """:meth:`encode` with the prompt ``document``, ``passage`` or ``corpus``, the first that the checkpoint has."""
        return self.encode(texts, **{"prompt": Prompts.of(self._engine).document, **options})

    def similarity(self, a: Any, b: Any) -> Outputs:
        """How alike each of ``a`` is to each of ``b``: float32 [a, b]; more is more alike.

        Both are embeddings [rows, width] or [width], or texts, which are encoded. The measure is
        :attr:`similarity_fn_name`; distances are negative.
        """
        first, second = self._rows("a", a), self._rows("b", b)
        if first.shape[1] != second.shape[1]:
            raise ValueError(f"a has {first.shape[1]} columns and b {second.shape[1]}; encode both with one model")
        return SIMILARITIES[self.similarity_fn_name](first, second)

    def _rows(self, name: str, value: Any) -> Outputs:
        if isinstance(value, str) or (isinstance(value, list | tuple) and value and isinstance(value[0], str)):
            return np.atleast_2d(self.encode([value] if isinstance(value, str) else list(value)))
        rows: Outputs = np.atleast_2d(np.asarray(value, np.float32))
        if rows.ndim != 2:
            raise ValueError(f"{name} has shape {list(rows.shape)}; it must be [rows, width] or [width]")
        return rows

    def _dimensions(self, truncate_dim: int | None) -> int:
        whole = self._engine.width
        if truncate_dim is None:
            return min(whole, self._engine.file.model.get("truncate_dim") or whole)
        if not 1 <= truncate_dim <= whole:
            raise ValueError(f"truncate_dim is {truncate_dim}; the model's embeddings have {whole} dimensions")
        return truncate_dim

    def _chunks(
        self, document: str, chunks: list[Span], prompt: str | None, max_length: int | None, progress: Progress | None
    ) -> Outputs:
        pools = sorted({op["kind"] for op in self._engine.file.graph.ops if op["op"] == "pool"})
        if not pools or not set(pools) <= set(POOLS):
            kinds = ", ".join(pools) or "its end"
            raise ValueError(
                f"{self._source[0]} pools by {kinds}, a token that chunks do not have; late chunking needs a model "
                f"that pools by {' or '.join(POOLS)}: encode the chunks as texts"
            )
        prefix = Prompts.of(self._engine).prefix(prompt)
        length = self._reader.check_length(max_length)
        if not chunks:
            return np.zeros((0, self._engine.width), np.float32)
        text, moved = prefix + document, len(prefix)
        windows, shared = self._reader.document(text, length)
        spans = [(begin + moved, end + moved) for begin, end in chunks]
        return self._late_chunking.encode(text, windows, shared, spans, progress)

    @cached_property
    def _late_chunking(self) -> LateChunking:
        return LateChunking(self._engine)

    def _pooled(self, sequences: list[Ids]) -> tuple[list[Ids], list[Rows] | None]:
        """Filled up where the model was trained so, and which token of each is its embedding where the graph asks."""
        text = self._engine.file.text
        length, pad = text.get("padded_length"), text.get("pad_token_id")
        if length is not None and pad is not None:
            sequences = [np.concatenate([ids, np.full(length - len(ids), pad, np.int32)]) for ids in sequences]
        if self._engine.program.output_kind != "selected":
            return sequences, None
        token = text.get("pooled_token", "last")
        if token == "last":
            return sequences, [np.array([len(ids) - 1], np.int64) for ids in sequences]
        return sequences, [
            np.array([np.argmax(ids if token == "highest" else ids == token)], np.int64) for ids in sequences
        ]


def _finished(rows: Outputs, normalize: bool, precision: Precision, ranges: ArrayLike | None) -> NDArray[Any]:
    return quantized(normalized(rows) if normalize else rows, precision, ranges)


def normalized(rows: Outputs) -> Outputs:
    """``rows`` [n, width] at length 1; a row of zeros stays."""
    result: Outputs = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.float32(1e-12))
    return result


def _is_plain(texts: Any) -> bool:
    """A tuple of two strings is two texts here, as nearly nobody embeds pairs."""
    return isinstance(texts, tuple) and all(isinstance(text, str) for text in texts)


def _cosine(a: Outputs, b: Outputs) -> Outputs:
    return _dot(normalized(a), normalized(b))


def _dot(a: Outputs, b: Outputs) -> Outputs:
    result: Outputs = a @ b.T
    return result


def _euclidean(a: Outputs, b: Outputs) -> Outputs:
    return np.stack([-np.linalg.norm(row - b, axis=1) for row in a]) if len(a) else np.zeros((0, len(b)), np.float32)


def _manhattan(a: Outputs, b: Outputs) -> Outputs:
    return np.stack([-np.abs(row - b).sum(axis=1) for row in a]) if len(a) else np.zeros((0, len(b)), np.float32)


SIMILARITIES = {"cosine": _cosine, "dot": _dot, "euclidean": _euclidean, "manhattan": _manhattan}

"""Vectors of the parts of one document, each of which has seen all of it.

Günther et al., "Late Chunking: Contextual Chunk Embeddings Using Long-Context Embedding Models" (arXiv 2409.04701): the
document goes through the encoder as a whole, and only then are the states of its tokens pooled, chunk by chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._core import Program, Session
from ..batches import Progress
from ..engine import Engine, Outputs
from ..graph import TOKENS
from ..segments import ROWS, after_pool, before_pool
from .windows import Window

Span = tuple[int, int]
POOLS = ("mean", "max")
"""What can be pooled of any stretch of tokens; the first token of a text is in no chunk but one."""


class Owned(NamedTuple):
    """The tokens of a window that are taken from it: rows ``[begin, end)``, and where each starts in the document."""

    begin: int
    end: int
    starts: NDArray[np.int64]


class LateChunking:
    """An embedder in two parts: up to the states of tokens, and from those of a chunk to its embedding."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        graph = before_pool(engine.file.graph)
        self._encoder = Program(graph.description(), graph.params, engine.program.isa)

    def encode(
        self,
        text: str,
        windows: Sequence[Window],
        shared: int,
        chunks: Sequence[Span],
        progress: Progress | None = None,
    ) -> Outputs:
        """One row for each chunk ``[start, end)`` of characters of ``text``: float32 [chunks, width].

        Neighbouring ``windows`` share ``shared`` tokens, each of which is taken from the window that has more around
        it. Special tokens are in no chunk. Raises ValueError for a chunk without tokens.
        """
        owned = [_owned(window, i, len(windows), shared) for i, window in enumerate(windows)]
        starts = np.concatenate([window.starts for window in owned])
        bounds = np.searchsorted(np.maximum.accumulate(starts), np.array(chunks, np.int64).reshape(-1, 2))
        for place, (low, high) in enumerate(bounds.tolist()):
            if low >= high:
                found = text[slice(*chunks[place])]
                raise ValueError(f"chunks[{place}] is {found!r:.40}, which has no token; leave it out")
        result = np.empty((len(chunks), self._engine.width), np.float32)
        pieces: list[list[Outputs]] = [[] for _ in chunks]
        encoder, first = Session(self._encoder), 0
        for number, (window, own) in enumerate(zip(windows, owned, strict=True), 1):
            states = self._states(encoder, window)[own.begin : own.end]
            last = first + len(states)
            seen = np.flatnonzero((bounds[:, 0] < last) & (bounds[:, 1] > first))
            for i in seen:
                part = slice(*np.clip(bounds[i] - first, 0, len(states)).tolist())
                pieces[i].append(states[part])
                if bounds[i, 1] <= last:
                    result[i] = self._pooled(np.concatenate(pieces[i]))
                    pieces[i] = []
                else:
                    pieces[i][-1] = pieces[i][-1].copy()  # a view would keep the whole window
            first = last
            if progress is not None:
                progress(number, len(windows))
        return result

    def _states(self, session: Session, window: Window) -> Outputs:
        """float32 [tokens, width] of one window."""
        ids = window.ids
        states: Outputs = session.run({"ids": ids, TOKENS: np.array([0, len(ids)], np.int64)}, self._engine.threads)
        return states

    def _pooled(self, states: Outputs) -> Outputs:
        """float32 [width] of one chunk; they are not pooled together, as they may overlap a lot."""
        graph = after_pool(self._engine.file.graph, states)
        session = Session(Program(graph.description(), graph.params, self._encoder.isa))
        rows, offsets = np.arange(len(states), dtype=np.int32), np.array([0, len(states)], np.int64)
        row: Outputs = session.run({ROWS: rows, TOKENS: offsets}, 1)[0]
        return row


def _owned(window: Window, index: int, count: int, shared: int) -> Owned:
    before, after = shared // 2 if index > 0 else 0, shared - shared // 2 if index + 1 < count else 0
    starts = window.starts[before : max(len(window.starts) - after, before)]
    return Owned(window.begin + before, window.begin + before + len(starts), starts)


def check_chunks(chunks: Sequence[Span], length: int) -> list[Span]:
    """Raises ValueError for a chunk that is no part of a document of ``length`` characters."""
    checked = []
    for i, chunk in enumerate(chunks):
        begin, end = (int(part) for part in chunk)
        if not 0 <= begin < end <= length:
            raise ValueError(
                f"chunks[{i}] is {begin, end}; a chunk is (start, end) in characters of the document's {length}"
            )
        checked.append((begin, end))
    return checked


def joined(chunks: Sequence[str]) -> tuple[str, list[Span]]:
    """The document that ``chunks`` are the consecutive parts of, and where each lies in it."""
    ends = np.cumsum([0, *map(len, chunks)]).tolist()
    return "".join(chunks), list(pairwise(ends))

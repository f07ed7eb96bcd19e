"""A pocket file made ready to run on token ids: the program, its sessions, and batches by token budget."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ._core import Program, Session, default_threads
from .graph import SELECTED, TOKENS
from .pocketfile import PocketFile, read_pocket

Ids: TypeAlias = NDArray[np.int32]
Rows: TypeAlias = NDArray[np.int64]
Outputs: TypeAlias = NDArray[np.float32]
Progress = Callable[[int, int], None]

BATCH_TOKENS = 512
"""Tokens of one run: enough rows to occupy a few cores, while MiniLM's activations stay in 3 MB."""


class Engine:
    """Runs ragged batches of token ids; safe to call from any number of threads.

    Every concurrent call has a session of its own; sessions are kept for the next call, so that there are never more
    than there were calls at once.
    """

    def __init__(self, path: str | os.PathLike[str], threads: int | None) -> None:
        if threads is not None and (not isinstance(threads, int) or isinstance(threads, bool) or threads < 1):
            raise ValueError(f"threads is {threads!r}; it must be an integer of at least 1, or None for all CPUs")
        self.file: PocketFile = read_pocket(path)
        self.threads = default_threads() if threads is None else threads
        self.program: Program = self.file.program
        self._sessions: list[Session] = []

    @property
    def width(self) -> int:
        """Columns of the output."""
        return self.program.output_width

    def run(self, sequences: Sequence[Ids], types: Sequence[Ids] | None = None, rows: Rows | None = None) -> Outputs:
        """One forward pass over all ``sequences``; float32 [tokens | sequences | selected, width]."""
        offsets = np.zeros(len(sequences) + 1, np.int64)
        np.cumsum([len(ids) for ids in sequences], out=offsets[1:])
        with self._session() as session:
            inputs: dict[str, NDArray[Any] | None] = {"ids": _joined(sequences), TOKENS: offsets}
            if types is not None:
                inputs["types"] = _joined(types)
            if rows is not None:
                inputs[SELECTED] = rows
            return session.run(inputs, self.threads)

    def run_batches(
        self,
        sequences: Sequence[Ids],
        types: Sequence[Ids] | None = None,
        rows: Sequence[Rows] | None = None,
        *,
        batch_tokens: int = BATCH_TOKENS,
        progress: Progress | None = None,
    ) -> Iterator[tuple[NDArray[np.intp], Outputs]]:
        """Runs ``sequences`` in batches of at most ``batch_tokens`` tokens, or of one sequence that is longer.

        ``rows[i]`` are the tokens of sequence i that are wanted. Yields the indices of each batch and its output. Like
        lengths run together, longest first, so that the session's memory is taken once; how sequences are batched
        does not change a bit of their results.
        """
        lengths = np.array([len(ids) for ids in sequences], np.int64)
        order, done = np.argsort(-lengths, kind="stable"), 0
        for batch in _batches(order, lengths, batch_tokens):
            chosen = None
            if rows is not None:
                starts = np.concatenate([[0], np.cumsum(lengths[batch])])
                chosen = np.concatenate([rows[i] + start for i, start in zip(batch, starts, strict=False)])
            typed = None if types is None else [types[i] for i in batch]
            yield batch, self.run([sequences[i] for i in batch], typed, chosen)
            done += len(batch)
            if progress is not None:
                progress(done, len(order))

    @contextmanager
    def _session(self) -> Iterator[Session]:
        try:
            session = self._sessions.pop()
        except IndexError:
            session = Session(self.program)
        yield session  # after an error it is dropped
        self._sessions.append(session)


def _joined(parts: Sequence[Ids]) -> Ids:
    return np.concatenate(parts, dtype=np.int32) if len(parts) else np.zeros(0, np.int32)


def _batches(order: NDArray[np.intp], lengths: NDArray[np.int64], limit: int) -> Iterator[NDArray[np.intp]]:
    begin, tokens = 0, 0
    for end, index in enumerate(order):
        if end > begin and tokens + lengths[index] > limit:
            yield order[begin:end]
            begin, tokens = end, 0
        tokens += int(lengths[index])
    if begin < len(order):
        yield order[begin:]


def tensor_bytes(file: PocketFile) -> dict[str, int]:
    """Bytes of the parameters by dtype name."""
    sizes: dict[str, int] = {}
    for array in file.graph.params.values():
        sizes[array.dtype.name] = sizes.get(array.dtype.name, 0) + array.nbytes
    return sizes


def describe(engine: Engine) -> dict[str, Any]:
    """What ``Model.info`` returns."""
    file = engine.file
    return {
        **file.model,
        "path": file.path,
        "file_bytes": os.stat(file.path).st_size,
        "tensor_bytes": tensor_bytes(file),
        "vocab_size": file.graph.vocab_size,
        "max_length": file.graph.max_length,
        "text": dict(file.text),
        "tokenizer": file.has_tokenizer,
        "width": engine.width,
        "output": engine.program.output_domain,
        "isa": engine.program.isa,
        "threads": engine.threads,
    }

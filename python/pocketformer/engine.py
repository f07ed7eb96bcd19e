"""A pocket file made ready to run on token ids: the program and its sessions."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ._core import Program, Session, StateCache, default_threads
from .graph import SELECTED, TOKENS
from .pocketfile import PocketFile, read_pocket

Ids: TypeAlias = NDArray[np.int32]
Rows: TypeAlias = NDArray[np.int64]
Outputs: TypeAlias = NDArray[np.float32]


class Engine:
    """Runs ragged batches of token ids; safe to call from any number of threads.

    Every concurrent call has a session of its own; sessions are kept for the next call, so that there are never more
    than there were calls at once.
    """

    def __init__(
        self, path: str | os.PathLike[str], threads: int | None, copy: bool = False, kv: str | None = None
    ) -> None:
        if threads is not None and (not isinstance(threads, int) or isinstance(threads, bool) or threads < 1):
            raise ValueError(
                f"threads is {threads!r}; it must be an integer of at least 1, or None: the CPUs it may use"
            )
        self.file: PocketFile = read_pocket(path, copy=copy, kv=kv)
        self.file_bytes = os.stat(path).st_size
        self.threads = default_threads() if threads is None else threads
        self.program: Program = self.file.program
        self._sessions: list[Session] = []

    @property
    def width(self) -> int:
        """Columns of the output."""
        return self.program.output_width

    def run(
        self,
        sequences: Sequence[Ids],
        types: Sequence[Ids] | None = None,
        rows: Rows | None = None,
        *,
        counts: Mapping[str, Ids] | None = None,
        caches: list[StateCache] | None = None,
        out: Outputs | None = None,
    ) -> Outputs:
        """One forward pass over all ``sequences``; float32 [tokens | sequences | selected, width], ``out`` if given.

        ``counts`` holds further inputs of the graph, a number for each sequence. ``caches``, one for each sequence,
        hold what came before and take in what comes.
        """
        offsets = np.zeros(len(sequences) + 1, np.int64)
        np.cumsum([len(ids) for ids in sequences], out=offsets[1:])
        if (rows is not None) != any(domain["kind"] == "selected" for domain in self.file.graph.domains):
            raise ValueError(
                "rows is None; this model works on chosen token rows, give their indices"
                if rows is None
                else "rows was given; this model does not choose token rows, leave it out"
            )
        with self._session() as session:
            inputs: dict[str, NDArray[Any] | None] = {"ids": _joined(sequences), TOKENS: offsets, **(counts or {})}
            if types is not None:
                inputs["types"] = _joined(types)
            if rows is not None:
                inputs[SELECTED] = rows
            return session.run(inputs, self.threads, out, caches)

    def cache(self, capacity: int, chunk: int) -> StateCache:
        """For a conversation of ``capacity`` tokens, at most ``chunk`` of them in one run."""
        return StateCache(self.program, capacity, chunk)

    def run_inputs(self, inputs: dict[str, NDArray[Any]]) -> Outputs:
        """One forward pass over what ``_core.Session.run`` takes, for graphs that are not over tokens."""
        with self._session() as session:
            return session.run(inputs, self.threads)

    @contextmanager
    def _session(self) -> Iterator[Session]:
        try:
            session = self._sessions.pop()
        except IndexError:
            session = Session(self.program)
        yield session  # after an error it is dropped
        self._sessions.append(session)


def require_texts(engine: Engine, doing: str) -> None:
    """Raises ValueError for a model that takes no token ids: ``doing`` says what needs them."""
    if engine.file.graph.find_input("ids") is None:
        task = engine.file.model["task"]
        raise ValueError(f"{engine.file.path} takes no texts (task {task!r}); {doing} models of texts")


def _joined(parts: Sequence[Ids]) -> Ids:
    return np.concatenate(parts, dtype=np.int32) if len(parts) else np.zeros(0, np.int32)


def tensor_bytes(file: PocketFile) -> dict[str, int]:
    """Bytes of the parameters by dtype name."""
    sizes: dict[str, int] = {}
    for array in file.graph.params.values():
        sizes[array.dtype.name] = sizes.get(array.dtype.name, 0) + array.nbytes
    return sizes


def bits_per_weight(file: PocketFile) -> float:
    """Of all matrices, with all that is stored beside them."""
    weights = file.graph.weights
    stored = sum(array.nbytes for name, array in file.graph.params.items() if name.rpartition(".")[0] in weights)
    numbers: int = sum(facts["n"] * facts["k"] for facts in weights.values())
    return 8 * stored / max(numbers, 1)


def skipped_zeros(file: PocketFile) -> dict[str, float]:
    """Of the linears that pass over groups of four zeros, by weight, the share that calibration has seen of these."""
    return {op["weight"]: op["zeros"] for op in file.graph.ops if op.get("zeros")}


def describe(engine: Engine) -> dict[str, Any]:
    """What ``Model.info`` returns."""
    file = engine.file
    return {
        **file.model,
        "path": file.path,
        "file_bytes": engine.file_bytes,
        "tensor_bytes": tensor_bytes(file),
        "bits_per_weight": bits_per_weight(file),
        "vocab_size": file.graph.vocab_size,
        "max_length": file.graph.max_length,
        "text": dict(file.text),
        "tokenizer": file.has_tokenizer,
        "zeros": skipped_zeros(file),
        "width": engine.width,
        "output": engine.program.output_domain,
        "isa": engine.program.isa,
        "threads": engine.threads,
    }

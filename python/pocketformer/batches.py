"""Sequences in batches by a budget of tokens: like lengths run together, and nothing is ever padded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from .engine import Engine, Ids, Outputs, Rows

Progress = Callable[[int, int], None]

BATCH_TOKENS = 512
"""Tokens of one run: enough rows to occupy a few cores, while MiniLM's activations stay in 3 MB."""


def run_batches(
    engine: Engine,
    sequences: Sequence[Ids],
    types: Sequence[Ids] | None = None,
    rows: Sequence[Rows] | None = None,
    *,
    counts: Mapping[str, Ids] | None = None,
    batch_tokens: int = BATCH_TOKENS,
    progress: Progress | None = None,
) -> Iterator[tuple[NDArray[np.intp], Outputs]]:
    """Runs ``sequences`` in batches of at most ``batch_tokens`` tokens, or of one sequence that is longer.

    ``rows[i]`` are the tokens of sequence i that are wanted; ``counts`` holds further inputs, a number for each
    sequence. Yields the indices of each batch and its output. Like lengths run together, longest first, so that the
    session's memory is taken once; how sequences are batched does not change a bit of their results.
    """
    lengths = np.array([len(ids) for ids in sequences], np.int64)
    order, done = np.argsort(-lengths, kind="stable"), 0
    for batch in _batches(order, lengths, batch_tokens):
        chosen = None
        if rows is not None:
            starts = np.concatenate([[0], np.cumsum(lengths[batch])])
            chosen = np.concatenate([rows[i] + start for i, start in zip(batch, starts, strict=False)])
        typed = None if types is None else [types[i] for i in batch]
        part = {name: values[batch] for name, values in (counts or {}).items()}
        yield batch, engine.run([sequences[i] for i in batch], typed, chosen, counts=part)
        done += len(batch)
        if progress is not None:
            progress(done, len(order))


def sequence_outputs(
    engine: Engine,
    sequences: Sequence[Ids],
    types: Sequence[Ids] | None = None,
    rows: Sequence[Rows] | None = None,
    *,
    counts: Mapping[str, Ids] | None = None,
    batch_tokens: int = BATCH_TOKENS,
    progress: Progress | None = None,
) -> Outputs:
    """The one output row of each sequence, in the order given: float32 [sequences, width].

    ``rows`` names the token that is meant for a model that works on chosen ones.
    """
    result = np.empty((len(sequences), engine.width), np.float32)
    options: dict[str, Any] = {"counts": counts, "batch_tokens": batch_tokens, "progress": progress}
    for batch, output in run_batches(engine, sequences, types, rows, **options):
        result[batch] = output
    return result


def token_outputs(
    engine: Engine,
    sequences: Sequence[Ids],
    types: Sequence[Ids] | None = None,
    *,
    counts: Mapping[str, Ids] | None = None,
    batch_tokens: int = BATCH_TOKENS,
    progress: Progress | None = None,
) -> Iterator[tuple[int, Outputs]]:
    """The index of each sequence with the output rows of its tokens, float32 [tokens, width]; longest first."""
    batches = run_batches(engine, sequences, types, counts=counts, batch_tokens=batch_tokens, progress=progress)
    for batch, rows in batches:
        ends = np.cumsum([len(sequences[i]) for i in batch])
        yield from zip(batch.tolist(), np.split(rows, ends[:-1]), strict=True)


def _batches(order: NDArray[np.intp], lengths: NDArray[np.int64], limit: int) -> Iterator[NDArray[np.intp]]:
    begin, tokens = 0, 0
    for end, index in enumerate(order):
        if end > begin and tokens + lengths[index] > limit:
            yield order[begin:end]
            begin, tokens = end, 0
        tokens += int(lengths[index])
    if begin < len(order):
        yield order[begin:]

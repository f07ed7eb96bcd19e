"""Token ids in the shapes that callers have them, made ragged: the only form that runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .engine import Ids


def ragged(
    input_ids: ArrayLike | Sequence[ArrayLike],
    attention_mask: ArrayLike | None = None,
    token_type_ids: ArrayLike | Sequence[ArrayLike] | None = None,
) -> tuple[list[Ids], list[Ids] | None]:
    """The ids and types of each sequence, without padding. Arguments and errors are those of ``Model.__call__``."""
    sequences = _sequences("input_ids", input_ids)
    types = None if token_type_ids is None else _sequences("token_type_ids", token_type_ids)
    if types is not None:
        _same_lengths("token_type_ids", types, sequences)
    if attention_mask is not None:
        mask = _sequences("attention_mask", attention_mask)
        _same_lengths("attention_mask", mask, sequences)
        spans = [_span(i, row) for i, row in enumerate(mask)]
        sequences = [ids[span] for ids, span in zip(sequences, spans, strict=True)]
        types = types and [row[span] for row, span in zip(types, spans, strict=True)]
    return sequences, types


def _sequences(name: str, values: Any) -> list[Ids]:
    if isinstance(values, np.ndarray) and values.ndim != 2:
        raise ValueError(
            f"{name} has shape {list(values.shape)}; it must be [sequences, tokens] or a list of sequences"
        )
    if isinstance(values, str | bytes):
        raise TypeError(f"{name} is {type(values).__name__}; the model call takes token ids, its methods take texts")
    return [_integers(f"{name}[{i}]", row) for i, row in enumerate(values)]


def _integers(name: str, row: Any) -> Ids:
    array: NDArray[Any] = np.asarray(row)
    if array.ndim != 1:
        raise ValueError(
            f"{name} has {array.ndim} dimensions; each sequence is a list of ids, pass [ids] for a single one"
        )
    if array.size == 0:
        return np.zeros(0, np.int32)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} is {array.dtype}; token ids are integers")
    low, high = int(array.min()), int(array.max())
    if low < 0 or high > np.iinfo(np.int32).max:
        raise ValueError(f"{name} holds {low if low < 0 else high}; use the ids of the model's own tokenizer")
    return array.astype(np.int32, copy=False)


def _same_lengths(name: str, rows: Sequence[Ids], sequences: Sequence[Ids]) -> None:
    if [len(row) for row in rows] != [len(ids) for ids in sequences]:
        raise ValueError(f"{name} does not have the shape of input_ids; give one value for each id")


def _span(i: int, mask: Ids) -> slice:
    """Where ``mask`` is 1: one run, as positions inside of a sequence may not be missing."""
    ones = np.flatnonzero(mask)
    if not len(ones) or ones[-1] - ones[0] + 1 != len(ones) or mask.max() > 1:
        raise ValueError(
            f"attention_mask[{i}] must be one run of ones with zeros before and after it; sequences with gaps or "
            "without tokens cannot run"
        )
    return slice(int(ones[0]), int(ones[-1]) + 1)

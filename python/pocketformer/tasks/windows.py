"""The overlapping windows in which a document is read whose tokens are more than a model takes at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..engine import Ids

if TYPE_CHECKING:
    from tokenizers import Encoding


class Window(NamedTuple):
    """Tokens of a document with the special ones around them.

    ``ids`` int32 [tokens]; those of the document are ``[begin, end)``, and ``starts`` int64 [end − begin] says at which
    of its characters each begins.
    """

    ids: Ids
    begin: int
    end: int
    starts: NDArray[np.int64]


def window(text: str, encoding: Encoding, at: int = 0) -> Window:
    """Of a part of ``text`` that begins at character ``at``."""
    special, offsets = encoding.special_tokens_mask, encoding.offsets  # each is made anew whenever it is asked for
    rows = [i for i, flag in enumerate(special) if not flag]
    begin, end = (rows[0], rows[-1] + 1) if rows else (0, 0)
    starts = [_first(text, at + first, at + last) for first, last in offsets[begin:end]]
    return Window(np.array(encoding.ids, np.int32), begin, end, np.array(starts, np.int64))


def divide(parts: Iterable[Window], frame: Window, length: int, shared: int) -> Iterator[Window]:
    """Windows of ``length`` tokens that share ``shared`` with the next, of which ``parts`` hold all in a row.

    ``frame`` is any window with its special tokens.
    """
    head, tail = frame.ids[: frame.begin], frame.ids[frame.end :]
    room = length - len(head) - len(tail)
    listed = [(part.ids[part.begin : part.end], part.starts) for part in parts]
    ids, starts = (np.concatenate(arrays) for arrays in zip(*listed, strict=True))
    for begin in range(0, max(len(ids) - shared, 1), room - shared):
        inner = ids[begin : begin + room]
        whole = np.concatenate([head, inner, tail])
        yield Window(whole, len(head), len(head) + len(inner), starts[begin : begin + room])


def _first(text: str, start: int, end: int) -> int:
    """The first character of a token that is no blank: some tokenizers count the blank before a word as its part."""
    while start + 1 < end and text[start].isspace():
        start += 1
    return start

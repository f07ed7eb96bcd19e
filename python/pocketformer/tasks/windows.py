"""The overlapping windows in which a document or a context is read that has more tokens than a model takes at once."""

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


class Passage(NamedTuple):
    """Tokens of a question and of a part of its context, with the special ones around them.

    ``ids`` and ``types`` int32 [tokens]; those of the context are ``[begin, end)``, those of the question end before
    ``asked``. ``offsets`` int64 [end − begin, 2] are characters of the context, ``words`` int64 [end − begin] tell its
    words apart (−1: of none). ``first`` and ``last`` say whether the tokens at both ends are special.
    """

    ids: Ids
    types: Ids
    asked: int
    begin: int
    end: int
    offsets: NDArray[np.int64]
    words: NDArray[np.int64]
    first: bool
    last: bool

    @classmethod
    def of(cls, encoding: Encoding, context: int = 1, at: int = 0) -> Passage:
        """Of an encoding whose sequence number ``context`` begins at character ``at`` of its text."""
        sequences, special = encoding.sequence_ids, encoding.special_tokens_mask
        rows = [i for i, part in enumerate(sequences) if part == context]
        begin, end = (rows[0], rows[-1] + 1) if rows else (0, 0)
        words = [-1 if word is None else word for word in encoding.word_ids[begin:end]]
        return cls(
            np.array(encoding.ids, np.int32),
            np.array(encoding.type_ids, np.int32),
            max((i for i, part in enumerate(sequences) if part == 0), default=0) + 1,
            begin,
            end,
            np.array(encoding.offsets[begin:end], np.int64).reshape(-1, 2) + at,
            np.array(words, np.int64),
            bool(special and special[0]),
            bool(special and special[-1]),
        )


def divide_context(parts: Iterable[Passage], frame: Passage, length: int, shared: int) -> Iterator[Passage]:
    """As :func:`divide`, of a context; ``frame`` is any window of it with its question."""
    ids, types, first, last = frame.ids, frame.types, slice(frame.begin), slice(frame.end, None)
    room = length - len(ids[first]) - len(ids[last])
    if room <= shared:
        raise ValueError(f"{room} tokens are left")
    listed, words = [], 0
    for part in parts:
        listed.append((part.ids, part.offsets, np.where(part.words < 0, -1, part.words + words)))
        words += int(part.words.max(initial=-1)) + 1
    inner, offsets, numbers = (np.concatenate(arrays) for arrays in zip(*listed, strict=True))
    for begin in range(0, max(len(inner) - shared, 1), room - shared):
        rows = slice(begin, begin + room)
        own = inner[rows]
        yield frame._replace(
            ids=np.concatenate([ids[first], own, ids[last]]),
            types=np.concatenate([types[first], np.full_like(own, types[frame.begin]), types[last]]),
            end=frame.begin + len(own),
            offsets=offsets[rows],
            words=numbers[rows],
        )


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

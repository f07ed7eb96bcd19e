"""Guesses of the next tokens from the text so far: what followed the last time that it said the same (prompt lookup).

A run takes the guesses beside the token that is known, which costs little more where reading the weights is what takes
time; every token is still chosen from the model's logits, and a guess that was wrong is forgotten.
"""

from __future__ import annotations

from collections.abc import Iterable

_SIZES = (4, 3, 2)
"""Tokens at the end that must have been there before; the longest that were are followed."""


class Lookup:
    """Over a text that begins with ``ids`` and grows by ``add``."""

    def __init__(self, ids: Iterable[int]) -> None:
        self._ids: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}  # where a run of tokens ended the last time
        self._begin: int | None = None  # what followed the tokens at the end
        for token in ids:
            self.add(token)

    def add(self, token: int) -> None:
        self._ids.append(token)
        self._begin = None
        for size in _SIZES:
            if len(self._ids) < size:
                continue
            key = tuple(self._ids[-size:])
            found = self._after.get(key)
            if self._begin is None:
                self._begin = found
            self._after[key] = len(self._ids)

    def guess(self, count: int) -> list[int]:
        """At most ``count`` tokens; where these reach the end of the text, it repeats itself from there."""
        if self._begin is None:
            return []
        period = len(self._ids) - self._begin
        return [self._ids[self._begin + i % period] for i in range(count)]

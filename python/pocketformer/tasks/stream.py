"""Tokens to a text as they come: its pieces, whole characters each, up to an end token or a stop string."""

from __future__ import annotations

from collections.abc import Generator as PyGenerator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from ..sampling import TokenLogprob

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_CONTEXT = 5
"""Tokens before the text that decide how its first ones are spelled: whether with a blank, say."""
_UNFINISHED = 16
"""Tokens that may wait for the rest of a character; more than any has bytes."""

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

FinishReason = Literal["stop", "length"]


@dataclass
class Progress:
    """What a stream and its writer share, so that neither holds the other."""

    ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    steps: int = 0


@dataclass(frozen=True)
class Generation:
    """A text with its tokens ``ids``, why it ended, and for each token its log probability (:class:`TextStream`)."""

    text: str
    ids: list[int]
    logprobs: list[TokenLogprob]
    finish_reason: FinishReason
    prompt_tokens: int
    seed: int


class TextStream(Iterator[str]):
    """The pieces of a text as they are written; together they are the text. Dropping it ends the writing.

    ``finish_reason`` is ``stop`` (an end token, or one of the ``stop`` strings) or ``length``. ``seed`` repeats the
    text. ``prompt_tokens`` is how many were read first.
    """

    def __init__(self, pieces: PyGenerator[str, None, None], progress: Progress, prompt_tokens: int, seed: int) -> None:
        self._pieces = pieces
        self._progress = progress
        self.prompt_tokens = prompt_tokens
        self.seed = seed

    @property
    def ids(self) -> list[int]:
        """The tokens so far."""
        return self._progress.ids

    @property
    def logprobs(self) -> list[TokenLogprob]:
        """Of each of ``ids``, where ``generate`` was asked for them: its log probability, and the likeliest tokens'."""
        return self._progress.logprobs

    @property
    def steps(self) -> int:
        """Runs of the model behind the prompt; with ``lookup`` there may be fewer than tokens."""
        return self._progress.steps

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the text ended; None before."""
        return self._progress.finish_reason

    def __next__(self) -> str:
        return next(self._pieces)

    def close(self) -> None:
        """Ends the writing and gives the memory back."""
        self._pieces.close()


class Writer:
    """Tokens to the pieces of a text, up to an end token or a stop string."""

    def __init__(self, spelling: Spelling | None, end_tokens: Sequence[int], stops: Sequence[str]) -> None:
        self.progress = Progress()
        self._spelling = spelling
        self._end_tokens = end_tokens
        self._stops = stops
        self._held = ""  # might be the beginning of a stop string

    def add(self, token: int, logprob: TokenLogprob | None = None) -> str:
        if token in self._end_tokens:
            self.progress.finish_reason = "stop"
            return self._give(self._spelling.rest() if self._spelling else "", whole=True)
        self.progress.ids.append(token)
        if logprob is not None:
            self.progress.logprobs.append(logprob)
        return self._give(self._spelling.add(token) if self._spelling else "", whole=False)

    def end(self) -> str:
        """There are no more tokens."""
        piece = self._give(self._spelling.rest() if self._spelling else "", whole=True)
        self.progress.finish_reason = self.progress.finish_reason or "length"
        return piece

    def _give(self, text: str, whole: bool) -> str:
        self._held += text
        found = min((self._held.find(stop) for stop in self._stops if stop in self._held), default=-1)
        if found >= 0:
            self.progress.finish_reason = "stop"
            return self._held[:found]
        most = (n for stop in self._stops for n in range(1, len(stop)) if self._held.endswith(stop[:n]))
        end = len(self._held) - (0 if whole else max(most, default=0))
        piece, self._held = self._held[:end], self._held[end:]
        return piece


class Spelling:
    """Tokens to text, piece by piece: each as far as its characters are complete."""

    def __init__(self, tokenizer: Tokenizer, prompt: list[int]) -> None:
        self._tokenizer = tokenizer
        for tokens in range(_CONTEXT, _UNFINISHED):
            self._ids = prompt[-tokens:]
            if not self._text().startswith(_REPLACEMENT):  # else it begins within a character
                break
        self._read = len(self._ids)  # tokens whose text has been given out
        self._known = self._text().rstrip(_REPLACEMENT)  # what follows may complete a character

    def _text(self) -> str:
        return self._tokenizer.decode(self._ids, skip_special_tokens=True)

    def add(self, token: int) -> str:
        self._ids.append(token)
        text = self._text()
        waiting = len(self._ids) - self._read
        if text.endswith(_REPLACEMENT) and waiting < _UNFINISHED:
            return ""
        return self._give(text)

    def rest(self) -> str:
        return self._give(self._text())

    def _give(self, text: str) -> str:
        piece = text[len(self._known) :]
        self._ids = self._ids[self._read :][-_UNFINISHED:] if piece else self._ids
        if piece:
            self._read = len(self._ids)
            self._known = self._text()
        return piece

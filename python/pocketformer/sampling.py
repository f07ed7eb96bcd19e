"""How the next token is chosen from logits: penalties, temperature, what is kept, and a draw that a seed repeats."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import _core, _sampling


@dataclass(frozen=True)
class Sampling:
    """``temperature`` 0 takes the likeliest token; above, the logits are divided by it and a token is drawn.

    Drawn from are the ``top_k`` likeliest (0: all), of these the fewest that together have the probability ``top_p``,
    of these those with at least ``min_p`` times that of the likeliest. Before all that the logits of tokens in the
    prompt or the text are divided by ``repetition_penalty`` where they are positive, else multiplied by it
    (arXiv 1909.05858); from those in the text ``presence_penalty`` is taken; ``logit_bias`` is added by token. ``seed``
    None takes a new one.

    Raises ValueError for a number outside of its range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None

    def __post_init__(self) -> None:
        _check("temperature", self.temperature, 0, math.inf)
        _check("top_p", self.top_p, 0, 1)
        _check("min_p", self.min_p, 0, 1)
        _check("presence_penalty", self.presence_penalty, -math.inf, math.inf)
        _check("repetition_penalty", self.repetition_penalty, 0, math.inf)
        if self.repetition_penalty == 0:
            raise ValueError("repetition_penalty is 0; it must be above 0, 1 changes nothing")
        if not _whole(self.top_k) or self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k!r}; it must be an integer of at least 0, and 0 keeps all tokens")
        if self.seed is not None and (not _whole(self.seed) or not 0 <= self.seed < 2**64):
            raise ValueError(f"seed is {self.seed!r}; it must be an integer in 0…2^64 − 1, or None for a new one")
        for token, bias in self.logit_bias.items():
            _check(f"logit_bias[{token}]", bias, -math.inf, math.inf)


class TokenLogprob(NamedTuple):
    """The log probability of a ``token`` that was chosen, and ``top``: the likeliest tokens with theirs, best first."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


class LogProbabilities:
    """Of the tokens of a vocabulary, by one row of logits at a time; the memory, two rows, is taken once.

    Exponentials and their sum are the core's, which are the same on every CPU, and of libm's logarithm a float32 is
    kept.
    """

    def __init__(self, size: int) -> None:
        self._logits: NDArray[np.float32] = np.empty(size, np.float32)
        self._p: NDArray[np.float32] = np.empty((1, size), np.float32)
        self._log_sum = 0.0

    def read(self, logits: NDArray[np.float32]) -> None:
        """Takes in ``logits`` [size]. Raises ValueError where they hold NaN or infinity."""
        self._logits[:] = logits
        _core.softmax(self._logits[None], self._p)
        best = _sampling.best(self._logits)
        self._log_sum = float(self._logits[best]) - float(np.float32(math.log(self._p[0, best])))

    def of(self, token: int) -> float:
        return float(self._logits[token]) - self._log_sum

    def top(self, count: int) -> tuple[tuple[int, float], ...]:
        """The ``count`` likeliest; equal ones by number."""
        if count == 0:
            return ()
        least = np.partition(self._logits, -count)[-count]
        found = np.flatnonzero(self._logits >= least)
        found = found[np.argsort(-self._logits[found], kind="stable")][:count].tolist()
        return tuple((token, self.of(token)) for token in found)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check(name: str, value: Any, low: float, high: float) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not low <= value <= high:
        bounds = (
            "a finite number" + (f" of at least {low:g}" if low == 0 else "") + (" and at most 1" if high == 1 else "")
        )
        raise ValueError(f"{name} is {value!r}; it must be {bounds}")


class Sampler:
    """The choices of one text over a vocabulary of ``size`` tokens; its memory is taken once.

    With ``logprobs`` 0…``size``, ``logprob`` says of the last choice how likely the model found it, and so many
    others: by its logits as they are, before ``sampling`` changes them.

    Raises ValueError for a bias of a token that the vocabulary lacks, and for another number of ``logprobs``.
    """

    def __init__(self, sampling: Sampling, size: int, logprobs: int | None = None) -> None:
        if logprobs is not None and (not _whole(logprobs) or not 0 <= logprobs <= size):
            raise ValueError(
                f"logprobs is {logprobs!r}; it must be None or an integer in 0…{size}: how many of the likeliest "
                "tokens are given beside the one that is chosen"
            )
        for token in sampling.logit_bias:
            if not _whole(token) or not 0 <= token < size:
                raise ValueError(f"logit_bias names the token {token!r}; the vocabulary has 0…{size - 1}")
        self.sampling = sampling
        self.seed = int.from_bytes(os.urandom(8), "little") if sampling.seed is None else sampling.seed
        self.logprob: TokenLogprob | None = None
        self._probabilities = None if logprobs is None else LogProbabilities(size)
        self._top = logprobs or 0
        self._steps = 0
        self._marks: NDArray[np.uint8] = np.zeros(size, np.uint8)
        self._order: NDArray[np.int32] = np.zeros(size if sampling.temperature else 0, np.int32)

    def see(self, prompt: Iterable[int]) -> None:
        """Tokens of the prompt."""
        self._marks[np.fromiter(prompt, np.intp)] |= 1

    def choose(self, logits: NDArray[np.float32]) -> int:
        """The next token; ``logits`` [size] are used up.

        Raises ValueError where they hold NaN or infinity.
        """
        s, probabilities = self.sampling, self._probabilities
        if probabilities is not None:
            probabilities.read(logits)
        for token, bias in s.logit_bias.items():
            logits[token] += np.float32(bias)
        if s.repetition_penalty != 1 or s.presence_penalty:
            _sampling.penalize(logits, self._marks, s.repetition_penalty, s.presence_penalty)
        if s.temperature:
            _sampling.divide(logits, s.temperature)
            _core.softmax(logits[None], logits[None])
            u = _sampling.uniform(self.seed, self._steps)
            token = _sampling.draw(logits, self._order, s.top_k, s.top_p, s.min_p, u)
        else:
            token = _sampling.best(logits)
        self._steps += 1
        self._marks[token] |= 3
        if probabilities is not None:
            self.logprob = TokenLogprob(token, probabilities.of(token), probabilities.top(self._top))
        return token

"""How likely a model finds a text: logits and log-likelihoods, read in chunks so that memory stays bounded."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from .._core import StateCache
from ..engine import Engine, Ids, Outputs
from ..sampling import LogProbabilities

CHUNK = 512
"""Tokens of a prompt that run together, between which a run can be given up."""
_LOGITS = 1 << 24
"""Logits in memory at once where all rows are looked at: 67 MB."""


class Perplexity(NamedTuple):
    """``perplexity`` is exp(``negative_log_likelihood``), the mean over the ``tokens`` that were predicted."""

    perplexity: float
    tokens: int
    negative_log_likelihood: float


def read(engine: Engine, ids: Ids, cache: StateCache) -> Outputs:
    """float32 [1, vocabulary]: the logits after ``ids``, the first of which ``cache`` may hold already."""
    out, nothing = np.empty((1, engine.width), np.float32), np.empty((0, engine.width), np.float32)
    for begin in range(cache.length, len(ids), cache.chunk):
        chunk, final = ids[begin : begin + cache.chunk], begin + cache.chunk >= len(ids)
        rows = np.array([len(chunk) - 1] if final else [], np.int64)
        engine.run([chunk], rows=rows, caches=[cache], out=out if final else nothing)
    return out


def fill(engine: Engine, ids: Ids, cache: StateCache) -> None:
    """Reads ``ids``, the first of which ``cache`` may hold already, and asks for no logits."""
    nothing, none = np.empty((0, engine.width), np.float32), np.zeros(0, np.int64)
    for begin in range(cache.length, len(ids), cache.chunk):
        engine.run([ids[begin : begin + cache.chunk]], rows=none, caches=[cache], out=nothing)


def all_logits(engine: Engine, ids: Ids) -> Outputs:
    """float32 [tokens, vocabulary]."""
    out = np.empty((len(ids), engine.width), np.float32)
    cache = engine.cache(len(ids), min(CHUNK, len(ids)))
    for begin in range(0, len(ids), cache.chunk):
        part = ids[begin : begin + cache.chunk]
        rows = np.arange(len(part), dtype=np.int64)
        engine.run([part], rows=rows, caches=[cache], out=out[begin : begin + len(part)])
    return out


def perplexity(engine: Engine, ids: Ids, head: int, context: int, stride: int) -> Perplexity:
    """Of all of ``ids`` but the first; beyond ``context`` tokens in windows of so many.

    Each begins with the first ``head`` tokens of all, ``stride`` tokens behind the one before; a token counts in the
    first window that holds it.
    """
    cache, total = engine.cache(min(context, len(ids)), min(CHUNK, context, len(ids))), 0.0
    for window, scored in _windows(ids, head, context, stride):
        cache.truncate(0)
        total += _negative_log_likelihood(engine, window, scored, cache)
    mean = total / (len(ids) - 1)
    return Perplexity(math.exp(min(mean, 700.0)), len(ids) - 1, mean)


def _windows(ids: Ids, head: int, context: int, stride: int) -> Iterator[tuple[Ids, int]]:
    """Windows, and how many tokens at the end of each count."""
    end = min(context, len(ids))
    yield ids[:end], end - 1
    while end < len(ids):
        before, end = end, min(end + stride, len(ids))
        yield np.concatenate([ids[:head], ids[end - (context - head) : end]]), end - before


def _negative_log_likelihood(engine: Engine, ids: Ids, scored: int, cache: StateCache) -> float:
    """The sum over the last ``scored`` of ``ids``."""
    most = max(1, min(cache.chunk, _LOGITS // engine.width))
    probabilities, total = LogProbabilities(engine.width), 0.0
    fill(engine, ids[: len(ids) - scored - 1], cache)
    for begin in range(cache.length, len(ids) - 1, most):
        part, after = ids[begin : min(begin + most, len(ids) - 1)], ids[begin + 1 : begin + 1 + most]
        logits = engine.run([part], rows=np.arange(len(part), dtype=np.int64), caches=[cache])
        for row, token in zip(logits, after, strict=True):
            probabilities.read(row)
            total -= probabilities.of(token)
    return total

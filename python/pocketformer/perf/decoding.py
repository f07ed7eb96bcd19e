"""Timings of a model that generates: reading a prompt, and token after token behind it."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np

from .. import _core
from ..engine import Engine, Ids
from ..graph import kept_dtype
from ..tasks import score
from .measure import fresh_rss, repeated, timed, weight_bytes

STEPS = 16
"""Tokens that are decoded behind a prompt before the next of them begins where the first did."""
_FRESH_PROCESS = """
import sys
from pocketformer.engine import Engine
from pocketformer.perf.decoding import decode, prompt
from pocketformer.perf.measure import peak_rss
decode(Engine(sys.argv[1], None, kv={kv!r}), prompt(16, 1), 0)
print(peak_rss())
"""


def measure_decoding(
    path: str, contexts: Sequence[int], threads: Sequence[int] | None, seconds: float, kv: str | None = None
) -> dict[str, Any]:
    """``decoding`` has a row for each number of threads and each context; times in seconds, ready for JSON.

    ``prefill_seconds`` is what a prompt of ``context`` tokens takes, up to the logits of its last,
    ``decode_seconds`` one more token behind it, medians of repetitions that last ``seconds``. ``read_share`` is what
    reading the weights of a token once would take at the probed bandwidth, divided by the latter. ``cache_bytes`` is
    what the keys and values of such a conversation take, which are of dtype ``kv``, or as the file says.

    Raises ValueError where every context is longer than the model allows.
    """
    loads = [timed(lambda: Engine(path, None, kv=kv)) for _ in range(5)]
    reference = Engine(path, None, kv=kv)
    longest = reference.file.graph.max_length - STEPS
    allowed = [n for n in contexts if n <= longest]
    if not allowed:
        raise ValueError(f"all lengths are above {longest}, the longest prompt that {path} allows {STEPS} tokens after")
    stored = weight_bytes(reference)
    rows = []
    for count in sorted(set(threads or (1, _core.default_threads()))):
        engine = Engine(path, count, kv=kv)
        bandwidth = _core.probe_bandwidth(100, bytes=max(stored, 1 << 16), threads=count)
        for context in allowed:
            ids = prompt(context, reference.file.graph.vocab_size)
            reading, steps, cache_bytes = decode(engine, ids, seconds)
            step = median(steps)
            rows.append(
                {
                    "threads": count,
                    "context": context,
                    "prefill_seconds": reading,
                    "prefill_tokens_per_second": context / reading,
                    "decode_seconds": step,
                    "decode_tokens_per_second": 1 / step,
                    "read_gbps": bandwidth,
                    "read_share": stored / 1e9 / bandwidth / step,
                    "cache_bytes": cache_bytes,
                }
            )
    model = reference.file.model
    return {
        "name": model["name"],
        "weights": model["weights"],
        "isa": reference.program.isa,
        "kv": kept_dtype(reference.file.graph),
        "load_seconds": min(loads),
        "peak_rss_bytes": fresh_rss(path, _FRESH_PROCESS.format(kv=kv)),
        "decoding": rows,
    }


def prompt(tokens: int, vocabulary: int) -> Ids:
    """Random token ids, the same each time."""
    return np.random.default_rng(0).integers(0, vocabulary, tokens, dtype=np.int32)


def decode(engine: Engine, ids: Ids, seconds: float) -> tuple[float, list[float], int]:
    """Seconds of reading ``ids`` (the median), of each token behind it, and the bytes of the cache."""
    cache = engine.cache(len(ids) + STEPS, min(score.CHUNK, len(ids)))

    def read() -> None:
        cache.truncate(0)
        score.read(engine, ids, cache)

    out, row = np.empty((1, engine.width), np.float32), np.zeros(1, np.int64)
    reading = median(repeated(read, seconds))
    steps: list[float] = []
    while sum(steps) < seconds or not steps:
        for _ in range(STEPS):
            steps.append(timed(lambda: engine.run([ids[:1]], rows=row, caches=[cache], out=out)))
        read()
    return reading, steps, cache.nbytes

"""Speed of ``pocketformer.kernels`` on this machine; ``pocketformer bench --kernels`` prints it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from .. import _core, kernels
from ..grids import Floats
from .measure import repeated

Shape = tuple[int, int, int]

SHAPES: tuple[Shape, ...] = tuple(
    (m, n, k) for n, k in ((384, 384), (1536, 384), (1024, 1024)) for m in (1, 16, 64, 512)
)
"""Rows, outputs and inputs: MiniLM's products and a wider one, for one row, a sentence, a text and a batch."""
LENGTHS = (128, 512, 2048)
HEADS, HEAD_DIM, WINDOW, CACHED = 12, 64, 256, 4096


@dataclass(frozen=True)
class Case:
    """A kernel on arrays of one shape; ``dtype`` may name a group of inputs that share a scale.

    ``call(threads)`` runs it; ``peak`` probes what bounds its multiply-adds.
    """

    kernel: str
    dtype: str
    shape: str
    multiply_adds: int
    weight_bytes: int
    call: Callable[[int], Any]

    def peak(self, threads: int) -> float:
        probe = _core.probe_f32 if self.dtype == "float32" else _core.probe_int8
        return probe(milliseconds=30, threads=threads)


def measure_kernels(
    shapes: Sequence[Shape] | None, lengths: Sequence[int] | None, threads: Sequence[int] | None, seconds: float
) -> dict[str, Any]:
    """Every case on every number of threads, each repeated for ``seconds``; times in seconds, ready for JSON.

    ``gmacs`` are 10⁹ multiply-adds a second by the median, ``peak_share`` their share of what the inner instruction
    alone reached just before or after, ``read_gbps`` the gigabytes of weights a second. A call counts whole: with the
    rounding of its inputs, and without allocating its result.
    """
    counts = sorted(set(threads or (1, _core.default_threads())))
    runs = []
    for case in _cases(shapes or SHAPES, lengths or LENGTHS):
        for count in counts:
            case.call(count)
            before = case.peak(count)
            times = repeated(functools.partial(case.call, count), seconds)
            peak = max(before, case.peak(count))
            middle = median(times)
            gmacs = case.multiply_adds / middle / 1e9
            runs.append(
                {
                    "kernel": case.kernel,
                    "dtype": case.dtype,
                    "shape": case.shape,
                    "threads": count,
                    "median": middle,
                    "best": min(times),
                    "repetitions": len(times),
                    "gmacs": gmacs,
                    "peak_gmacs": peak,
                    "peak_share": gmacs / peak,
                    "read_gbps": case.weight_bytes / middle / 1e9,
                }
            )
    return {"isa": _core.Kernels().isa, "kernels": runs}


def _floats(*shape: int) -> Floats:
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def _cases(shapes: Sequence[Shape], lengths: Sequence[int]) -> Iterator[Case]:
    for shape in shapes:
        yield _product(shape, "int8")
        if shape[2] % 32 == 0:
            yield _product(shape, "int4", 32)
        yield _product(shape, "int4")
        yield _product(shape, "float32")
    for length in lengths:
        yield _attention(length, None)
        yield _attention(length, WINDOW)
    for queries in (1, 16):
        yield _cached(queries)


def _product(shape: Shape, dtype: kernels.Dtype, group: int | None = None) -> Case:
    m, n, k = shape
    x, w, out = _floats(m, k), kernels.pack(_floats(n, k), dtype, group), np.empty((m, n), np.float32)
    return Case(
        kernel="matmul",
        dtype=dtype if group is None else f"{dtype} / {group}",
        shape=f"{m} × {n} × {k}",
        multiply_adds=m * n * k,
        weight_bytes=w.nbytes,
        call=lambda threads: kernels.matmul(x, w, threads=threads, out=out),
    )


def _attention(length: int, window: int | None) -> Case:
    q, k, v = (_floats(length, HEADS, HEAD_DIM) for _ in range(3))
    out, i = np.empty_like(q), np.arange(length)
    reach = length if window is None else window
    pairs = int((np.minimum(i + reach, length - 1) - np.maximum(i - reach, 0) + 1).sum())
    return Case(
        kernel="attention" if window is None else f"window ±{window}",
        dtype="int8",
        shape=f"{length} × {HEADS} × {HEAD_DIM}",
        multiply_adds=2 * HEADS * HEAD_DIM * pairs,
        weight_bytes=0,
        call=lambda threads: kernels.attention(q, k, v, window=window, threads=threads, out=out),
    )


def _cached(queries: int) -> Case:
    cache = kernels.KeyValueCache(HEADS, HEAD_DIM, CACHED)
    cache.append(_floats(CACHED, HEADS, HEAD_DIM), _floats(CACHED, HEADS, HEAD_DIM))
    q = _floats(queries, HEADS, HEAD_DIM)
    out = np.empty_like(q)
    return Case(
        kernel=f"cache of {CACHED}",
        dtype="int8",
        shape=f"{queries} × {HEADS} × {HEAD_DIM}",
        multiply_adds=2 * HEADS * HEAD_DIM * queries * CACHED,
        weight_bytes=cache.nbytes,
        call=lambda threads: cache.attend(q, threads=threads, out=out),
    )

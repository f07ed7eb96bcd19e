"""Attention by patterns, 12 heads × 64, int8, one thread: time of a token, and of each key that it names.

    python -m bench.patterns [TOKENS …]

Time is the processor's, quantization of q, k and v included, the least of several calls.
"""

from __future__ import annotations

import sys
import time

import numpy as np

from pocketformer import kernels
from pocketformer.kernels import Blocks, Window

HEADS, HEAD_DIM, BLOCK, STEP = 12, 64, 64, 16
CALLS = 3


def big_bird(tokens: int) -> Blocks:
    """Of each block the first, the last, and its own with its neighbours; the first and the last see all."""
    last = -(-tokens // BLOCK) - 1
    near = [sorted({0, b - 1, b, b + 1, last}) for b in range(1, last)]
    return Blocks(BLOCK, [list(range(last + 1)), *near, list(range(last + 1))])


def keys(pattern: Window | Blocks, tokens: int) -> float:
    """That a query sees, on average."""
    if isinstance(pattern, Blocks):
        return sum(map(len, pattern.keys)) * BLOCK / len(pattern.keys)
    if pattern.dilation > 1:
        return tokens / pattern.dilation
    position = np.arange(tokens)
    return float(np.mean(np.minimum(position + 256, tokens - 1) - np.maximum(position - 256, 0) + 1))


def main() -> None:
    lengths = [int(n) for n in sys.argv[1:]] or [1024, 2048, 4096, 8192, 16384]
    print("tokens pattern          keys  µs/token  ns/key")
    for tokens in lengths:
        q, k, v = np.random.default_rng(0).standard_normal((3, tokens, HEADS, HEAD_DIM), np.float32)
        for name, pattern in (
            ("window ±256", Window(256, 256)),
            ("block-sparse", big_bird(tokens)),
            (f"every {STEP}th", Window(dilation=STEP)),
        ):
            seconds = []
            for _ in range(CALLS):
                begin = time.thread_time()
                kernels.attention(q, k, v, pattern=pattern, threads=1)
                seconds.append(time.thread_time() - begin)
            each, seen = min(seconds) / tokens * 1e6, keys(pattern, tokens)
            print(f"{tokens:6} {name:14} {seen:6.0f} {each:9.2f} {each / seen * 1e3:7.1f}", flush=True)


if __name__ == "__main__":
    main()

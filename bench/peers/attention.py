"""Attention beside torch's on one thread: ``python -m bench.peers.attention``.

12 heads of 64. Ours quantizes queries, keys and values to int8 first, which counts; torch computes in fp32. For the
window of 256 tokens to each side torch has no kernel of its own: the sequence is cut by hand into chunks of 256
queries that see at most 768 keys each, the fastest way we found. Both use one thread and its own clock.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from bench.kernels import Attention
from bench.statistics import ratio_text
from pocketformer import _core

HEADS, HEAD_DIM, WINDOW = 12, 64, 256
LENGTHS = (128, 512, 2048, 8192)
Call = Callable[[], Any]


def torch_full(qkv: Any) -> Call:
    import torch

    q, k, v = split(qkv)
    return lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v)


def torch_window(qkv: Any, reach: int = WINDOW) -> Call:
    """Chunks of ``reach`` queries with the keys up to ``reach`` before and after; masks made beforehand."""
    import torch

    q, k, v = split(qkv)
    length, out = len(qkv), torch.empty_like(q)
    spans, masks = [], []
    for begin in range(0, length, reach):
        end = min(begin + reach, length)
        first, last = max(0, begin - reach), min(length, end + reach)
        distance = torch.arange(begin, end)[:, None] - torch.arange(first, last)[None]
        bias = torch.zeros(distance.shape)
        bias[distance.abs() > reach] = -torch.inf
        spans.append((begin, end, first, last))
        masks.append(bias)

    def run() -> Any:
        for (begin, end, first, last), bias in zip(spans, masks, strict=True):
            out[:, :, begin:end] = torch.nn.functional.scaled_dot_product_attention(
                q[:, :, begin:end], k[:, :, first:last], v[:, :, first:last], attn_mask=bias
            )
        return out

    return run


def split(qkv: Any) -> Any:
    """Queries, keys and values of torch, [1, heads, tokens, head_dim] each."""
    import torch

    rows = torch.from_numpy(np.ascontiguousarray(qkv))
    return rows.view(1, len(qkv), 3, HEADS, HEAD_DIM).permute(2, 0, 3, 1, 4).contiguous()


def check(attention: Attention, theirs: Any) -> None:
    """Both must compute the same. Raises AssertionError."""
    expected = theirs[0].permute(1, 0, 2).reshape(attention.length, -1).numpy()
    error = np.abs(attention.out[:, : expected.shape[1]] - expected).max()
    assert error < 0.05, f"results differ by {error}"


def measure(kind: str, length: int, rounds: int, seconds: float) -> dict[str, Any]:
    import torch

    bounds = (-1, -1) if kind == "full" else (WINDOW, WINDOW)
    ours = Attention(True, length, HEADS, HEAD_DIM, *bounds)
    theirs = (torch_full if kind == "full" else torch_window)(ours.qkv)
    with torch.inference_mode():
        result = theirs()
        ours.whole()
        check(ours, result)
        samples: dict[str, list[float]] = {"peak": [], "pocketformer": [], "torch": []}
        for _ in range(rounds):
            samples["peak"].append(1e9 * _core.probe_int8(milliseconds=10))
            samples["pocketformer"].append(cpu_seconds(ours.whole, seconds))
            samples["torch"].append(cpu_seconds(theirs, seconds))
    share = ours.multiply_adds / max(samples["peak"]) / median(samples["pocketformer"])
    return {"kind": kind, "tokens": length, "multiply_adds": ours.multiply_adds, "peak_share": share, **samples}


def cpu_seconds(call: Call, seconds: float) -> float:
    """The median time of a call on this thread's clock: at least one call, and ``seconds`` in total."""
    times: list[float] = []
    while sum(times) < seconds or not times:
        start = time.thread_time()
        call()
        times.append(time.thread_time() - start)
    return median(times)


def table(results: list[dict[str, Any]]) -> str:
    lines = [
        "| attention | tokens | ours, ms | of the int8 peak | torch fp32, ms | torch / ours (quartiles) |",
        "|---|---|---|---|---|---|",
    ]
    for r in results:
        ours, theirs = median(r["pocketformer"]), median(r["torch"])
        kind = "full" if r["kind"] == "full" else f"window ±{WINDOW}"
        lines.append(
            f"| {kind} | {r['tokens']} | {1e3 * ours:.3f} | {r['peak_share']:.0%} | {1e3 * theirs:.2f} | "
            f"{ratio_text(r['torch'], r['pocketformer'])} |"
        )
    return "\n".join(lines)


def run(lengths: tuple[int, ...], rounds: int, seconds: float) -> list[dict[str, Any]]:
    import torch

    torch.set_num_threads(1)
    cells = [("full", length) for length in lengths] + [("window", length) for length in lengths if length > 2 * WINDOW]
    return [measure(kind, length, rounds if length < 4096 else min(rounds, 3), seconds) for kind, length in cells]


def missing() -> str | None:
    """Why this cannot run here, or None when it can."""
    return None if importlib.util.find_spec("torch") else "the package torch is not installed"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.1, help="time for each of the two in a round")
    parser.add_argument("--json", type=Path, help="write the raw times here")
    arguments = parser.parse_args()
    if reason := missing():
        parser.error(reason)
    results = run(tuple(arguments.lengths), arguments.rounds, arguments.seconds)
    print(table(results))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))
    sys.stdout.flush()


if __name__ == "__main__":
    main()

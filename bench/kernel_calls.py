"""What ``pocketformer.kernels.matmul`` costs beyond its kernels: ``python -m bench.kernel_calls``.

The kernels are called raw, on arrays packed, padded and aligned beforehand, in the same blocks of rows: rotation and
rounding, then the product. Passing their many arguments from Python costs more than a call of ``matmul`` does, so a
product's time is also given less that of the same call over no panels: what the kernel itself takes. One thread, its
own clock; all in turn, ratios paired by round.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np

from bench.kernels import Product, floats
from bench.statistics import ratio_text
from pocketformer import _core, kernels
from pocketformer.layout import hadamard_block, round_up

SHAPES = ((1, 384, 384), (16, 384, 384), (64, 1536, 384), (512, 1024, 1024))


def raw(m: int, n: int, k: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Quantizing and multiplying, and multiplying alone."""
    table, product, rotate = _core.Kernels(), Product(True, m, n, k), hadamard_block(k)
    x = floats(m, round_up(k, 16))
    step, rows = len(product.blocks[0][0]), []
    for index, (q, scale, out) in enumerate(product.blocks):
        rows.append((x[index * step : index * step + len(q)], q, scale, out))

    def both() -> None:
        for part, q, scale, out in rows:
            table.quantize_rows(part, q, scale, k, rotate)
            product.block(q, scale, out)

    return both, product


def seconds_of(call: Callable[[], Any], repetitions: int) -> float:
    begin = time.thread_time()
    for _ in range(repetitions):
        call()
    return (time.thread_time() - begin) / repetitions


def compare(m: int, n: int, k: int, rounds: int, seconds: float) -> dict[str, Any]:
    both, product = raw(m, n, k)
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((m, k), np.float32), kernels.pack(rng.standard_normal((n, k), np.float32))
    out = np.empty((m, n), np.float32)
    calls = {
        "call": lambda: kernels.matmul(x, w, threads=1, out=out),
        "kernels": both,
        "product": product,
        "arguments": product.empty,
    }
    repetitions = max(1, int(seconds / max(seconds_of(both, 3), 1e-7)))
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(seconds_of(call, repetitions))
    return {"shape": f"{m} × {n} × {k}", "times": times}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--seconds", type=float, default=0.02, help="of each side in a round")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    results = [compare(*shape, args.rounds, args.seconds) for shape in SHAPES]
    if args.json:
        print(json.dumps(results, indent=2))
        return
    print("| rows × outputs × inputs | call, µs | raw kernels | product itself | difference | call / raw kernels |")
    print("|---|---|---|---|---|---|")
    for result in results:
        times = result["times"]
        call, both = (median(times[name]) * 1e6 for name in ("call", "kernels"))
        alone = [a - b for a, b in zip(times["product"], times["arguments"], strict=True)]
        beyond = [a - b for a, b in zip(times["call"], alone, strict=True)]
        figures = f"{call:.2f} | {both:.2f} | {median(alone) * 1e6:.2f} | {median(beyond) * 1e6:.2f}"
        print(f"| {result['shape']} | {figures} | {ratio_text(times['call'], times['kernels'])} |")


if __name__ == "__main__":
    main()

"""A window of attention beside every way there is to it in torch: ``python -m bench.peers.windows``.

12 heads of 64. Ours quantizes queries, keys and values to int8 first, which counts; the others compute in fp32:

- ``mask``: scaled_dot_product_attention with a band mask, which computes all keys;
- ``chunks``: chunks of as many queries as the window reaches, with the keys up to that before and after, by hand;
- ``flex``: flex_attention with a block mask, compiled (a C++ compiler and minutes: it gets ``--limit`` seconds);
- ``longformer``: what transformers' Longformer does between its projections.

Each cell, a length, a window and a peer, is measured by itself: rounds in which ours and the peer take turns, on the
clock of one thread; nothing but a result that is ours to within 0.05 counts. ``--rounds 1`` is one call of each.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import queue
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from bench.kernels import Attention
from bench.peers.attention import HEAD_DIM, HEADS, Call, check, cpu_seconds, split, torch_window
from bench.peers.machine import describe
from bench.statistics import ratio_text


def mask(qkv: Any, reach: int) -> Call:
    import torch

    q, k, v = split(qkv)
    position = torch.arange(len(qkv))
    seen = (position[:, None] - position).abs() <= reach
    return lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)


def flex(qkv: Any, reach: int) -> Call:
    import torch
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    q, k, v = split(qkv)

    def near(batch: Any, head: Any, query: Any, key: Any) -> Any:
        return (query - key).abs() <= reach

    blocks = create_block_mask(near, None, None, len(qkv), len(qkv), device="cpu")
    compiled = torch.compile(flex_attention)
    return lambda: compiled(q, k, v, block_mask=blocks)


def longformer(qkv: Any, reach: int) -> Call:
    import torch
    import transformers
    from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

    config = transformers.LongformerConfig(
        hidden_size=HEADS * HEAD_DIM, num_attention_heads=HEADS, num_hidden_layers=1, attention_window=[2 * reach]
    )
    layer = LongformerSelfAttention(config, 0)
    q, k, v = (part.transpose(1, 2).contiguous() for part in split(qkv))

    def call() -> Any:
        scores = layer._sliding_chunks_query_key_matmul(q / HEAD_DIM**0.5, k, reach)
        weights = torch.nn.functional.softmax(scores, dim=-1, dtype=torch.float32)
        return layer._sliding_chunks_matmul_attn_probs_value(weights, v, reach).transpose(1, 2)

    return call


PEERS: dict[str, Callable[[Any, int], Call]] = {
    "mask": mask,
    "chunks": torch_window,
    "flex": flex,
    "longformer": longformer,
}


def measure(peer: str, tokens: int, reach: int, rounds: int, seconds: float) -> dict[str, list[float]]:
    """Seconds of each round. Raises AssertionError where the two compute different things."""
    import torch

    torch.set_num_threads(1)
    ours = Attention(True, tokens, HEADS, HEAD_DIM, reach, reach)
    samples: dict[str, list[float]] = {"pocketformer": [], peer: []}
    with torch.inference_mode():
        theirs = PEERS[peer](ours.qkv, reach)
        result = theirs()
        ours.whole()
        check(ours, result)
        for _ in range(rounds):
            samples["pocketformer"].append(cpu_seconds(ours.whole, seconds))
            samples[peer].append(cpu_seconds(theirs, seconds))
    return samples


def _measure_for(results: Any, *arguments: Any) -> None:
    try:
        results.put(measure(*arguments))
    except Exception as error:  # told to the parent, which has the table
        results.put(f"{type(error).__name__}: {error}".splitlines()[0])


def within(limit: float, *arguments: Any) -> dict[str, list[float]] | str:
    """What :func:`measure` finds in a process of its own, or why there is nothing after ``limit`` seconds."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=_measure_for, args=(results, *arguments))
    process.start()
    try:
        found: dict[str, list[float]] | str = results.get(timeout=limit)
    except queue.Empty:
        found = f"nothing within {limit:g} s"
    process.kill()
    process.join()
    return found


def line(tokens: int, reach: int, peer: str, found: dict[str, list[float]] | str) -> str:
    place = f"| {tokens:,} | ±{reach} | {peer} |"
    if isinstance(found, str):
        return f"{place} | | {found} |"
    ours, theirs = found["pocketformer"], found[peer]
    return f"{place} {1e3 * median(ours):.1f} | {1e3 * median(theirs):.1f} | {ratio_text(theirs, ours)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[8192])
    parser.add_argument("--windows", type=int, nargs="+", default=[64, 256], help="keys seen to each side")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.1, help="of each of the two in a round, at least one call")
    parser.add_argument("--limit", type=float, default=600, help="seconds of a cell, start and compiling included")
    parser.add_argument("--json", type=Path, help="write the raw times here")
    arguments = parser.parse_args()
    print("| tokens | window | peer | ours, ms | torch fp32, ms | torch / ours |", flush=True)
    print(f"|{6 * '---|'}", flush=True)
    cells = []
    for tokens in arguments.tokens:
        for reach in arguments.windows:
            for peer in arguments.peers:
                found = within(arguments.limit, peer, tokens, reach, arguments.rounds, arguments.seconds)
                cells.append({"tokens": tokens, "window": reach, "peer": peer, "found": found})
                print(line(tokens, reach, peer, found), flush=True)
    print("\n".join(f"- {key}: {value}" for key, value in describe().items()))
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": describe(), "cells": cells}, indent=1))


if __name__ == "__main__":
    main()

"""Time a token takes in each form of attention, and how far random features are from softmax:
``python -m bench.attentions``.

The first table is of 12 heads × 64 in int8, as ``compress`` makes it (projections along the text and random features
stay fp32), without the linears before and behind: the least of rounds in which the forms take turns, on one thread's
own clock. The second is of one head of 64 over 512 tokens: the root mean square of FAVOR+ less softmax over that of
softmax less the mean of values, which is 1 for a model that attends to nothing in particular.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from pocketformer import _core, attentions
from pocketformer.compression.target import as_quantized
from pocketformer.graph import Array, Graph, GraphBuilder, Table
from pocketformer.packing import pack_graph
from pocketformer.perf.machine import describe_machine
from pocketformer.segments import aligned

HEADS, HEAD_DIM = 12, 64
WIDTH = HEADS * HEAD_DIM
ROUNDS, LONG = 3, 8192
"""Rounds, of texts from ``LONG`` tokens on a single one."""
SEEDS = 6

Parts = tuple[str, str, str]
FORMS: dict[str, Callable[[GraphBuilder, Parts, int], str]] = {
    "full": lambda b, qkv, n: _softmax(b, qkv),
    "window of ±64": lambda b, qkv, n: _softmax(b, qkv, left=64, right=64),
    "Linformer, 256 rows": lambda b, qkv, n: attentions.linformer(
        b, *qkv, *(_normal(256, n, seed=i) / 16 for i in (1, 2)), heads=HEADS, name="linformer"
    ),
    "FAVOR+, 256 features": lambda b, qkv, n: attentions.performer(
        b, *qkv, attentions.orthogonal_features(256, HEAD_DIM, np.random.default_rng(0)), heads=HEADS, name="performer"
    ),
    "Nyström, 64 landmarks": lambda b, qkv, n: attentions.nystrom(b, *qkv, heads=HEADS, landmarks=64),
}


def _normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng((seed, *shape)).standard_normal(shape, np.float32)


def _softmax(b: GraphBuilder, qkv: Parts, heads: int = HEADS, **range_of: int) -> str:
    state = b.store(qkv[1], qkv[2], heads=heads, head_dim=HEAD_DIM)
    return b.attend(qkv[0], state, scale=HEAD_DIM**-0.5, **range_of)


def _rows(table: Array) -> tuple[GraphBuilder, Parts]:
    """Queries, keys and values side by side in the rows of a table."""
    build, width = GraphBuilder.text(len(table), 0, len(table)), table.shape[1] // 3
    x = build.embed([Table("words", table, "ids")])
    q, k, v = (build.columns(x, i * width, width) for i in range(3))
    return build, (q, k, v)


def _session(graph: Graph) -> _core.Session:
    packed = pack_graph(graph)
    params = {name: aligned(array) for name, array in packed.params.items()}
    return _core.Session(_core.Program(packed.description(), params))


def _made(form: str, table: Array) -> _core.Session:
    build, qkv = _rows(table)
    graph = build.build(FORMS[form](build, qkv, len(table)))
    return _session(replace(as_quantized(graph, {}), params=graph.params))


def times(lengths: Sequence[int]) -> dict[str, list[float]]:
    """Microseconds of a token, by form and length."""
    result: dict[str, list[float]] = {form: [] for form in FORMS}
    for length in lengths:
        feeds = {"ids": np.arange(length, dtype=np.int32), "tokens": np.array([0, length])}
        table = _normal(length, 3 * WIDTH)
        sessions = {form: _made(form, table) for form in FORMS}
        least = dict.fromkeys(FORMS, float("inf"))
        for _ in range(ROUNDS if length < LONG else 1):
            for form, each in sessions.items():
                begin = time.thread_time()
                each.run(feeds, 1)
                least[form] = min(least[form], time.thread_time() - begin)
        for form, seconds in least.items():
            result[form].append(seconds / length * 1e6)
    return result


def _performer(features: Array, build: GraphBuilder, qkv: Parts) -> str:
    return attentions.performer(build, *qkv, features, heads=1, name="performer", eps=1e-8)


def errors(counts: Sequence[int], spread: float, length: int = 512) -> list[float]:
    """By number of features; queries and keys are normal, with products that have a deviation of ``spread``."""
    each = spread**0.5
    table = _normal(length, 3 * HEAD_DIM)
    table[:, : 2 * HEAD_DIM] *= each
    feeds = {"ids": np.arange(length, dtype=np.int32), "tokens": np.array([0, length])}

    def run(append: Callable[[GraphBuilder, Parts], str]) -> Array:
        build, qkv = _rows(table)
        result: Array = _session(build.build(append(build, qkv))).run(feeds)
        return result

    exact = run(lambda b, qkv: _softmax(b, qkv, heads=1))
    most = np.square(exact - table[:, 2 * HEAD_DIM :].mean(axis=0)).mean()
    result = []
    for count in counts:
        squares = []
        for seed in range(SEEDS):
            features = attentions.orthogonal_features(count, HEAD_DIM, np.random.default_rng(seed))
            near = run(partial(_performer, features))
            squares.append(np.square(near - exact).mean())
        result.append(float((np.mean(squares) / most) ** 0.5))
    return result


def page(title: str, columns: Sequence[int], rows: dict[str, list[str]]) -> str:
    lines = [[title, *(f"{column:,}" for column in columns)], ["---", *("---:" for _ in columns)]]
    lines += [[name, *cells] for name, cells in rows.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="*", default=[1024, 2048, 4096, 8192, 16384])
    parser.add_argument("--features", type=int, nargs="*", default=[64, 256, 1024, 4096])
    parser.add_argument(
        "--spreads", type=float, nargs="*", default=[0.0625, 0.25, 1.0], help="deviations of the logits"
    )
    options = parser.parse_args()
    machine = describe_machine()
    print(f"{machine['cpu']}, {machine['isa']}, one thread\n")
    rows = {form: [f"{value:.1f}" for value in each] for form, each in times(options.lengths).items()}
    print(page("µs a token, of texts of", options.lengths, rows), "\n")
    rows = {f"{spread:g}": [f"{e:.3f}" for e in errors(options.features, spread)] for spread in options.spreads}
    print(page("error, by deviation of q · k · scale, of features", options.features, rows))


if __name__ == "__main__":
    main()

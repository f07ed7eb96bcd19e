"""The two models of "A Resource-Efficient Transformer" (arXiv 2501.00042), built from a configuration and compressed.

python examples/resource_efficient.py

The paper's counts are met exactly by a vocabulary of 1000, a token table, queries, keys and values without biases, and
an output projection: 3·d² + 2000·d parameters, 140,288 at d = 64 with 8 heads and 67,072 at d = 32 with 4, which the
paper counts as float64. (It gives the counts, not the layers: this reading of them is ours.)
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import pocketformer
from pocketformer.compression import QuantizeOptions, compress_graph
from pocketformer.graph import Graph, GraphBuilder, Table
from pocketformer.pocketfile import write_pocket

Wide = NDArray[np.float64]
LENGTH = 10
"""Tokens of a sequence, as in the paper."""


@dataclass(frozen=True)
class Config:
    """``hidden`` is the width of the tables and of the heads together."""

    hidden: int
    heads: int
    vocab: int = 1000

    @property
    def params(self) -> int:
        return 3 * self.hidden**2 + 2 * self.vocab * self.hidden


BASELINE, EFFICIENT = Config(hidden=64, heads=8), Config(hidden=32, heads=4)


def weights(config: Config, seed: int = 0) -> dict[str, Wide]:
    """Random parameters in float64, as [outputs, inputs]."""
    rng, d = np.random.default_rng(seed), config.hidden
    shapes = {"table": (config.vocab, d), "q": (d, d), "k": (d, d), "v": (d, d), "out": (config.vocab, d)}
    return {name: rng.standard_normal(shape) / np.sqrt(d) for name, shape in shapes.items()}


def original(config: Config, params: dict[str, Wide], ids: NDArray[np.integer[Any]]) -> Wide:
    """The model in numpy: logits [tokens, vocab] of one sequence."""
    x = params["table"][ids]
    heads = [
        (x @ params[name].T).reshape(len(ids), config.heads, -1).transpose(1, 0, 2) for name in ("q", "k", "v")
    ]
    scores = heads[0] @ heads[1].transpose(0, 2, 1) / np.sqrt(config.hidden // config.heads)
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    mixed = (scores / scores.sum(axis=-1, keepdims=True)) @ heads[2]
    logits: Wide = mixed.transpose(1, 0, 2).reshape(len(ids), -1) @ params["out"].T
    return logits


def graph(config: Config, params: dict[str, Wide]) -> Graph:
    """The same model as a graph."""
    p = {name: array.astype(np.float32) for name, array in params.items()}
    build = GraphBuilder.text(config.vocab, 0, LENGTH)
    x = build.embed([Table("table", p["table"], "ids")])
    qkv = build.linear(x, np.concatenate([p["q"], p["k"], p["v"]]), name="qkv")
    mixed = build.attention(qkv, heads=config.heads, head_dim=config.hidden // config.heads)
    return build.build(build.linear(mixed, p["out"], name="out"))


def compressed(config: Config, path: Path, weights_: str = "int8") -> pocketformer.Model:
    """Writes the pocket file of ``config`` with random parameters."""
    options = QuantizeOptions(random_tokens=2048)
    packed, _ = compress_graph(graph(config, weights(config)), weights_, options)
    model = {
        "name": f"ret-{config.hidden}",
        "family": "ret",
        "task": "features",
        "labels": None,
        "params": config.params,
        "weights": weights_,
    }
    write_pocket(path, packed, model, {"max_length": LENGTH}, None)
    return pocketformer.load(path, threads=1)


def microseconds(call: Callable[[], Any], seconds: float = 0.2) -> float:
    """The quickest call."""
    best, end = np.inf, time.perf_counter() + seconds
    while time.perf_counter() < end:
        begin = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - begin)
    return float(best) * 1e6


def main() -> None:
    ids = np.random.default_rng(1).integers(0, 1000, LENGTH)
    print(f"{'model':<22} {'parameters':>10} {'bytes':>10} {'µs':>8} {'cosine':>8}")
    for config in (BASELINE, EFFICIENT):
        params = weights(config)
        expected = original(config, params, ids)
        time_ = microseconds(lambda c=config, p=params: original(c, p, ids))
        size = 8 * config.params
        print(f"d = {config.hidden}, numpy float64   {config.params:>10,} {size:>10,} {time_:>8.1f} {1:>8}")
        for name in ("fp32", "int8", "int4"):
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "ret.pocket"
                model = compressed(config, path, name)
                y = model.run([ids])
                cosine = (y * expected).sum() / np.linalg.norm(y) / np.linalg.norm(expected)
                time_, size = microseconds(lambda m=model: m.run([ids])), path.stat().st_size
            print(f"d = {config.hidden}, {name:<16} {config.params:>10,} {size:>10,} {time_:>8.1f} {cosine:>8.4f}")


if __name__ == "__main__":
    main()

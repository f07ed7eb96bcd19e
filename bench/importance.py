"""How well each criterion of importance ranks channels: ``python -m bench.importance``.

A small encoder (gated feed-forward, grouped queries) learns to tell which kind of token is most frequent in a sequence;
torch trains it. Then one hidden channel at a time is masked, and what that exactly changes of the loss of each of 512
sequences that it has not seen, up or down, is compared with what each criterion says of the channel: the rank
correlation (Spearman). Beside it that with the mean loss, in which many channels change nothing, or do good by chance.
The criteria see other sequences; only those named so see labels.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from pocketformer.compression.calibration import Calibration
from pocketformer.compression.channels import Channels
from pocketformer.compression.gradients import gradient_scores
from pocketformer.compression.importance import GRADIENTS, NAMES, Seen, importance
from pocketformer.compression.outputs import outputs
from pocketformer.compression.quantize import calibrated_profiler
from pocketformer.compression.surgery import mask_units
from pocketformer.compression.twin import Twin, import_torch
from pocketformer.graph import Array, Graph, GraphBuilder, Table

VOCAB, KINDS, LENGTH, HIDDEN, FFN = 64, 8, 12, 16, 24


def sequences(count: int, seed: int) -> tuple[Calibration, Array]:
    """Random tokens, and of each sequence the kind (id mod ``KINDS``) that most of its tokens have."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, VOCAB, (count, LENGTH)).astype(np.int32)
    labels = (ids[:, :, None] % KINDS == np.arange(KINDS)).sum(axis=1).argmax(axis=1)
    return Calibration({"ids": ids.reshape(-1)}, np.full(count, LENGTH, np.int64)), labels


def untrained(seed: int = 0) -> Graph:
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> Array:
        return (rng.standard_normal(shape) * shape[-1] ** -0.5).astype(np.float32)

    build = GraphBuilder.text(VOCAB, 0, LENGTH)
    x = build.embed([Table("words", normal(VOCAB, HIDDEN), "ids")])
    ones = np.ones(HIDDEN, np.float32)
    for layer in range(2):
        h = build.norm(x, ones.copy(), name=f"layer{layer}.norm1", eps=1e-6, kind="rms")
        qkv = build.linear(h, normal(8 * 6, HIDDEN), name=f"layer{layer}.qkv")
        mixed = build.attention(qkv, heads=4, kv_heads=2, head_dim=6)
        x = build.linear(mixed, normal(HIDDEN, 24), name=f"layer{layer}.out", residual=x)
        h = build.norm(x, ones.copy(), name=f"layer{layer}.norm2", eps=1e-6, kind="rms")
        up = build.linear(h, normal(FFN, HIDDEN), name=f"layer{layer}.up")
        wide = build.linear(h, normal(FFN, HIDDEN), name=f"layer{layer}.gate", activation="silu", multiply=up)
        x = build.linear(wide, normal(HIDDEN, FFN), name=f"layer{layer}.down", residual=x)
    x = build.pool(build.norm(x, ones.copy(), name="norm", eps=1e-6, kind="rms"), "mean")
    return build.build(build.linear(x, normal(KINDS, HIDDEN), name="classes"))


def train(graph: Graph, steps: int, seed: int = 0) -> Graph:
    """``graph`` after ``steps`` of Adam on 32 new sequences each."""
    torch = import_torch()
    twin = Twin(graph)
    optimizer = torch.optim.Adam(twin.params.values(), lr=3e-3)
    for step in range(steps):
        batch, labels = sequences(32, seed=1000 + seed * steps + step)
        ends = np.arange(0, batch.rows + 1, LENGTH)
        loss = torch.nn.functional.cross_entropy(twin({**batch.inputs, "tokens": ends}), torch.from_numpy(labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return replace(graph, params={name: param.detach().numpy() for name, param in twin.params.items()})


def losses(graph: Graph, held_out: Calibration, labels: Array) -> Array:
    """Cross-entropy [sequences]."""
    logits = outputs(graph, held_out).astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    result: Array = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(labels)), labels]
    return result


def spearman(a: Array, b: Array) -> float:
    ranks = [np.argsort(np.argsort(scores)) for scores in (a, b)]
    return float(np.corrcoef(*ranks)[0, 1])


def correlations(graph: Graph) -> Iterator[dict[str, tuple[float, float]]]:
    """Of each layer of ``graph`` the correlation of every criterion with the change of a sequence's loss, and with that
    of the mean loss."""
    channels, (held_out, labels), (sample, of_sample) = Channels(graph), sequences(512, 1), sequences(128, 2)
    before = losses(graph, held_out, labels)
    spaces = [space for space in channels.spaces.values() if not space.heads]
    found: dict[str, Seen] = {}
    for observer in calibrated_profiler(graph, sample)([name for space in spaces for name in space.readers]):
        found |= dict.fromkeys(observer.weights, Seen(observer.rows, observer.total, observer.moments))
    torch = import_torch()

    def labelled(output: Any, index: int) -> Any:
        return torch.nn.functional.cross_entropy(output, torch.from_numpy(of_sample[[index]]))

    gradients = {name: gradient_scores(name, graph, channels, spaces, sample) for name in GRADIENTS}
    with_labels = {name: gradient_scores(name, graph, channels, spaces, sample, labelled) for name in GRADIENTS}
    for space in spaces:
        masked = [mask_units(graph, channels, space.units[[unit]]) for unit in range(len(space.units))]
        changes = np.array([losses(part, held_out, labels) for part in masked]) - before
        scores = {}
        for name in NAMES:
            of = gradients[name][space.name] if name in GRADIENTS else None
            seen = {reader: replace(found[reader], scores=of) for reader in space.readers}
            scores[name] = importance(name, graph, channels, space, seen, len(space.units))
        scores |= {f"{name}, with labels": of[space.name] for name, of in with_labels.items()}
        exact = np.abs(changes).mean(axis=1), changes.mean(axis=1)
        yield {name: (spearman(of, exact[0]), spearman(of, exact[1])) for name, of in scores.items()}


def mean_correlations(steps: int, seeds: int = 1) -> dict[str, tuple[float, float]]:
    """Of each criterion, over the layers of ``seeds`` nets."""
    found: dict[str, list[tuple[float, float]]] = {}
    for seed in range(seeds):
        for result in correlations(train(untrained(seed), steps, seed)):
            for name, values in result.items():
                found.setdefault(name, []).append(values)
    return {name: (float(np.mean(of, axis=0)[0]), float(np.mean(of, axis=0)[1])) for name, of in found.items()}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200, help="of training (default: 200)")
    parser.add_argument("--seeds", type=int, default=3, help="how many nets (default: 3)")
    arguments = parser.parse_args(argv)
    print("| criterion | change of a sequence's loss | rise of the mean loss |\n|---|---|---|")
    found = mean_correlations(arguments.steps, arguments.seeds)
    for name, (change, rise) in sorted(found.items(), key=lambda item: -item[1][0]):
        print(f"| {name} | {change:.2f} | {rise:.2f} |")


if __name__ == "__main__":
    main()

"""Small graphs whose channels hang together in the ways that pruning must see."""

from __future__ import annotations

import numpy as np

from pocketformer.graph import Array, Graph, GraphBuilder, Table

VOCAB, HIDDEN = 61, 24


def gated_graph(*, shared: bool = False, seed: int = 0) -> Graph:
    """Two pre-norm layers with grouped queries and a gated FFN of 128; ``shared`` runs one layer's weights twice."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int, std: float = 1.0) -> Array:
        return (rng.standard_normal(shape) * std).astype(np.float32)

    heads, kv_heads, head_dim, ffn = 4, 2, 6, 128
    uneven = np.exp(normal(ffn, 1))  # some channels matter more than others

    def weights() -> dict[str, Array]:
        return {
            "norm": 1 + normal(HIDDEN, std=0.2),
            "qkv": normal((heads + 2 * kv_heads) * head_dim, HIDDEN, std=0.3),
            "out": normal(HIDDEN, heads * head_dim, std=0.2),
            "gate": normal(ffn, HIDDEN, std=0.2) * uneven,
            "up": normal(ffn, HIDDEN, std=0.2),
            "down": normal(HIDDEN, ffn, std=0.2) * np.exp(normal(ffn)),
            "bias": normal(ffn, std=0.1),
        }

    build = GraphBuilder.text(VOCAB, 0, 40)
    x = build.embed([Table("words", normal(VOCAB, HIDDEN), "ids")])
    w = weights()
    for layer in range(2):
        w = w if shared else weights()
        name = "layer" if shared else f"layer{layer}"
        h = build.norm(x, w["norm"], name=f"{name}.norm1", eps=1e-5, kind="rms")
        qkv = build.linear(h, w["qkv"], name=f"{name}.qkv")
        mixed = build.attention(qkv, heads=heads, kv_heads=kv_heads, head_dim=head_dim)
        x = build.linear(mixed, w["out"], name=f"{name}.out", residual=x)
        h = build.norm(x, w["norm"], name=f"{name}.norm2", eps=1e-5, kind="rms")
        up = build.linear(h, w["up"], name=f"{name}.up")
        wide = build.linear(h, w["gate"], w["bias"], name=f"{name}.gate", activation="silu", multiply=up)
        x = build.linear(wide, w["down"], name=f"{name}.down", residual=x)
    x = build.norm(x, w["norm"], name="norm", eps=1e-5, kind="rms")
    return build.build(build.pool(x, "mean"))

"""A small encoder with every kind of operator and odd widths, and the metadata that goes with it."""

from __future__ import annotations

from typing import Any

import numpy as np

from pocketformer.graph import Array, Graph, GraphBuilder, Table

MODEL: dict[str, Any] = {
    "name": "tiny",
    "family": "bert",
    "task": "embed",
    "labels": None,
    "params": 1234,
    "weights": "fp32",
}
TEXT: dict[str, Any] = {"max_length": 40, "pad_token_id": 0}
TOKENIZER_JSON = b'{"model":{"type":"WordPiece"}}'


def tiny_graph(
    *,
    heads: int = 3,
    kv_heads: int = 3,
    head_dim: int = 26,
    hidden: int = 36,
    ffn: int = 41,
    layers: int = 2,
    vocab: int = 101,
    max_length: int = 40,
    task: str = "embed",
    relative: bool = False,
    seed: int = 0,
    rng: Any = None,
) -> Graph:
    """Post-norm encoder with random weights, scaled so that attention is far from uniform."""
    rng = rng or np.random.default_rng(seed)

    def normal(*shape: int, std: float = 1.0) -> Array:
        return (rng.standard_normal(shape) * std).astype(np.float32)

    build = GraphBuilder.text(vocab, 2, max_length)
    words = normal(vocab, hidden)
    x = build.embed(
        [
            Table("words", words, "ids"),
            Table("positions", normal(max_length + 2, hidden), "positions", 2),
            Table("types", normal(2, hidden), "types"),
        ]
    )
    x = build.norm(x, 1 + normal(hidden, std=0.1), normal(hidden), name="norm", eps=1e-12)
    bias = ("relative", normal(heads, 2 * max_length - 1)) if relative else None
    qkv_width = (heads + 2 * kv_heads) * head_dim
    for layer in range(layers):
        name = f"layer{layer}"
        qkv = build.linear(x, normal(qkv_width, hidden, std=0.2), normal(qkv_width), name=f"{name}.qkv")
        mixed = build.attention(qkv, heads=heads, kv_heads=kv_heads, head_dim=head_dim, left=9, right=-1, bias=bias)
        x = build.linear(
            mixed, normal(hidden, heads * head_dim, std=0.1), normal(hidden), name=f"{name}.out", residual=x
        )
        x = build.norm(x, 1 + normal(hidden, std=0.1), normal(hidden), name=f"{name}.norm1", eps=1e-12)
        up = build.linear(x, normal(ffn, hidden, std=0.2), normal(ffn), name=f"{name}.up", activation="gelu")
        x = build.linear(up, normal(hidden, ffn, std=0.2), normal(hidden), name=f"{name}.down", residual=x)
        x = build.norm(x, 1 + normal(hidden, std=0.1), None, name=f"{name}.norm2", eps=1e-6, kind="rms")
    if task == "fill_mask":
        x = build.linear(build.select(x), words, normal(vocab), name="words")
    else:
        x = build.normalize(build.pool(x, "mean"))
    return build.build(x)


def tiny_decoder(
    *,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 16,
    hidden: int = 36,
    layers: int = 2,
    vocab: int = 53,
    max_length: int = 64,
    windows: tuple[int, ...] = (-1,),
    seed: int = 0,
) -> Graph:
    """Sandwich norms, QK norm, rope, a gated FFN and a tied head; layer i looks back ``windows[i % len]`` tokens."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int, std: float = 1.0) -> Array:
        return (rng.standard_normal(shape) * std).astype(np.float32)

    build = GraphBuilder.text(vocab, 0, max_length)
    words = normal(vocab, hidden)
    x = build.embed([Table("words", words, "ids")], scale=1.7)
    frequencies = (0.5 ** np.arange(head_dim // 2)).astype(np.float32)
    for layer in range(layers):
        name = f"layer{layer}"
        h = build.norm(x, 1 + normal(hidden, std=0.1), name=f"{name}.norm1", eps=1e-6, kind="rms")
        qkv = build.linear(h, normal((heads + 2 * kv_heads) * head_dim, hidden, std=0.4), name=f"{name}.qkv")
        mixed = build.attention(
            qkv,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            norms=(("q_norm", 1 + normal(head_dim, std=0.3)), ("k_norm", 1 + normal(head_dim, std=0.3)))
            if layer == 0
            else None,
            rope=("rope", frequencies, 1.0),
            causal=True,
            kept=True,
            left=windows[layer % len(windows)],
        )
        h = build.linear(mixed, normal(hidden, heads * head_dim, std=0.2), name=f"{name}.out")
        x = build.norm(
            h, 1 + normal(hidden, std=0.1), normal(hidden), name=f"{name}.norm2", eps=1e-6, kind="rms", residual=x
        )
        up = build.linear(x, normal(40, hidden, std=0.2), name=f"{name}.up")
        wide = build.linear(x, normal(40, hidden, std=0.2), name=f"{name}.gate", activation="silu", multiply=up)
        x = build.linear(wide, normal(hidden, 40, std=0.2), name=f"{name}.down", residual=x)
    x = build.norm(build.select(x), 1 + normal(hidden, std=0.1), name="norm", eps=1e-6, kind="rms")
    return build.build(build.linear(x, words, name="words"))

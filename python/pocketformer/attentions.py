"""Forms of attention whose time grows with the length of a text, and those whose scores are learnt, as operators.

They are for models that were trained with them: none of them computes what a checkpoint of ordinary attention means,
and only :func:`performer` comes near to it, as the number of its features grows. Each function appends operators to a
:class:`~pocketformer.graph.GraphBuilder` and returns the name of a value, rows of heads side by side;
`docs/attentions.md` builds whole encoders with them.
"""

from __future__ import annotations

from math import sqrt

import numpy as np

from .graph import TOKENS, Array, GraphBuilder, Table

__all__ = ["dense_synthesizer", "linformer", "nystrom", "orthogonal_features", "performer", "random_synthesizer"]


def linformer(
    b: GraphBuilder, q: str, k: str, v: str, e: Array, f: Array, *, heads: int, name: str, scale: float | None = None
) -> str:
    """Attention to keys and values that are projected along the text to a fixed number of rows.

    ``e`` and ``f`` are float32 [rows, max_length] for all heads, or [heads, rows, max_length]; of a text that is
    shorter, what would multiply the tokens that it has not is left out. ``scale`` of q · k is 1/√head_dim if None.

    Wang et al., "Linformer: Self-Attention with Linear Complexity" (arXiv 2006.04768). Raises ValueError when ``e`` and
    ``f`` differ in their rows.
    """
    head_dim = b.width(q) // heads
    projected = []
    for x, matrix, role in ((k, e, "e"), (v, f, "f")):
        stored = matrix[None] if matrix.ndim == 2 else matrix
        if stored.shape[1] != e.shape[-2]:
            raise ValueError(f"f has {stored.shape[1]} rows and e {e.shape[-2]}; they must have as many")
        domain = b.domain(f"{name}.projected", "grid", TOKENS, height=1, width=stored.shape[1])
        projected.append(b.mix(x, stored, domain, name=f"{name}.{role}", heads=len(stored)))
    state = b.store(*projected, heads=heads, head_dim=head_dim, domain=domain)
    return b.attend(q, state, scale=head_dim**-0.5 if scale is None else scale)


def performer(
    b: GraphBuilder,
    q: str,
    k: str,
    v: str,
    features: Array,
    *,
    heads: int,
    name: str,
    causal: bool = False,
    scale: float | None = None,
    eps: float = 1e-6,
) -> str:
    """Attention by positive random features (FAVOR+), as of :func:`orthogonal_features`.

    ``features`` is float32 [count, head_dim], count a multiple of 16, of all heads. ``eps``, what is added to every
    feature, and ``scale`` of q · k, 1/√head_dim if None, are those that the model was trained with.

    Choromanski et al., "Rethinking Attention with Performers" (arXiv 2009.14794).
    """
    scale = (b.width(q) // heads) ** -0.5 if scale is None else scale
    return b.linear_attention(q, k, v, features, name=name, heads=heads, scale=scale, eps=eps, causal=causal)


def orthogonal_features(count: int, head_dim: int, rng: np.random.Generator) -> Array:
    """float32 [count, head_dim]: rows of normal distribution that are orthogonal in each ``head_dim`` of them."""
    blocks = []
    for begin in range(0, count, head_dim):
        normal = rng.standard_normal((head_dim, head_dim))
        unit, triangle = np.linalg.qr(normal)
        unit = (unit * np.sign(np.diag(triangle))).T  # so that every rotation is as likely
        lengths = np.linalg.norm(rng.standard_normal((head_dim, head_dim)), axis=1, keepdims=True)
        blocks.append((unit * lengths)[: count - begin])
    return np.concatenate(blocks).astype(np.float32)


def random_synthesizer(b: GraphBuilder, v: str, scores: Array, *, name: str) -> str:
    """Values weighted by the softmax of learnt ``scores``, float32 [heads, max_length, max_length], cut to the text.

    Its time grows with the square of a text's length, though no score is computed. Tay et al., "Synthesizer: Rethinking
    Self-Attention for Transformer Models" (arXiv 2005.00743).
    """
    return b.mix(v, scores, TOKENS, name=name, heads=len(scores), softmax=True)


Pair = tuple[Array, Array]
"""Weight [n, k] and bias [n]."""


def dense_synthesizer(
    b: GraphBuilder, x: str, first: Pair, second: tuple[Array, Array], value: Pair, out: Pair, *, heads: int, name: str
) -> str:
    """``out`` of the values of ``x`` weighted by softmax(W₂ · relu(W₁ · x)): each token alone scores all positions.

    ``first`` is W₁ [heads · inner, hidden] and its bias, ``second`` W₂ [heads, max_length, inner] and its bias [heads,
    max_length], cut to the text. W₂ lies in the place of keys: no score is ever stored. The rest is as above.
    """
    inner, width = len(first[0]) // heads, len(value[0]) // heads
    wide = max(inner + 1, width)  # the one more is the bias of scores, times 1

    def widened(pair: Pair, rows: int) -> tuple[Array, Array]:
        weight = np.zeros((heads, wide, pair[0].shape[1]), np.float32)
        bias = np.zeros((heads, wide), np.float32)
        weight[:, :rows], bias[:, :rows] = pair[0].reshape(heads, rows, -1), pair[1].reshape(heads, rows)
        return weight, bias

    weight, bias = widened(first, inner)
    bias[:, inner] = 1
    hidden = weight.shape[-1]
    q = b.linear(x, weight.reshape(-1, hidden), bias.reshape(-1), name=f"{name}.first", activation="relu")
    length = second[0].shape[1]
    keys = np.zeros((length, heads, wide), np.float32)
    keys[:, :, :inner], keys[:, :, inner] = second[0].swapaxes(0, 1), second[1].T
    k = b.embed([Table(f"{name}.second", keys.reshape(length, -1), "positions")], domain=TOKENS)
    weight, bias = widened(value, width)
    v = b.linear(x, weight.reshape(-1, hidden), bias.reshape(-1), name=f"{name}.value")
    mixed = b.attend(q, b.store(k, v, heads=heads, head_dim=wide), scale=1.0)
    columns = np.zeros((len(out[0]), heads, wide), np.float32)
    columns[:, :, :width] = out[0].reshape(len(out[0]), heads, width)
    return b.linear(mixed, columns.reshape(len(out[0]), -1), out[1], name=f"{name}.out")


def nystrom(
    b: GraphBuilder,
    q: str,
    k: str,
    v: str,
    *,
    heads: int,
    landmarks: int,
    of: str = TOKENS,
    seen: str | None = None,
    iterations: int = 6,
    scale: float | None = None,
) -> str:
    """Nyström attention: by way of ``landmarks``, the means of so many consecutive parts of the queries and keys.

    ``q``, ``k`` and ``v`` are rows of the domain ``of``, of the same width, a multiple of 16. Where ``seen`` names
    another domain, only as many first keys as that has rows are attended to, while the others are part of landmarks, as
    padding is in transformers.

    Xiong et al., "Nyströmformer" (arXiv 2102.03902).
    """
    head_dim = b.width(q) // heads
    scale = 1 / sqrt(head_dim) if scale is None else scale
    seen = of if seen is None else seen
    grid = b.domain(f"{of}.landmarks", "grid", of, height=1, width=landmarks)
    means = [b.pool(x, "mean", into=grid) for x in (q, k)]
    keys, values = (x if seen == of else b.fit(x, seen) for x in (k, v))
    all_keys = b.store(keys, values, heads=heads, head_dim=head_dim, domain=seen)
    gathered = b.attend(means[0], all_keys, scale=scale)
    turned = b.nystrom(means[0], means[1], gathered, heads=heads, scale=scale, iterations=iterations, of=grid)
    return b.attend(q, b.store(means[1], turned, heads=heads, head_dim=head_dim, domain=grid), scale=scale)

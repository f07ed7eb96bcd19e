"""One BERT encoder layer from pocketformer.kernels, checked against numpy.

python examples/encoder_layer.py
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pocketformer import kernels

Array = NDArray[np.float32]
Wide = NDArray[Any]


class EncoderLayer:
    """``params`` are float32: weights [outputs, inputs], biases and norm parameters by the names below."""

    def __init__(self, params: dict[str, Array], heads: int, dtype: kernels.Dtype = "int8") -> None:
        self.heads, self.params = heads, params
        self.rounds: Literal["int8", "float32"] = "float32" if dtype == "float32" else "int8"
        self.weights = {name: kernels.pack(params[name], dtype) for name in ("q", "k", "v", "out", "up", "down")}

    def linear(self, name: str, x: Array, **then: Any) -> Array:
        return kernels.matmul(x, self.weights[name], self.params[f"{name}.bias"], **then)

    def __call__(self, x: Array, offsets: NDArray[np.int64]) -> Array:
        """Sequences end to end [tokens, hidden], and where each begins, int64 [sequences + 1]."""
        tokens, hidden = x.shape
        q, k, v = (self.linear(name, x).reshape(tokens, self.heads, -1) for name in "qkv")
        mixed = kernels.attention(q, k, v, offsets=offsets, dtype=self.rounds).reshape(tokens, hidden)
        x = self.norm("norm1", self.linear("out", mixed, residual=x))
        up = self.linear("up", x, activation="gelu")
        return self.norm("norm2", self.linear("down", up, residual=x))

    def norm(self, name: str, x: Array) -> Array:
        return kernels.layer_norm(x, self.params[f"{name}.weight"], self.params[f"{name}.bias"], eps=1e-12)


def random_params(hidden: int, ffn: int, seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    shapes = {name: (hidden, hidden) for name in ("q", "k", "v", "out")} | {"up": (ffn, hidden), "down": (hidden, ffn)}
    params = {name: rng.standard_normal(shape) / np.sqrt(shape[1]) for name, shape in shapes.items()}
    params |= {f"{name}.bias": 0.1 * rng.standard_normal(shape[0]) for name, shape in shapes.items()}
    for norm in ("norm1", "norm2"):
        params |= {f"{norm}.weight": 1 + 0.1 * rng.standard_normal(hidden), f"{norm}.bias": rng.standard_normal(hidden)}
    return {name: value.astype(np.float32) for name, value in params.items()}


def reference(params: dict[str, Array], heads: int, x: Array, offsets: NDArray[np.int64]) -> Wide:
    """The same layer in numpy, in float64."""
    p = {name: value.astype(np.float64) for name, value in params.items()}

    def norm(name: str, y: Wide) -> Wide:
        y = y - y.mean(axis=1, keepdims=True)
        y = y / np.sqrt(np.square(y).mean(axis=1, keepdims=True) + 1e-12)
        return y * p[f"{name}.weight"] + p[f"{name}.bias"]

    def linear(name: str, y: Wide) -> Wide:
        return y @ p[name].T + p[f"{name}.bias"]

    parts = []
    for begin, end in pairwise(offsets):
        rows = x[begin:end].astype(np.float64)
        q, k, v = (linear(name, rows).reshape(len(rows), heads, -1).swapaxes(0, 1) for name in "qkv")
        scores = np.exp(q @ k.swapaxes(1, 2) / np.sqrt(q.shape[2]))
        mixed = (scores / scores.sum(axis=2, keepdims=True) @ v).swapaxes(0, 1).reshape(rows.shape)
        hidden = norm("norm1", linear("out", mixed) + rows)
        up = linear("up", hidden)
        gelu = up / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (up + 0.044715 * up**3)))  # within 5e-4 of the exact one
        parts.append(norm("norm2", linear("down", gelu) + hidden))
    return np.concatenate(parts)


def main() -> None:
    hidden, heads = 384, 12
    params = random_params(hidden, 4 * hidden)
    offsets = np.array([0, 7, 40, 168], np.int64)  # three sequences, none padded
    x = np.random.default_rng(1).standard_normal((168, hidden)).astype(np.float32)
    exact = reference(params, heads, x, offsets)
    for dtype in ("float32", "int8"):
        result = EncoderLayer(params, heads, dtype)(x, offsets)
        cosine = (result * exact).sum(1) / np.linalg.norm(result, axis=1) / np.linalg.norm(exact, axis=1)
        print(f"{dtype}: largest difference {np.abs(result - exact).max():.1e}, least cosine {cosine.min():.5f}")


if __name__ == "__main__":
    main()

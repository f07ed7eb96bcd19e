"""A numpy interpreter of graphs, packed or plain: the oracle of the tests and the profiler of compression passes.

It follows docs/format.md word by word. Integer results are exact; sums of floats are taken in float64 and rounded once,
so it is at least as precise as the kernels. Written to be read, not to be fast.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from .graph import Array, Graph, Op
from .hadamard import hadamard
from .packing import unpack_graph

KEY_TILE, KEY_SPLIT = 128, 1024
LOG2E = math.log2(math.e)

Hook = Callable[[Op, list[Array], Array], None]
"""Called after each operator with the operator, its inputs (``in`` and ``residual``) and its output."""


@dataclass(frozen=True)
class Batch:
    """Tokens of all sequences end to end."""

    ids: Array
    types: Array
    rows: Array
    lengths: list[int]

    @property
    def positions(self) -> Array:
        return np.concatenate([np.arange(length) for length in self.lengths])

    def sequences(self) -> Iterator[slice]:
        begin = 0
        for length in self.lengths:
            yield slice(begin, begin + length)
            begin += length


def run(
    graph: Graph,
    ids: ArrayLike,
    lengths: ArrayLike,
    types: ArrayLike | None = None,
    rows: ArrayLike | None = None,
    hooks: Hook | None = None,
) -> Array:
    """The graph's output, float32 [tokens | sequences | rows, width].

    ``ids`` [tokens] holds all sequences end to end and ``lengths`` [sequences] how long each is; ``types`` [tokens]
    defaults to zeros; ``rows`` are the tokens that a ``select`` takes. Raises ValueError when they do not fit each
    other or the graph.
    """
    plain = unpack_graph(graph)
    batch = _batch(graph, ids, lengths, types, rows)
    last_use = {name: index for index, op in enumerate(plain.ops) for name in _inputs(op)}
    last_use[plain.output] = len(plain.ops)
    values: dict[str, Array] = {}
    for index, op in enumerate(plain.ops):
        inputs = [values[name] for name in _inputs(op)]
        output = OPERATORS[op["op"]](op, plain, batch, inputs).astype(np.float32, copy=False)
        values[op["out"]] = output
        if hooks:
            hooks(op, inputs, output)
        for name in (op["out"], *_inputs(op)):
            if last_use.get(name, index) <= index:
                values.pop(name, None)
    return values[plain.output]


def _inputs(op: Op) -> list[str]:
    return [op[field] for field in ("in", "residual") if op.get(field) is not None]


def _batch(graph: Graph, ids: ArrayLike, lengths: ArrayLike, types: ArrayLike | None, rows: ArrayLike | None) -> Batch:
    def index(name: str, value: ArrayLike, limit: int, low: int = 0) -> Array:
        array = np.asarray(value, np.int64).reshape(-1)
        if array.size and not (low <= array.min() and array.max() < limit):
            raise ValueError(f"{name} holds {array.min()}…{array.max()}; it must lie in {low}…{limit - 1}")
        return array

    tokens = index("ids", ids, graph.vocab_size)
    sizes = index("lengths", lengths, graph.max_length + 1, low=1)
    kinds = index("types", np.zeros_like(tokens) if types is None else types, max(graph.type_vocab_size, 1))
    if sizes.sum() != tokens.size or kinds.size != tokens.size:
        raise ValueError(f"lengths sum to {sizes.sum()} and types has {kinds.size}; both must equal {tokens.size} ids")
    chosen = index("rows", [] if rows is None else rows, tokens.size)
    return Batch(tokens, kinds, chosen, [int(size) for size in sizes])


def erf(x: Array) -> Array:
    """erf in float64 to 1e-14: the nearest entry of a table of ``math.erf`` and four Taylor terms."""
    magnitude = np.minimum(np.abs(x).astype(np.float64), 6.0)
    nearest = np.rint(magnitude * 256).astype(np.int64)
    t = nearest / 256
    h = magnitude - t
    slope = 2 / math.sqrt(math.pi) * np.exp(-t * t)
    series = h * (1 + h * (-t + h * ((2 * t * t - 1) / 3 + h * (3 * t - 2 * t**3) / 6)))
    result: Array = np.sign(x) * (_ERF[nearest] + slope * series)
    return result


_ERF = np.array([math.erf(step / 256) for step in range(6 * 256 + 1)])


def _gelu_tanh(x: Array) -> Array:
    result: Array = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return result


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "none": lambda x: x,
    "gelu": lambda x: 0.5 * x * (1 + erf(x / math.sqrt(2))),
    "gelu_tanh": _gelu_tanh,
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: 0.5 * x * (1 + np.tanh(0.5 * x)),
    "tanh": np.tanh,
}


def quantize(x: Array) -> tuple[Array, Array]:
    """Rows of the last axis as whole numbers −127…127, in float64 for exact products, and one float32 scale each."""
    amax = np.abs(x).max(axis=-1, keepdims=True)
    inverse = np.divide(np.float32(127), amax, out=np.zeros_like(amax), where=amax > 0)
    return np.rint(x * inverse).astype(np.float64), amax[..., 0] / np.float32(127)


def embed(op: Op, graph: Graph, batch: Batch, inputs: list[Array]) -> Array:
    result = np.zeros((batch.ids.size, op["width"]), np.float32)
    indices = {"ids": batch.ids, "positions": batch.positions, "types": batch.types}
    for table in op["tables"]:
        index = indices[table["index"]] + table["offset"]
        found = graph.params[f"{table['weight']}.weight"][index].astype(np.float32)
        if f"{table['weight']}.scale" in graph.params:
            found = found * graph.params[f"{table['weight']}.scale"][index, None]
        result += hadamard(found, table["rotate"])
    return result


def norm(op: Op, graph: Graph, batch: Batch, inputs: list[Array]) -> Array:
    x = inputs[0].astype(np.float64)
    if op["kind"] == "layer":
        x = x - x.mean(axis=1, keepdims=True)
    x = x / np.sqrt(np.square(x).mean(axis=1, keepdims=True) + op["eps"])
    scaled: Array = x * graph.params[f"{op['weight']}.weight"] + graph.params.get(f"{op['weight']}.bias", 0)
    return scaled


def linear(op: Op, graph: Graph, batch: Batch, inputs: list[Array]) -> Array:
    weight = graph.params[f"{op['weight']}.weight"]
    bias = graph.params.get(f"{op['weight']}.bias", np.float32(0)).astype(np.float64)
    if weight.dtype == np.int8:
        x, x_scale = quantize(hadamard(inputs[0], op["rotate"]))
        product = (x @ weight.T.astype(np.float64)).astype(np.float32) * graph.params[f"{op['weight']}.scale"]
        y = product * x_scale[:, None].astype(np.float64) + bias
    else:
        y = inputs[0].astype(np.float64) @ weight.T.astype(np.float64) + bias
    y = ACTIVATIONS[op["activation"]](y.astype(np.float32).astype(np.float64)).astype(np.float32)
    return y + inputs[1] if op["residual"] is not None else y


def visible(op: Op, length: int) -> Array:
    """Boolean [queries, keys]: which keys of its sequence each query sees."""
    distance = np.arange(length)[:, None] - np.arange(length)
    seen = np.ones((length, length), bool)
    if op["left"] >= 0:
        seen &= distance <= op["left"]
    if op["right"] >= 0:
        seen &= -distance <= op["right"]
    if op["causal"]:
        seen &= distance >= 0
    return seen


def attention(op: Op, graph: Graph, batch: Batch, inputs: list[Array]) -> Array:
    heads, kv_heads, head_dim = op["heads"], op["kv_heads"], op["head_dim"]
    attend = _attend_int8 if op["dtype"] == "int8" else _attend_fp32
    result = np.empty((batch.ids.size, heads * head_dim), np.float32)
    for tokens in batch.sequences():
        rows = inputs[0][tokens]
        length = len(rows)
        split = rows.reshape(length, heads + 2 * kv_heads, head_dim).swapaxes(0, 1)
        q, k, v = split[:heads], split[heads : heads + kv_heads], split[heads + kv_heads :]
        k, v = (np.repeat(x, heads // kv_heads, axis=0) for x in (k, v))
        bias = np.zeros((1, 1, 1), np.float32)
        if op["bias"] is not None:
            distance = np.arange(length)[:, None] - np.arange(length)
            bias = graph.params[op["bias"]][:, distance + graph.max_length - 1]
        mixed = attend(q, k, v, op["scale"], np.broadcast_to(bias, (heads, length, length)), visible(op, length))
        result[tokens] = mixed.swapaxes(0, 1).reshape(length, -1)
    return result


def _attend_fp32(q: Array, k: Array, v: Array, scale: float, bias: Array, seen: Array) -> Array:
    """``q``, ``k``, ``v`` [heads, length, head_dim], ``bias`` [heads, length, length] → [heads, length, head_dim]."""
    scores = q.astype(np.float64) @ k.swapaxes(1, 2).astype(np.float64) * scale + bias
    scores = np.where(seen, scores, -np.inf)
    p = np.exp(scores - scores.max(axis=2, keepdims=True))
    mixed: Array = p @ v.astype(np.float64) / p.sum(axis=2, keepdims=True)
    return mixed


def _attend_int8(q: Array, k: Array, v: Array, scale: float, bias: Array, seen: Array) -> Array:
    """As ``_attend_fp32``, over key tiles of 128 that are merged in order within splits of 1,024, and so are these."""
    (q, q_scale), (k, k_scale), (v, v_scale) = quantize(q), quantize(k), quantize(v)
    q_scale = q_scale * np.float32(scale * LOG2E)
    whole = _Softmax.empty(q.shape)
    for begin in range(0, q.shape[1], KEY_TILE):
        if begin % KEY_SPLIT == 0:
            split = _Softmax.empty(q.shape)
        tile = slice(begin, begin + KEY_TILE)
        i = np.flatnonzero(seen[:, tile].any(axis=1))  # the queries that see a key of this tile
        scores = (q[:, i] @ k[:, tile].swapaxes(1, 2)).astype(np.float32) * k_scale[:, None, tile] * q_scale[:, i, None]
        scores = np.where(seen[i, tile], scores + bias[:, i, tile] * np.float32(LOG2E), np.float32(-np.inf))
        tile_highest = scores.max(axis=2, initial=-np.inf)
        p = np.exp2(scores - tile_highest[:, :, None])
        w = p * v_scale[:, None, tile]
        w_highest = w.max(axis=2, keepdims=True)
        quantized = np.rint(w * (np.float32(127) / np.where(w_highest > 0, w_highest, 1))).astype(np.float64)
        mixed = (quantized @ v[:, tile]).astype(np.float32) * (w_highest / np.float32(127))
        split.merge(i, tile_highest, p.sum(axis=2), mixed)
        if begin + KEY_TILE >= q.shape[1] or (begin + KEY_TILE) % KEY_SPLIT == 0:
            i = np.flatnonzero(split.total.any(axis=0))
            whole.merge(i, split.highest[:, i], split.total[:, i], split.result[:, i])
    attended: Array = whole.result / whole.total[:, :, None]
    return attended


@dataclass
class _Softmax:
    """Maximum and denominator [heads, queries] and weighted sum [heads, queries, head_dim] of the keys so far."""

    highest: Array
    total: Array
    result: Array

    @classmethod
    def empty(cls, shape: tuple[int, ...]) -> _Softmax:
        return cls(
            np.full(shape[:2], -np.inf, np.float32), np.zeros(shape[:2], np.float32), np.zeros(shape, np.float32)
        )

    def merge(self, i: Array, highest: Array, total: Array, result: Array) -> None:
        """Takes in later keys for the queries ``i``."""
        new = np.maximum(self.highest[:, i], highest)
        keep, add = np.exp2(self.highest[:, i] - new), np.exp2(highest - new)
        self.total[:, i] = self.total[:, i] * keep + total * add
        self.result[:, i] = self.result[:, i] * keep[:, :, None] + result * add[:, :, None]
        self.highest[:, i] = new


def pool(op: Op, graph: Graph, batch: Batch, inputs: list[Array]) -> Array:
    reduce: dict[str, Callable[[Array], Array]] = {
        "mean": lambda x: x.astype(np.float64).mean(axis=0),
        "cls": lambda x: x[0],
        "max": lambda x: x.max(axis=0),
    }
    return np.stack([reduce[op["kind"]](inputs[0][tokens]) for tokens in batch.sequences()])


def select(op: Op, graph: Graph, batch: Batch, inputs: list[Array]) -> Array:
    chosen: Array = inputs[0][batch.rows]
    return chosen


def normalize(op: Op, graph: Graph, batch: Batch, inputs: list[Array]) -> Array:
    x = inputs[0].astype(np.float64)
    unit: Array = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    return unit


OPERATORS: dict[str, Callable[[Op, Graph, Batch, list[Array]], Array]] = {
    "embed": embed,
    "norm": norm,
    "linear": linear,
    "attention": attention,
    "pool": pool,
    "select": select,
    "normalize": normalize,
}

"""Heads, states and attention: softmax by tiles of keys, in the order in which the kernels take them."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..graph import Array, Graph, Op
from ..hadamard import hadamard
from .batch import Batch
from .rows import quantize

KEY_TILE, KEY_SPLIT = 128, 1024
LOG2E = math.log2(math.e)


class Heads(NamedTuple):
    """int8 heads [heads, rows, head_dim] as whole numbers in float64, and their scales [heads, rows]."""

    q: Array
    scale: Array


def heads_of(x: Array, head_dim: int) -> Array:
    """[rows, heads · head_dim] → [heads, rows, head_dim]."""
    heads: Array = x.reshape(len(x), -1, head_dim).swapaxes(0, 1)
    return heads


def rope(op: Op, graph: Graph, batch: Batch, of: str, inputs: list[Array]) -> Array:
    x = heads_of(inputs[0].astype(np.float64), op["head_dim"])
    half = op["rotated"] // 2
    frequencies = graph.params[op["frequencies"]].astype(np.float32)
    angle = (batch.positions(of).astype(np.float32)[:, None] * frequencies).astype(np.float64)
    cosine, sine = np.cos(angle) * op["factor"], np.sin(angle) * op["factor"]
    first, second, rest = np.split(x, [half, 2 * half], axis=2)
    turned = np.concatenate([first * cosine - second * sine, second * cosine + first * sine, rest], axis=2)
    rows: Array = turned.swapaxes(0, 1).reshape(len(inputs[0]), -1)
    return rows


def quantize_heads(op: Op, graph: Graph, batch: Batch, of: str, inputs: list[Array]) -> Heads:
    return Heads(*quantize(hadamard(heads_of(inputs[0], op["head_dim"]), op.get("rotate", 0))))


def store(op: Op, graph: Graph, batch: Batch, of: str, inputs: list[Array]) -> None:
    dtype = next(state["dtype"] for state in graph.states if state["name"] == op["state"])
    k, v = (_halves(x) if dtype == "fp16" else x for x in inputs)
    batch.states[op["state"]] = k, v


def _halves(x: Array) -> Array:
    """The nearest fp16 that is finite, as float32."""
    return np.clip(x.astype(np.float32), -65504, 65504).astype(np.float16).astype(np.float32)


def visible(op: Op, length: int) -> Array:
    """Boolean [queries, keys]: which keys of its sequence each query sees."""
    distance = np.arange(length)[:, None] - np.arange(length)
    seen = np.ones((length, length), bool)
    if op.get("left", -1) >= 0:
        seen &= distance <= op["left"]
    if op.get("right", -1) >= 0:
        seen &= -distance <= op["right"]
    if op.get("causal"):
        seen &= distance >= 0
    return seen


def walks(op: Op, length: int) -> list[tuple[Array, int]]:
    """Boolean [queries, keys] of each walk over keys, global rows apart, and how often a key counts that is seen."""
    if not op.get("block") or length <= op.get("block_dense", 0):
        return [(visible(op, length), 1)]
    blocks, globals = -(-length // op["block"]), op.get("block_globals", 0)
    number = np.arange(length) // op["block"]
    query, key, last = number[:, None], number[None], max(blocks - globals, globals)
    whole = (query < globals) | (query >= last)
    near = (abs(query - key) <= op.get("block_window", 0)) & (key >= globals) & (key < last)
    sparse = [(key < globals, 1 + op.get("block_repeats", 0)), (near, 1), (key >= last, 1)]
    return [(whole & (key >= 0), 1), *((seen & ~whole, times) for seen, times in sparse)]


def attention(op: Op, graph: Graph, batch: Batch, of: str, inputs: list[Any]) -> Array:
    """Its rows that are global see every key; the others the keys of these, then those of their range behind them."""
    state = next(state for state in graph.states if state["name"] == op["state"])
    head_dim, rotate = state["head_dim"], state.get("rotate", 0)
    if state["domain"] != of:
        return _attend_across(op, graph, state, batch, of, inputs[0])
    queries = [x if isinstance(x, Heads) else heads_of(x, head_dim) for x in (inputs[0], inputs[int("global_q" in op)])]
    heads = len(queries[0].q if isinstance(queries[0], Heads) else queries[0])
    states = [batch.states[name] for name in (op["state"], op.get("global_state") or op["state"])]
    result = np.empty((len(states[0][0]), heads * head_dim), np.float32)
    for sequence, tokens in enumerate(batch.sequences[of]):
        length = tokens.stop - tokens.start
        bias = np.zeros((1, 1, 1), np.float32)
        if "bias" in op:
            distance = np.arange(length)[:, None] - np.arange(length)
            bias = graph.params[op["bias"]][:, distance + graph.max_rows(of) - 1]
        if "pair_bias" in op:
            bias = graph.params[op["pair_bias"]].swapaxes(1, 2)[:, :length, :length]
        if "sizes" in op:
            bias = bias + inputs[-1][sequence][-length:]
        bias, columns = np.broadcast_to(bias, (heads, length, length)), np.arange(length)
        steps = walks(op, length)
        if "keys" in op and (keys := batch.inputs[op["keys"]][sequence]):
            within = length - op["left"] if op.get("left", -1) >= 0 else 0  # so that the last query sees one
            steps = [(seen & (columns < max(keys, within)), times) for seen, times in steps]
        count = op.get("globals", 0) + (batch.inputs[op["more_globals"]][sequence] if "more_globals" in op else 0)
        count = min(int(count), length)
        cap = op.get("softcap", 0.0)
        if count:
            everyone = (np.broadcast_to(columns < count, (length, length)), 1)
            steps = [everyone, *((seen & (columns >= count), times) for seen, times in steps)]
        for which, rows in enumerate((slice(count, length), slice(0, count))):
            if rows.start == rows.stop:
                continue
            q, chosen = queries[which], slice(tokens.start + rows.start, tokens.start + rows.stop)
            repeat = heads // state["heads"]
            k, v = (np.repeat(heads_of(x[tokens], head_dim), repeat, axis=0) for x in states[which])
            masks = [(np.ones((count, length), bool), 1)] if which else [(mask[rows], times) for mask, times in steps]
            if isinstance(q, Heads):
                part = Heads(q.q[:, chosen], q.scale[:, chosen])
                k, scale = hadamard(k, rotate), op["scale"] / max(rotate, 1)
                largest = (1 << 14) - 1 if op.get("fine") else 127
                mixed = _attend_int8(part, k, v, scale, bias[:, rows], *masks, cap=cap, steps=largest)
            else:
                mixed = _attend_fp32(q[:, chosen], k, v, op["scale"], bias[:, rows], *masks, cap=cap)
            result[chosen] = mixed.swapaxes(0, 1).reshape(chosen.stop - chosen.start, -1)
    return result


def _attend_across(op: Op, graph: Graph, state: dict[str, Any], batch: Batch, of: str, given: Any) -> Array:
    """Rows of one domain to the keys of their sequence of another: all, but where that summarizes their blocks."""
    keyed = next(domain for domain in graph.domains if domain["name"] == state["domain"])
    size = keyed.get("summarized", 0) if keyed.get("of") == of else 0
    head_dim, rotate = state["head_dim"], state.get("rotate", 0)
    q = given if isinstance(given, Heads) else heads_of(given, head_dim)
    heads = len(q.q if isinstance(q, Heads) else q)
    result = np.empty((batch.rows(of), heads * head_dim), np.float32)
    for rows, keys in zip(batch.sequences[of], batch.sequences[state["domain"]], strict=True):
        k, v = (np.repeat(heads_of(x[keys], head_dim), heads // state["heads"], 0) for x in batch.states[op["state"]])
        shape = (rows.stop - rows.start, keys.stop - keys.start)
        seen, bias, cap = [(np.ones(shape, bool), 1)], np.zeros((heads, *shape), np.float32), op.get("softcap", 0.0)
        if size:
            seen, bias = _with_summaries(op, graph, size, graph.max_rows(state["domain"]), bias)
        if isinstance(q, Heads):
            k, scale = hadamard(k, rotate), op["scale"] / max(rotate, 1)
            mixed = _attend_int8(Heads(q.q[:, rows], q.scale[:, rows]), k, v, scale, bias, *seen, cap=cap)
        else:
            mixed = _attend_fp32(q[:, rows], k, v, op["scale"], bias, *seen, cap=cap)
        result[rows] = mixed.swapaxes(0, 1).reshape(shape[0], -1)
    return result


def _with_summaries(op: Op, graph: Graph, size: int, most: int, none: Array) -> tuple[list[tuple[Array, int]], Array]:
    """The walks of rows over the keys of their blocks of ``size`` and over their own, and the bias of both."""
    _, length, keys = none.shape
    blocks, row = keys - length, np.arange(length)[:, None]
    own = np.arange(keys) >= blocks
    near = np.concatenate([np.zeros((length, blocks), bool), visible(op, length)], axis=1)
    bias = none
    if "bias" in op:
        bias = graph.params[op["bias"]][:, row + blocks - np.arange(keys) + most - 1]
    if "summary_bias" in op:
        orphan = row >= blocks * size  # of the last block
        distance = np.where(own, 0, row - size * orphan - size * np.arange(keys))
        bias = np.where(own, bias, graph.params[op["summary_bias"]][:, distance + most - 1])
    return [(np.broadcast_to(~own, near.shape), 1), (near, 1)], bias


def _attend_fp32(
    q: Array, k: Array, v: Array, scale: float, bias: Array, *walks: tuple[Array, int], cap: float = 0.0
) -> Array:
    """``q`` [heads, queries, head_dim], ``k``, ``v`` [heads, keys, head_dim], ``bias`` [heads, queries, keys] → as q.

    Each of ``walks`` is bool [queries, keys], the keys that are seen, and how often they count.
    """
    scores = q.astype(np.float64) @ k.swapaxes(1, 2).astype(np.float64) * scale
    scores = (cap * np.tanh(scores / cap) if cap else scores) + bias
    often = sum(seen * times for seen, times in walks)
    scores = np.where(often, scores, -np.inf)
    p = often * np.exp(scores - scores.max(axis=2, keepdims=True))
    mixed: Array = p @ v.astype(np.float64) / p.sum(axis=2, keepdims=True)
    return mixed


def _attend_int8(
    queries: Heads,
    k: Array,
    v: Array,
    scale: float,
    bias: Array,
    *walks: tuple[Array, int],
    cap: float = 0.0,
    steps: int = 127,
) -> Array:
    """As ``_attend_fp32``, over key tiles of 128 that are merged in order within splits of 1,024 of a walk, and so are
    these. ``steps`` is what the largest weight of a tile is rounded to.
    """
    (q, q_scale), (k, k_scale), (v, v_scale) = queries, quantize(k), quantize(v)
    q_scale = q_scale * np.float32(scale * LOG2E)
    whole = _Softmax.empty(q.shape)
    for (seen, times), begin in itertools.product(walks, range(0, k.shape[1], KEY_TILE)):
        if begin % KEY_SPLIT == 0:
            split = _Softmax.empty(q.shape)
        tile = slice(begin, begin + KEY_TILE)
        i = np.flatnonzero(seen[:, tile].any(axis=1))  # the queries that see a key of this tile
        scores = (q[:, i] @ k[:, tile].swapaxes(1, 2)).astype(np.float32) * k_scale[:, None, tile] * q_scale[:, i, None]
        if cap:
            scores = np.float32(cap * LOG2E) * np.tanh(scores / np.float32(cap * LOG2E))
        scores = np.where(seen[i, tile], scores + bias[:, i, tile] * np.float32(LOG2E), np.float32(-np.inf))
        tile_highest = scores.max(axis=2, initial=-np.inf)
        p = np.exp2(scores - tile_highest[:, :, None])
        w = p * v_scale[:, None, tile]
        w_highest = w.max(axis=2, keepdims=True)
        quantized = np.rint(w * (np.float32(steps) / np.where(w_highest > 0, w_highest, 1))).astype(np.float64)
        mixed = (quantized @ v[:, tile]).astype(np.float32) * (w_highest / np.float32(steps))
        split.merge(i, tile_highest, p.sum(axis=2), mixed)
        if begin + KEY_TILE >= k.shape[1] or (begin + KEY_TILE) % KEY_SPLIT == 0:
            i = np.flatnonzero(split.total.any(axis=0))
            whole.merge(i, split.highest[:, i], split.total[:, i] * times, split.result[:, i] * times)
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

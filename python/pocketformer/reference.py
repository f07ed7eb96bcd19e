"""A numpy interpreter of graphs, packed or plain: the oracle of the tests.

It follows docs/format.md word by word. Integer results are exact; sums of floats are taken in float64 and rounded once,
so it is at least as precise as the kernels. Written to be read, not to be fast.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from .graph import READS, Array, Graph, Op
from .hadamard import hadamard
from .packing import scales_of, unpack_graph

KEY_TILE, KEY_SPLIT = 128, 1024
LOG2E = math.log2(math.e)

Hook = Callable[[Op, list[Array], Array], None]
"""Called after each operator that writes a value with the operator, the values that it reads and its result."""


class Heads(NamedTuple):
    """int8 heads [heads, rows, head_dim] as whole numbers in float64, and their scales [heads, rows]."""

    q: Array
    scale: Array


@dataclass
class Batch:
    """What the caller gives: indices and rows by input, and the rows of every sequence by domain."""

    inputs: dict[str, Array]
    sequences: dict[str, list[slice]]
    selected: dict[str, Array]
    states: dict[str, tuple[Array, Array]]

    def rows(self, domain: str) -> int:
        return self.sequences[domain][-1].stop if self.sequences[domain] else 0

    def positions(self, domain: str) -> Array:
        return np.concatenate([np.arange(rows.stop - rows.start) for rows in self.sequences[domain]])


def run(graph: Graph, inputs: Mapping[str, ArrayLike | None], hooks: Hook | None = None) -> Array:
    """The graph's output, float32 [rows of its domain, width].

    ``inputs`` holds what ``_core.Session.run`` takes: an array for each input, offsets [sequences + 1] for a ragged
    domain, rows for a selected one (none where it is absent). Raises ValueError when they do not fit each other or the
    graph.
    """
    plain = unpack_graph(graph)
    batch = make_batch(graph, inputs)
    last_use = {name: index for index, op in enumerate(plain.ops) for name in _inputs(op)}
    last_use[plain.output] = len(plain.ops)
    values: dict[str, Any] = {e["name"]: batch.inputs[e["name"]] for e in graph.inputs if e["dtype"] == "f32"}
    domains = {entry["name"]: entry["domain"] for entry in graph.inputs}
    for index, op in enumerate(plain.ops):
        read = [values[name] for name in _inputs(op)]
        of = next((domains[name] for name in _inputs(op)), "")
        if op["op"] == "embed" and not of:
            of = next(domains[table["index"]] for table in op["tables"] if table["index"] != "positions")
        result = OPERATORS[op["op"]](op, plain, batch, of, read)
        if "out" in op:
            values[op["out"]] = result.astype(np.float32, copy=False) if isinstance(result, np.ndarray) else result
            domains[op["out"]] = op.get("domain", of)
            if hooks and isinstance(result, np.ndarray):
                hooks(op, read, values[op["out"]])
        for name in (*([op["out"]] if "out" in op else []), *_inputs(op)):
            if last_use.get(name, index) <= index:
                values.pop(name, None)
    output: Array = values[plain.output]
    return output


def _inputs(op: Op) -> list[str]:
    return [op[field] for field in READS if op.get(field) is not None]


def make_batch(graph: Graph, given: Mapping[str, ArrayLike | None]) -> Batch:
    def index(name: str, limit: int) -> Array:
        array = np.asarray(given.get(name, ()), np.int64).reshape(-1)
        if array.size and not (array.min() >= 0 and array.max() < limit):
            raise ValueError(f"{name} holds {array.min()}…{array.max()}; it must lie in 0…{limit - 1}")
        return array

    batch = Batch({}, {}, {}, {})
    count = 0
    for domain in graph.domains:
        name, of = domain["name"], domain.get("of", "")
        if domain["kind"] == "ragged" and not of:
            lengths = np.diff(np.asarray(given[name], np.int64))
            if lengths.size and not (lengths.min() >= 1 and lengths.max() <= domain["max_rows"]):
                raise ValueError(
                    f"{name} has lengths {lengths.min()}…{lengths.max()}; they must lie in 1…{domain['max_rows']}"
                )
        elif domain["kind"] == "ragged":
            lengths = np.array([rows.stop - rows.start for rows in batch.sequences[of]], np.int64)
            lengths += domain.get("prepended", 0) - domain.get("merged", 0)
        elif domain["kind"] == "grid":
            size = domain["height"] * domain["width"]
            filled = [len(np.asarray(given[entry["name"]])) for entry in graph.inputs if entry["domain"] == name]
            lengths = np.full(filled[0] // size if filled else count, size)
        elif domain["kind"] == "one":
            lengths = np.ones(count, np.int64)
        else:
            batch.selected[name] = index(name, batch.rows(of))
            continue
        count = len(lengths)
        ends = np.cumsum(lengths)
        batch.sequences[name] = [slice(int(e - n), int(e)) for e, n in zip(ends, lengths, strict=True)]
    for entry in graph.inputs:
        name, rows = entry["name"], batch.rows(entry["domain"])
        if entry["dtype"] == "f32":
            batch.inputs[name] = np.asarray(given[name], np.float32)
        elif given.get(name) is None and entry.get("optional"):
            batch.inputs[name] = np.zeros(rows, np.int64)
        else:
            batch.inputs[name] = index(name, entry["limit"])
        if len(batch.inputs[name]) != rows:
            raise ValueError(f"{name} has {len(batch.inputs[name])} entries; the sequences have {rows}")
    return batch


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
    inverse = np.divide(np.float32(127), amax, out=np.zeros_like(amax), where=amax > np.float32(1e-36))
    return np.rint(x * inverse).astype(np.float64), amax[..., 0] * np.float32(1 / 127)


def embed(op: Op, graph: Graph, batch: Batch, of: str, inputs: list[Array]) -> Array:
    total = inputs[0] if inputs else np.zeros((), np.float32)
    for table in op["tables"]:
        name = table["weight"]
        if table["index"] == "positions":
            index = batch.positions(of) + table.get("offset", 0)
        else:
            index = batch.inputs[table["index"]]
        found = graph.params[f"{name}.weight"][index]
        if f"{name}.codebook" in graph.params:
            found = graph.params[f"{name}.codebook"][found]
        found = found.astype(np.float32)
        if f"{name}.scale" in graph.params:
            scale, minimum = scales_of(name, graph.params)
            parts = found.reshape(len(found), *scale.shape[1:], -1) * scale[index][..., None]
            found = (parts if minimum is None else parts + minimum[index][..., None]).reshape(found.shape)
        total = total + hadamard(found, graph.weights[name].get("rotate", 0))
    return total * np.float32(op["scale"]) if "scale" in op else total


def norm(op: Op, graph: Graph, batch: Batch, of: str, inputs: list[Array]) -> Array:
    x = inputs[0].astype(np.float64).reshape(len(inputs[0]), op.get("heads", 1), -1)
    if op["kind"] == "layer":
        x = x - x.mean(axis=2, keepdims=True)
    x = x / np.sqrt(np.square(x).mean(axis=2, keepdims=True) + op["eps"])
    x = x * graph.params[op["weight"]] + (graph.params[op["bias"]] if "bias" in op else 0)
    scaled: Array = x.reshape(inputs[0].shape).astype(np.float32)
    return scaled + inputs[1] if "residual" in op else scaled


def linear(op: Op, graph: Graph, batch: Batch, of: str, inputs: list[Array]) -> Array:
    x, *rest = inputs
    facts = graph.weights[op["weight"]]
    y = (_product_groups if facts.get("group") else PRODUCTS[facts["format"]])(x, op["weight"], graph)
    if "bias" in op:
        y = y + graph.params[op["bias"]].astype(np.float64)
    y = ACTIVATIONS[op.get("activation", "none")](y.astype(np.float32).astype(np.float64)).astype(np.float32)
    if "multiply" in op:
        y = y * rest.pop(0)
    return y + rest.pop(0) if "residual" in op else y


def _product_f32(x: Array, name: str, graph: Graph) -> Array:
    product: Array = x.astype(np.float64) @ graph.params[f"{name}.weight"].T.astype(np.float64)
    return product


def _product_i8(x: Array, name: str, graph: Graph) -> Array:
    q, scale = quantize(hadamard(x, graph.weights[name].get("rotate", 0)))
    sums = (q @ graph.params[f"{name}.weight"].T.astype(np.float64)).astype(np.float32)
    product: Array = sums * graph.params[f"{name}.scale"] * scale[:, None].astype(np.float64)
    return product


def _product_groups(x: Array, name: str, graph: Graph) -> Array:
    """Exact within each group, whose sums are scaled and added; a minimum counts for each unit of its inputs."""
    facts, values = graph.weights[name], graph.params[f"{name}.weight"]
    scales, minima = scales_of(name, graph.params)
    n, k = values.shape
    groups = k // facts["group"] if facts.get("group") else 1
    if f"{name}.codebook" in graph.params:
        values = graph.params[f"{name}.codebook"][values]
    rotated = hadamard(x, facts.get("rotate", 0))
    by_group = facts.get("inputs") == "group"
    q, scale = quantize(rotated.reshape(len(x), groups, -1) if by_group else rotated)
    parts = q.reshape(len(q), groups, -1)
    unit = scale.reshape(len(q), -1).astype(np.float64)  # a row's, or its groups'
    weight = values.astype(np.float64).reshape(n, groups, -1)
    sums = np.einsum("mgk,ngk->mng", parts, weight) * unit[:, None]
    product: Array = (sums * scales.reshape(n, groups)).sum(axis=2)
    if minima is not None:
        product += (parts.sum(axis=2) * unit) @ minima.reshape(n, groups).T
    return product


PRODUCTS: dict[str, Callable[[Array, str, Graph], Array]] = {
    "f32": _product_f32,
    "f16": _product_f32,
    "i8": _product_i8,
    "i4": _product_groups,
}


def columns(op: Op, graph: Graph, batch: Batch, of: str, inputs: list[Array]) -> Array:
    part: Array = inputs[0][:, op["begin"] : op["begin"] + op["width"]]
    return part


def rope(op: Op, graph: Graph, batch: Batch, of: str, inputs: list[Array]) -> Array:
    x = _heads(inputs[0].astype(np.float64), op["head_dim"])
    half = op["rotated"] // 2
    frequencies = graph.params[op["frequencies"]].astype(np.float32)
    angle = (batch.positions(of).astype(np.float32)[:, None] * frequencies).astype(np.float64)
    cosine, sine = np.cos(angle) * op["factor"], np.sin(angle) * op["factor"]
    first, second, rest = np.split(x, [half, 2 * half], axis=2)
    turned = np.concatenate([first * cosine - second * sine, second * cosine + first * sine, rest], axis=2)
    rows: Array = turned.swapaxes(0, 1).reshape(len(inputs[0]), -1)
    return rows


def _size(graph: Graph, domain: str) -> tuple[int, int]:
    grid = next(entry for entry in graph.domains if entry["name"] == domain)
    return grid["height"], grid["width"]


def _windows(op: Op, graph: Graph, of: str, x: Array) -> Array:
    """[images, rows, columns, height, width, channels]."""
    images = x.reshape(-1, *_size(graph, of), x.shape[1])
    padding, stride = op.get("padding", 0), op.get("stride", 1)
    padded = np.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (op["height"], op["width"]), axis=(1, 2))
    picked: Array = windows[:, ::stride, ::stride].transpose(0, 1, 2, 4, 5, 3)
    return picked


def unfold(op: Op, graph: Graph, batch: Batch, of: str, inputs: list[Array]) -> Array:
    return _windows(op, graph, of, inputs[0]).reshape(-1, op["height"] * op["width"] * inputs[0].shape[1])


def fold(op: Op, graph: Graph, batch: Batch, of: str, inputs: list[Array]) -> Array:
    (down, across), height, width = _size(graph, of), op["height"], op["width"]
    pixels = inputs[0].reshape(-1, down, across, height, width, inputs[0].shape[1] // (height * width))
    rows: Array = pixels.swapaxes(2, 3).reshape(-1, pixels.shape[-1])
    return rows


def depthwise(op: Op, graph: Graph, batch: Batch, of: str, inputs: list[Array]) -> Array:
    channels = inputs[0].shape[1]
    windows = _windows(op, graph, of, inputs[0]).reshape(-1, op["height"] * op["width"], channels)
    y = (windows.astype(np.float64) * graph.params[op["weight"]]).sum(axis=1)
    if "bias" in op:
        y = y + graph.params[op["bias"]]
    return ACTIVATIONS[op.get("activation", "none")](y.astype(np.float32).astype(np.float64))


def resize(op: Op, graph: Graph, batch: Batch, of: str, inputs: list[Array]) -> Array:
    images = inputs[0].astype(np.float64).reshape(-1, *_size(graph, of), inputs[0].shape[1])
    for axis, to in zip((1, 2), _size(graph, op["domain"]), strict=True):
        size = images.shape[axis]
        place = np.maximum((np.arange(to) + 0.5) * size / to - 0.5, 0)
        low = np.minimum(place.astype(np.int64), size - 1)
        high = np.minimum(low + 1, size - 1)
        share = np.expand_dims(place - low, [i for i in range(4) if i != axis])
        images = images.take(low, axis) * (1 - share) + images.take(high, axis) * share
    return images.reshape(-1, inputs[0].shape[1])


def prepend(op: Op, graph: Graph, batch: Batch, of: str, inputs: list[Array]) -> Array:
    first = graph.params[op["rows"]]
    return np.concatenate([part for rows in batch.sequences[of] for part in (first, inputs[0][rows])])


def head_mean(op: Op, graph: Graph, batch: Batch, of: str, inputs: list[Array]) -> Array:
    mean: Array = inputs[0].astype(np.float64).reshape(len(inputs[0]), op["heads"], -1).mean(axis=1)
    return mean


def match(op: Op, graph: Graph, batch: Batch, of: str, inputs: list[Array]) -> Array:
    """For each sequence the place of each token among those that remain, how many each of these is, and the logarithms
    of that."""
    kept, result = op.get("kept", 0), []
    for sequence, rows in enumerate(batch.sequences[of]):
        x = inputs[0][rows].astype(np.float64)
        even, odd = (np.array([i for i in range(kept, len(x)) if i % 2 == part]) for part in (0, 1))
        alike = x[even] @ x[odd].T
        target = odd[alike.argmax(axis=1)]
        gone = np.argsort(-alike.max(axis=1), kind="stable")[: op["merged"]]
        stay = [*range(kept), *np.delete(even, gone), *odd]
        places = np.zeros(len(x), np.int64)
        places[stay] = np.arange(len(stay))
        places[even[gone]] = places[target[gone]]
        before = inputs[1][sequence][-2 * len(x) : -len(x)] if "after" in op else np.ones(len(x))
        sizes = np.bincount(places, before).astype(np.int64)
        result.append(np.concatenate([places, sizes, graph.params[op["logarithms"]][sizes - 1]]))
    return np.stack(result)


def merge(op: Op, graph: Graph, batch: Batch, of: str, inputs: list[Array]) -> Array:
    result = []
    for sequence, rows in enumerate(batch.sequences[of]):
        x, matches = inputs[0][rows].astype(np.float64), inputs[1][sequence]
        places = matches[: len(x)].astype(np.int64)
        before = inputs[2][sequence][-2 * len(x) : -len(x)] if "after" in op else np.ones(len(x))
        count = (len(matches) - len(x)) // 2
        total = np.zeros((count, x.shape[1]))
        np.add.at(total, places, x * before[:, None])
        result.append(total / np.bincount(places, before)[:, None])
    return np.concatenate(result)


def moments(op: Op, graph: Graph, batch: Batch, of: str, inputs: list[Array]) -> Array:
    parts = [inputs[0][rows].astype(np.float64) for rows in batch.sequences[of]]
    return np.array([(x.mean(), 1 / np.sqrt(x.var() + op["eps"])) for x in parts]).reshape(-1, 2)


def standardize(op: Op, graph: Graph, batch: Batch, of: str, inputs: list[Array]) -> Array:
    x, by = inputs[0].astype(np.float64), _spread(inputs[1].astype(np.float64), batch, of)
    scaled: Array = (x - by[:, :1]) * by[:, 1:] * graph.params[op["weight"]] + graph.params[op["bias"]]
    return scaled


def soft_pool(op: Op, graph: Graph, batch: Batch, of: str, inputs: list[Array]) -> Array:
    result = []
    for rows in batch.sequences[of]:
        x, scores = (part[rows].astype(np.float64) for part in inputs)
        shares = np.exp(scores - scores.max(axis=0))
        parts = (shares / shares.sum(axis=0))[:, :, None] * x.reshape(*scores.shape, -1)
        result.append(parts.sum(axis=0).reshape(-1))
    return np.stack(result)


def spread(op: Op, graph: Graph, batch: Batch, of: str, inputs: list[Array]) -> Array:
    return _spread(inputs[0], batch, op["domain"])


def _spread(x: Array, batch: Batch, domain: str) -> Array:
    """Rows of sequences, for each of their rows of ``domain``."""
    return np.repeat(x, [rows.stop - rows.start for rows in batch.sequences[domain]], axis=0)


def average(op: Op, graph: Graph, batch: Batch, of: str, inputs: list[Array]) -> Array:
    x = inputs[0].astype(np.float64)
    sums, counts = (
        _windows(op, graph, of, values).reshape(-1, op["height"] * op["width"], x.shape[1]).sum(axis=1)
        for values in (x, np.ones_like(x))
    )
    mean: Array = sums / counts
    return x + graph.params[op["weight"]] * (mean - x) if "weight" in op else mean


def _heads(x: Array, head_dim: int) -> Array:
    """[rows, heads · head_dim] → [heads, rows, head_dim]."""
    heads: Array = x.reshape(len(x), -1, head_dim).swapaxes(0, 1)
    return heads


def quantize_heads(op: Op, graph: Graph, batch: Batch, of: str, inputs: list[Array]) -> Heads:
    return Heads(*quantize(hadamard(_heads(inputs[0], op["head_dim"]), op.get("rotate", 0))))


def store(op: Op, graph: Graph, batch: Batch, of: str, inputs: list[Array]) -> None:
    batch.states[op["state"]] = (inputs[0], inputs[1])


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


def attention(op: Op, graph: Graph, batch: Batch, of: str, inputs: list[Any]) -> Array:
    """Its rows that are global see every key; the others the keys of these, then those of their range behind them."""
    state = next(state for state in graph.states if state["name"] == op["state"])
    head_dim, rotate = state["head_dim"], state.get("rotate", 0)
    queries = [x if isinstance(x, Heads) else _heads(x, head_dim) for x in (inputs[0], inputs[int("global_q" in op)])]
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
        bias, seen, columns = np.broadcast_to(bias, (heads, length, length)), visible(op, length), np.arange(length)
        if "keys" in op and (keys := batch.inputs[op["keys"]][sequence]):
            within = length - op["left"] if op.get("left", -1) >= 0 else 0  # so that the last query sees one
            seen = seen & (columns < max(keys, within))
        count = op.get("globals", 0) + (batch.inputs[op["more_globals"]][sequence] if "more_globals" in op else 0)
        count = min(int(count), length)
        cap = op.get("softcap", 0.0)
        walks = [np.broadcast_to(columns < count, seen.shape), seen & (columns >= count)] if count else [seen]
        for which, rows in enumerate((slice(count, length), slice(0, count))):
            if rows.start == rows.stop:
                continue
            q, chosen = queries[which], slice(tokens.start + rows.start, tokens.start + rows.stop)
            repeat = heads // state["heads"]
            k, v = (np.repeat(_heads(x[tokens], head_dim), repeat, axis=0) for x in states[which])
            masks = [np.ones((count, length), bool)] if which else [mask[rows] for mask in walks]
            if isinstance(q, Heads):
                part = Heads(q.q[:, chosen], q.scale[:, chosen])
                k, scale = hadamard(k, rotate), op["scale"] / max(rotate, 1)
                mixed = _attend_int8(part, k, v, scale, bias[:, rows], *masks, cap=cap)
            else:
                mixed = _attend_fp32(q[:, chosen], k, v, op["scale"], bias[:, rows], *masks, cap=cap)
            result[chosen] = mixed.swapaxes(0, 1).reshape(chosen.stop - chosen.start, -1)
    return result


def _attend_fp32(q: Array, k: Array, v: Array, scale: float, bias: Array, *walks: Array, cap: float = 0.0) -> Array:
    """``q`` [heads, queries, head_dim], ``k``, ``v`` [heads, keys, head_dim], ``bias`` [heads, queries, keys] → as q.

    Each of ``walks`` bool [queries, keys] tells the keys that are seen once.
    """
    scores = q.astype(np.float64) @ k.swapaxes(1, 2).astype(np.float64) * scale
    scores = (cap * np.tanh(scores / cap) if cap else scores) + bias
    often = np.sum(walks, axis=0)
    scores = np.where(often, scores, -np.inf)
    p = often * np.exp(scores - scores.max(axis=2, keepdims=True))
    mixed: Array = p @ v.astype(np.float64) / p.sum(axis=2, keepdims=True)
    return mixed


def _attend_int8(
    queries: Heads, k: Array, v: Array, scale: float, bias: Array, *walks: Array, cap: float = 0.0
) -> Array:
    """As ``_attend_fp32``, over key tiles of 128 that are merged in order within splits of 1,024 of a walk, and so are
    these.
    """
    (q, q_scale), (k, k_scale), (v, v_scale) = queries, quantize(k), quantize(v)
    q_scale = q_scale * np.float32(scale * LOG2E)
    whole = _Softmax.empty(q.shape)
    for seen, begin in itertools.product(walks, range(0, k.shape[1], KEY_TILE)):
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
        quantized = np.rint(w * (np.float32(127) / np.where(w_highest > 0, w_highest, 1))).astype(np.float64)
        mixed = (quantized @ v[:, tile]).astype(np.float32) * (w_highest / np.float32(127))
        split.merge(i, tile_highest, p.sum(axis=2), mixed)
        if begin + KEY_TILE >= k.shape[1] or (begin + KEY_TILE) % KEY_SPLIT == 0:
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


def pool(op: Op, graph: Graph, batch: Batch, of: str, inputs: list[Array]) -> Array:
    reduce: dict[str, Callable[[Array, Array], Array]] = {
        "mean": lambda x, numbers: x.mean(axis=0),
        "cls": lambda x, numbers: x[0],
        "max": lambda x, numbers: x.max(axis=0),
        "last": lambda x, numbers: x[-1],
        "mean_sqrt": lambda x, numbers: x.sum(axis=0) / math.sqrt(len(x)),
        "weighted_mean": lambda x, numbers: numbers @ x / numbers.sum(),
    }
    skipped = batch.inputs[op["skip"]] if "skip" in op else np.zeros(len(batch.sequences[of]), np.int64)
    pooled = []
    for rows, skip in zip(batch.sequences[of], skipped, strict=True):
        x = inputs[0][rows].astype(np.float64)
        first = min(op.get("begin", 0) + int(skip), len(x) - 1)
        pooled.append(reduce[op["kind"]](x[first:], np.arange(first + 1.0, len(x) + 1)))
    return np.stack(pooled)


def concat(op: Op, graph: Graph, batch: Batch, of: str, inputs: list[Array]) -> Array:
    return np.concatenate(inputs, axis=1)


def select(op: Op, graph: Graph, batch: Batch, of: str, inputs: list[Array]) -> Array:
    chosen: Array = inputs[0][batch.selected[op["domain"]]]
    return chosen


def normalize(op: Op, graph: Graph, batch: Batch, of: str, inputs: list[Array]) -> Array:
    x = inputs[0].astype(np.float64)
    unit: Array = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    return unit


def softcap(op: Op, graph: Graph, batch: Batch, of: str, inputs: list[Array]) -> Array:
    capped: Array = op["cap"] * np.tanh(inputs[0].astype(np.float64) / op["cap"])
    return capped


OPERATORS: dict[str, Callable[[Op, Graph, Batch, str, list[Any]], Any]] = {
    "embed": embed,
    "norm": norm,
    "linear": linear,
    "columns": columns,
    "rope": rope,
    "quantize_heads": quantize_heads,
    "store": store,
    "attention": attention,
    "pool": pool,
    "select": select,
    "normalize": normalize,
    "unfold": unfold,
    "prepend": prepend,
    "concat": concat,
    "depthwise": depthwise,
    "fold": fold,
    "resize": resize,
    "softcap": softcap,
    "head_mean": head_mean,
    "match": match,
    "merge": merge,
    "moments": moments,
    "standardize": standardize,
    "soft_pool": soft_pool,
    "spread": spread,
    "average": average,
}

"""Operators on grids of pixels and patches, and on all tokens of an image."""

from __future__ import annotations

import numpy as np

from ..graph import Array, Graph, Op
from .batch import Batch
from .rows import ACTIVATIONS


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

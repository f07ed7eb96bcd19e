"""A plain fp32 graph in torch (extra ``tune``), so that what its parameters matter can be differentiated.

It computes what ``reference`` does, sequence by sequence, in float32 and with gradients.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from ..graph import Array, Graph, Op
from ..reference import Batch, make_batch, walks
from .dataflow import inputs

Tensor = Any


def import_torch() -> Any:
    """torch. Raises ImportError that names the extra where it is not installed."""
    try:
        return importlib.import_module("torch")
    except ImportError:
        raise ImportError("gradients are computed by torch: pip install 'pocketformer[tune]'") from None


BEYOND = {"softcap", "globals", "more_globals", "pair_bias", "sizes"}
"""Fields of attention that are not computed here."""


class Twin:
    """``graph``, whose linears are fp32, as a function with gradients.

    ``params`` are torch tensors by the graph's names; those that ``wanted`` names (None: all) require gradients.
    Raises ValueError for a graph that is quantized or has operators that are not known here.
    """

    def __init__(self, graph: Graph, wanted: Collection[str] | None = None) -> None:
        self.torch = import_torch()
        unknown = {op["op"] for op in graph.ops} - set(OPERATORS)
        unknown |= {f"attention with {field}" for op in graph.ops for field in BEYOND.intersection(op)}
        if unknown or any(facts["format"] != "f32" for facts in graph.weights.values()):
            what = ", ".join(sorted(unknown)) or "weights that are rounded"
            raise ValueError(f"the graph has {what}, of which gradients are not known; use another criterion")
        self.graph = graph
        self.params: dict[str, Tensor] = {
            name: self.torch.tensor(np.asarray(array, np.float32), requires_grad=wanted is None or name in wanted)
            for name, array in graph.params.items()
        }

    def __call__(self, given: Mapping[str, Array | None]) -> Tensor:
        """The output [rows, width] on what ``reference.run`` takes."""
        batch = make_batch(self.graph, given)
        values: dict[str, Tensor] = {
            entry["name"]: self.torch.from_numpy(batch.inputs[entry["name"]])
            for entry in self.graph.inputs
            if entry["dtype"] == "f32"
        }
        domains = {entry["name"]: entry["domain"] for entry in self.graph.inputs}
        for op in self.graph.ops:
            read = inputs(op)
            of = next((domains[name] for name in read), "")
            if op["op"] == "embed" and not of:
                of = op.get("domain") or next(
                    domains[table["index"]] for table in op["tables"] if table["index"] != "positions"
                )
            result = OPERATORS[op["op"]](self, op, batch, of, [values[name] for name in read])
            if "out" in op:
                values[op["out"]] = result
                domains[op["out"]] = op.get("domain", of)
        return values[self.graph.output]


def _embed(twin: Twin, op: Op, batch: Batch, of: str, read: list[Tensor]) -> Tensor:
    total = read[0] if read else 0.0
    for table in op["tables"]:
        if table["index"] == "positions":
            index = batch.positions(of) + table.get("offset", 0)
        else:
            index = batch.inputs[table["index"]]
        total = total + twin.params[f"{table['weight']}.weight"][twin.torch.from_numpy(index)]
    return total * op.get("scale", 1.0)


def _norm(twin: Twin, op: Op, batch: Batch, of: str, read: list[Tensor]) -> Tensor:
    x = read[0].reshape(len(read[0]), op.get("heads", 1), -1)
    if op["kind"] == "layer":
        x = x - x.mean(dim=2, keepdim=True)
    x = x * twin.torch.rsqrt(x.square().mean(dim=2, keepdim=True) + op["eps"]) * twin.params[op["weight"]]
    x = (x + twin.params[op["bias"]] if "bias" in op else x).reshape(read[0].shape)
    return x + read[1] if "residual" in op else x


def _linear(twin: Twin, op: Op, batch: Batch, of: str, read: list[Tensor]) -> Tensor:
    x, *rest = read
    bias = twin.params[op["bias"]] if "bias" in op else None
    y = _activation(twin.torch, op.get("activation", "none"))(
        twin.torch.nn.functional.linear(x, twin.params[f"{op['weight']}.weight"], bias)
    )
    if "multiply" in op:
        y = y * rest.pop(0)
    return y + rest.pop(0) if "residual" in op else y


def _activation(torch: Any, name: str) -> Callable[[Tensor], Tensor]:
    of = torch.nn.functional
    known: dict[str, Callable[[Tensor], Tensor]] = {
        "none": lambda x: x,
        "gelu": of.gelu,
        "gelu_tanh": lambda x: of.gelu(x, approximate="tanh"),
        "relu": of.relu,
        "silu": of.silu,
        "tanh": torch.tanh,
    }
    return known[name]


def _columns(twin: Twin, op: Op, batch: Batch, of: str, read: list[Tensor]) -> Tensor:
    return read[0][:, op["begin"] : op["begin"] + op["width"]]


def _heads(x: Tensor, head_dim: int) -> Tensor:
    """[rows, heads · head_dim] → [heads, rows, head_dim]."""
    return x.reshape(len(x), -1, head_dim).transpose(0, 1)


def _rows(x: Tensor) -> Tensor:
    """[heads, rows, head_dim] → [rows, heads · head_dim]."""
    return x.transpose(0, 1).reshape(x.shape[1], -1)


def _rope(twin: Twin, op: Op, batch: Batch, of: str, read: list[Tensor]) -> Tensor:
    x, half = _heads(read[0], op["head_dim"]), op["rotated"] // 2
    positions = twin.torch.from_numpy(batch.positions(of)).float()
    angle = (positions[:, None] * twin.params[op["frequencies"]]).double()
    cosine, sine = (part.float() * op["factor"] for part in (angle.cos(), angle.sin()))
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    turned = [first * cosine - second * sine, second * cosine + first * sine, rest]
    return _rows(twin.torch.cat(turned, dim=2))


def _unfold(twin: Twin, op: Op, batch: Batch, of: str, read: list[Tensor]) -> Tensor:
    grid = next(domain for domain in twin.graph.domains if domain["name"] == of)
    channels, padding = read[0].shape[1], op.get("padding", 0)
    images = read[0].reshape(-1, grid["height"], grid["width"], channels)
    padded = twin.torch.nn.functional.pad(images, (0, 0, padding, padding, padding, padding))
    windows = padded.unfold(1, op["height"], op.get("stride", 1)).unfold(2, op["width"], op.get("stride", 1))
    return windows.permute(0, 1, 2, 4, 5, 3).reshape(-1, op["height"] * op["width"] * channels)


def _prepend(twin: Twin, op: Op, batch: Batch, of: str, read: list[Tensor]) -> Tensor:
    first = twin.params[op["rows"]]
    return twin.torch.cat([part for rows in batch.sequences[of] for part in (first, read[0][rows])])


def _store(twin: Twin, op: Op, batch: Batch, of: str, read: list[Tensor]) -> None:
    batch.states[op["state"]] = (read[0], read[1])


def _attention(twin: Twin, op: Op, batch: Batch, of: str, read: list[Tensor]) -> Tensor:
    torch = twin.torch
    state = next(state for state in twin.graph.states if state["name"] == op["state"])
    q, k, v = (_heads(x, state["head_dim"]) for x in (read[0], *batch.states[op["state"]]))
    k, v = (x.repeat_interleave(len(q) // state["heads"], dim=0) for x in (k, v))
    mixed = []
    for sequence, tokens in enumerate(batch.sequences[of]):
        length = tokens.stop - tokens.start
        scores = q[:, tokens] @ k[:, tokens].transpose(1, 2) * op["scale"]
        if "bias" in op:
            distance = np.arange(length)[:, None] - np.arange(length) + twin.graph.max_rows(of) - 1
            scores = scores + twin.params[op["bias"]][:, torch.from_numpy(distance)]
        often = sum(seen * times for seen, times in walks(op, length))
        if "keys" in op and (keys := batch.inputs[op["keys"]][sequence]):
            within = length - op["left"] if op.get("left", -1) >= 0 else 0
            often = often * (np.arange(length) < max(keys, within))
        scores = scores + torch.from_numpy(often).to(scores.dtype).log()
        mixed.append(scores.softmax(dim=2) @ v[:, tokens])
    return _rows(torch.cat(mixed, dim=1))


POOLS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean": lambda x, numbers: x.mean(dim=0),
    "cls": lambda x, numbers: x[0],
    "max": lambda x, numbers: x.amax(dim=0),
    "last": lambda x, numbers: x[-1],
    "mean_sqrt": lambda x, numbers: x.sum(dim=0) / math.sqrt(len(x)),
    "weighted_mean": lambda x, numbers: numbers @ x / numbers.sum(),
}


def _pool(twin: Twin, op: Op, batch: Batch, of: str, read: list[Tensor]) -> Tensor:
    skipped = batch.inputs[op["skip"]] if "skip" in op else np.zeros(len(batch.sequences[of]), np.int64)
    pooled = []
    for rows, skip in zip(batch.sequences[of], skipped, strict=True):
        first = min(op.get("begin", 0) + int(skip), rows.stop - rows.start - 1)
        numbers = twin.torch.arange(first + 1.0, rows.stop - rows.start + 1)
        pooled.append(POOLS[op["kind"]](read[0][rows][first:], numbers))
    return twin.torch.stack(pooled)


def _concat(twin: Twin, op: Op, batch: Batch, of: str, read: list[Tensor]) -> Tensor:
    return twin.torch.cat(read, dim=1)


def _select(twin: Twin, op: Op, batch: Batch, of: str, read: list[Tensor]) -> Tensor:
    return read[0][twin.torch.from_numpy(batch.selected[op["domain"]])]


def _normalize(twin: Twin, op: Op, batch: Batch, of: str, read: list[Tensor]) -> Tensor:
    return twin.torch.nn.functional.normalize(read[0], dim=1, eps=1e-12)


OPERATORS: Mapping[str, Callable[[Twin, Op, Batch, str, list[Tensor]], Tensor | None]] = {
    "embed": _embed,
    "norm": _norm,
    "linear": _linear,
    "columns": _columns,
    "rope": _rope,
    "unfold": _unfold,
    "prepend": _prepend,
    "store": _store,
    "attention": _attention,
    "pool": _pool,
    "concat": _concat,
    "select": _select,
    "normalize": _normalize,
}

"""A numpy interpreter of graphs, packed or plain: the oracle of the tests.

It follows docs/format.md word by word. Integer results are exact; sums of floats are taken in float64 and rounded once,
so it is at least as precise as the kernels. Written to be read, not to be fast.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ..graph import READS, Array, Graph, Op
from ..packing import unpack_graph
from . import attention, attentions, halting, images, rows
from .attention import walks
from .batch import Batch, make_batch

__all__ = ["OPERATORS", "Batch", "Hook", "make_batch", "run", "walks"]

Hook = Callable[[Op, list[Array], Array], None]
"""Called after each operator that writes a value with the operator, the values that it reads and its result."""

OPERATORS: dict[str, Callable[[Op, Graph, Batch, str, list[Any]], Any]] = {
    "embed": rows.embed,
    "norm": rows.norm,
    "linear": rows.linear,
    "columns": rows.columns,
    "rope": attention.rope,
    "quantize_heads": attention.quantize_heads,
    "store": attention.store,
    "attention": attention.attention,
    "pool": rows.pool,
    "select": rows.select,
    "normalize": rows.normalize,
    "unfold": images.unfold,
    "prepend": images.prepend,
    "concat": rows.concat,
    "depthwise": images.depthwise,
    "fold": images.fold,
    "resize": images.resize,
    "softcap": rows.softcap,
    "head_mean": images.head_mean,
    "match": images.match,
    "merge": images.merge,
    "moments": images.moments,
    "standardize": images.standardize,
    "soft_pool": images.soft_pool,
    "spread": images.spread,
    "average": images.average,
    "mix": attentions.mix,
    "linear_attention": attentions.linear_attention,
    "nystrom": attentions.nystrom,
    "fit": rows.fit,
    "convolve": rows.convolve,
    "halt": halting.halt,
    "keep": halting.keep,
    "contribute": halting.contribute,
    "summarize": rows.summarize,
}


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
            of = op.get("domain") or next(
                domains[table["index"]] for table in op["tables"] if table["index"] != "positions"
            )
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

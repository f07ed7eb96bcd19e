"""Inputs that ReLU leaves mostly zero: which linears pass over the zeros, by what is seen of them.

A linear that reads nothing but what ReLU has made can skip groups of four inputs that are all zero, and their weights
are not fetched (DEFT's exact skipping, arXiv 2402.01911). Such an input is not rotated: that would fill its zeros.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from ..graph import Array, Graph
from ..layout import GROUP, MAX_SKIPPED_K
from .calibration import Calibration
from .dataflow import Dataflow
from .profile import values_written


def after_relu(graph: Graph, names: Collection[str]) -> list[str]:
    """Those of the linears ``names`` whose inputs are all what ReLU has made, and read by nothing else of them."""
    flow = Dataflow(graph)

    def positive(value: str) -> bool:
        op = flow.writer.get(value, {"op": "input"})
        return op["op"] == "linear" and op.get("activation") == "relu" and not {"multiply", "residual"} & set(op)

    return [
        name
        for name in names
        if name in flow.linears
        and name not in flow.tables
        and graph.weights[name]["k"] <= MAX_SKIPPED_K
        and all(positive(op["in"]) for op in flow.linears[name])
    ]


def zero_groups(graph: Graph, names: Collection[str], calibration: Calibration) -> dict[str, float]:
    """Of the rows that each linear of ``names`` reads, the share of groups of four inputs that int8 makes zeros of."""
    flow = Dataflow(graph)
    values = {name: flow.rows_of(name) for name in names}
    wanted = {value for read in values.values() for value in read}
    counts: dict[str, Array] = {}
    for value, chunks, _ in values_written(flow, wanted, calibration):
        counts[value] = sum((_count(chunk) for chunk in chunks or ()), np.zeros(2))
    totals = {name: sum((counts[value] for value in read), np.zeros(2)) for name, read in values.items()}
    return {name: float(zeros / max(groups, 1)) for name, (zeros, groups) in totals.items()}


def _count(x: Array) -> Array:
    """Groups of ``x`` [rows, K], which has no negative numbers, that are zero, and all of them."""
    rows, k = x.shape
    kept = x > x.max(axis=1, keepdims=True) * np.float32(0.5 / 127)  # half a step rounds to zero
    groups = np.pad(kept, ((0, 0), (0, -k % GROUP))).reshape(rows, -1, GROUP).any(axis=2)
    return np.array([groups.size - np.count_nonzero(groups), groups.size], float)

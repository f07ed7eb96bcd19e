"""Operators of tokens that leave on the way."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..graph import Array, Graph, Op
from .batch import Batch


@dataclass
class Halted:
    """Of one sequence: what its first token counts, the sums of the tokens that stay, and where these are."""

    share: float
    sums: Array
    places: Array


def halt(op: Op, graph: Graph, batch: Batch, of: str, inputs: list[Array]) -> list[Halted]:
    result = []
    for sequence, rows in enumerate(batch.sequences[of]):
        x = inputs[0][rows, 0].astype(np.float64)
        before = np.asarray(inputs[1][sequence].sums if "after" in op else np.zeros(len(x)))
        added = np.ones(len(x)) if op.get("last") else 1 / (1 + np.exp(op["center"] - op["scale"] * x))
        sums = before + added
        stay = sums < op["threshold"]
        share = 0.0 if not len(x) else added[0] if stay[0] else 1 - before[0]
        stay &= stay[:1].all()  # with the first token all leave
        result.append(Halted(float(share), sums[stay], np.flatnonzero(stay)))
    return result


def keep(op: Op, graph: Graph, batch: Batch, of: str, inputs: list[Array]) -> Array:
    halts = inputs[1]
    parts = [inputs[0][rows][halted.places] for rows, halted in zip(batch.sequences[of], halts, strict=True)]
    ends = np.cumsum([len(part) for part in parts])
    batch.sequences[op["domain"]] = [
        slice(int(end) - len(part), int(end)) for end, part in zip(ends, parts, strict=True)
    ]
    return np.concatenate(parts)


def contribute(op: Op, graph: Graph, batch: Batch, of: str, inputs: list[Array]) -> Array:
    x, halts = inputs[:2] if "with" not in op else (inputs[0], inputs[2])
    result = np.zeros((len(halts), x.shape[1])) if "with" not in op else inputs[1].astype(np.float64)
    for sequence, rows in enumerate(batch.sequences[of]):
        if rows.stop > rows.start:
            result[sequence] += halts[sequence].share * x[rows.start].astype(np.float64)
    return result

"""Rounds weights input by input and lets the inputs still to come absorb each error (GPTQ, arXiv 2210.17323).

GPTQ needs the second moments of a linear's input. They come from the model itself, run on random tokens: what matters
most (the scales of the norms, the channels that always fire) is a property of the weights, and no text is needed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

import numpy as np

from .. import reference
from ..graph import TOKENS, Array, Graph, Op
from ..hadamard import hadamard

SEQUENCE = 64
DAMPING = 0.01
"""Share of the mean second moment that is added to all, so that the factorization is stable."""
BLOCK = 128
"""Inputs whose errors reach the rest of the matrix in one product."""


def visit_moments(graph: Graph, rotations: Mapping[str, int], tokens: int, visit: Callable[[str, Array], None]) -> None:
    """Runs the plain fp32 ``graph`` on about ``tokens`` random tokens; calls ``visit(weight, moments)`` per linear.

    ``moments`` float64 [K, K] is Σ xᵀx of the rotated inputs of all operators that share the weight, zeros when it saw
    none. One matrix is alive at a time, unless weights are shared.
    """
    length = min(SEQUENCE, graph.max_length)
    lengths = np.full(max(tokens // length, 1), length)
    ids = np.random.default_rng(0).integers(0, graph.vocab_size, lengths.sum())
    uses = Counter(op["weight"] for op in graph.ops if op["op"] == "linear")
    sums: dict[str, Array] = {}

    def hook(op: Op, inputs: list[Array], output: Array) -> None:
        if op["op"] != "linear" or op["weight"] not in rotations:
            return
        name = op["weight"]
        x = hadamard(inputs[0].astype(np.float64), rotations[name])
        sums[name] = sums.get(name, 0) + x.T @ x
        uses[name] -= 1
        if not uses[name]:
            visit(name, sums.pop(name))

    reference.run(graph, {"ids": ids, TOKENS: np.concatenate([[0], np.cumsum(lengths)])}, hook)


def round_with_feedback(weight: Array, scale: Array, moments: Array) -> Array:
    """``weight`` float64 [N, K] → int8 [N, K] in steps of ``scale`` [N] that keep ``weight · x`` for typical ``x``."""
    n, k = weight.shape
    damped = moments + np.eye(k) * (DAMPING * np.trace(moments) / k)
    feedback = np.linalg.cholesky(np.linalg.inv(damped)).T
    step = np.where(scale > 0, scale, 1).astype(np.float64)
    rest = weight.T.copy()  # [K, N]: one input's weights are consecutive
    result = np.empty((k, n), np.int8)
    for begin in range(0, k, BLOCK):
        end = min(begin + BLOCK, k)
        errors = np.empty((end - begin, n))
        for i in range(begin, end):
            result[i] = np.clip(np.rint(rest[i] / step), -127, 127)
            errors[i - begin] = (rest[i] - result[i] * step) / feedback[i, i]
            rest[i + 1 : end] -= np.outer(feedback[i, i + 1 : end], errors[i - begin])
        rest[end:] -= feedback[begin:end, end:].T @ errors
    return np.ascontiguousarray(result.T)

"""Real English texts and a small retrieval task, the same on every machine (``tests/data/README.md``)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_DATA = Path(__file__).parents[1] / "data"


@dataclass(frozen=True)
class Retrieval:
    """``relevance`` [queries, passages] holds 2 for the answer, 1 for the same subject and 0 otherwise."""

    queries: list[str]
    passages: list[str]
    relevance: NDArray[np.float64]


@cache
def retrieval() -> Retrieval:
    task = json.loads((_DATA / "retrieval.json").read_text(encoding="utf-8"))
    relevance = np.zeros((len(task["queries"]), len(task["passages"])))
    for row, query in enumerate(task["queries"]):
        for passage, grade in query["relevant"].items():
            relevance[row, int(passage)] = grade
    return Retrieval([query["text"] for query in task["queries"]], task["passages"], relevance)


@cache
def texts() -> list[str]:
    """445 distinct texts of 3 to 250 words: docstrings, passages and queries."""
    lines = (_DATA / "texts.txt").read_text(encoding="utf-8").splitlines()
    task = retrieval()
    return [*lines, *task.passages, *task.queries]


def ndcg(scores: NDArray[np.floating], relevance: NDArray[np.float64], depth: int = 10) -> float:
    """Mean nDCG at ``depth`` with gain 2^grade − 1 (Burges et al. 2005); both arrays are [queries, passages]."""
    depth = min(depth, scores.shape[1])
    discount = 1 / np.log2(np.arange(2, depth + 2))
    gain = 2**relevance - 1
    found = np.take_along_axis(gain, np.argsort(-scores, axis=1, kind="stable")[:, :depth], axis=1)
    ideal = -np.sort(-gain, axis=1)[:, :depth]
    return float(((found * discount).sum(1) / (ideal * discount).sum(1)).mean())


def top1_agreement(scores: NDArray[np.floating], other: NDArray[np.floating]) -> float:
    """Share of the queries whose best passage is the same under both score matrices."""
    return float((scores.argmax(1) == other.argmax(1)).mean())

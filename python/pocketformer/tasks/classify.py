"""Labels of whole texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..engine import Engine, Outputs
from .text import TextReader


class Label(NamedTuple):
    """A label and its probability; of a regression, its value."""

    label: str
    score: float


def classify(engine: Engine, reader: TextReader, texts: Sequence[str]) -> list[list[Label]]:
    """All labels of each text, best first."""
    sequences = reader.sequences(texts)
    logits = np.empty((len(texts), engine.width), np.float32)
    for batch, rows in engine.run_batches(sequences):
        logits[batch] = rows
    model = engine.file.model
    names = model["labels"] or [f"LABEL_{i}" for i in range(engine.width)]
    scores = _scores(logits, model.get("problem_type"))
    return [[Label(names[i], float(row[i])) for i in np.argsort(-row, kind="stable")] for row in scores]


def softmax(logits: Outputs) -> Outputs:
    """Over the last axis."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    result: Outputs = shifted / shifted.sum(axis=-1, keepdims=True)
    return result


def _scores(logits: Outputs, problem_type: str | None) -> Outputs:
    """Independent probabilities for many labels or a single one, a distribution otherwise."""
    if problem_type == "regression":
        return logits
    if problem_type == "multi_label_classification" or logits.shape[1] == 1:
        result: Outputs = 0.5 * (1 + np.tanh(0.5 * logits))  # the logistic function without overflow
        return result
    return softmax(logits)

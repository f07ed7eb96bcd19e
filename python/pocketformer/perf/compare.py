"""Two pocket files side by side on the same texts: how far their outputs agree, their bytes, and their speed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any

import numpy as np

from ..batches import run_batches, sequence_outputs
from ..engine import Outputs
from ..model import Model, load
from ..similarity import row_cosines
from .measure import timed

FILLED_ROWS = 16
"""Tokens of a text at which models that fill masks are compared: their rows are as wide as the vocabulary."""


def compare(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    texts: Sequence[str],
    *,
    threads: int | None = None,
    seconds: float = 1.0,
) -> dict[str, Any]:
    """What ``b`` makes of ``texts`` beside ``a``; ready for JSON.

    ``cosine`` (mean, first percentile, min) is that of the embeddings, or of the logits of each text, token or filled
    place. ``agreement`` is the share of these whose best label is the same; for answers, of the texts whose best start
    and best end are; None for embeddings. ``files`` has bytes and speed: the two run all texts in turns, for
    ``seconds`` each, and the medians count.

    Raises ValueError without texts, for models of two tasks or widths, or whose token rows do not match, and for models
    that take no texts.
    """
    if not texts:
        raise ValueError("texts is empty; give at least one text to compare on")
    models = [load(path, threads) for path in (a, b)]
    tasks = [model.task for model in models]
    widths = [model._engine.width for model in models]
    for model, path in zip(models, (a, b), strict=True):
        if "ids" not in [entry["name"] for entry in model._engine.file.graph.inputs]:
            raise ValueError(f"{os.fspath(path)} takes no texts (task {model.task!r}); compare models of texts")
    if tasks[0] != tasks[1] or widths[0] != widths[1]:
        raise ValueError(
            f"{os.fspath(a)} is a model for {tasks[0]!r} with {widths[0]} outputs and {os.fspath(b)} one for "
            f"{tasks[1]!r} with {widths[1]}; compare two files of one model"
        )
    rows = [list(_rows(model, texts)) for model in models]
    if any(len(x) != len(y) for x, y in zip(*rows, strict=True)):
        raise ValueError("the two tokenizers split the texts into different numbers of tokens; no rows can be compared")
    cosines = np.concatenate([row_cosines(x, y) for x, y in zip(*rows, strict=True)])
    result: dict[str, Any] = {
        "task": tasks[0],
        "texts": len(texts),
        "cosine": {
            "mean": float(cosines.mean()),
            "p1": float(np.quantile(cosines, 0.01)),
            "min": float(cosines.min()),
        },
        "agreement": None if tasks[0] in ("embed", "features") else _agreement(rows[0], rows[1], tasks[0]),
    }
    times: list[list[float]] = [[], []]
    while min(map(sum, times)) < seconds or min(map(len, times)) < 3:
        for model, own in zip(models, times, strict=True):
            own.append(timed(lambda model=model: list(_rows(model, texts))))  # type: ignore[misc]
    tokens = [sum(map(len, model._reader.sequences(texts))) for model in models]
    result["files"] = [
        {
            "path": os.fspath(path),
            "weights": model.info()["weights"],
            "file_bytes": model._engine.file_bytes,
            "params": model.info()["params"],
            "seconds": median(own),
            "tokens_per_second": count / median(own),
        }
        for path, model, own, count in zip((a, b), models, times, tokens, strict=True)
    ]
    return result


def _rows(model: Model, texts: Sequence[str]) -> Iterator[Outputs]:
    """The output rows of each text, in order."""
    if model.task == "embed":
        yield from model.encode(list(texts))[:, None]
        return
    engine = model._engine
    sequences, types = model._reader.inputs(texts)
    kind = engine.program.output_kind
    if kind == "one":
        yield from sequence_outputs(engine, sequences, types)[:, None]
        return
    chosen = [np.arange(min(len(ids), FILLED_ROWS), dtype=np.int64) for ids in sequences]
    selected = kind == "selected"
    counts = [len(rows) for rows in chosen] if selected else [len(ids) for ids in sequences]
    found: dict[int, Outputs] = {}
    for batch, rows in run_batches(engine, sequences, types, chosen if selected else None):
        ends = np.cumsum([counts[i] for i in batch])
        found |= zip(batch.tolist(), np.split(rows, ends[:-1]), strict=True)
    yield from (found[i] for i in range(len(texts)))


def _agreement(a: Sequence[Outputs], b: Sequence[Outputs], task: str) -> float:
    axis = 0 if task == "answer" else 1
    alike = [x.argmax(axis) == y.argmax(axis) for x, y in zip(a, b, strict=True)]
    return float(np.mean([same.all() for same in alike]) if task == "answer" else np.concatenate(alike).mean())

"""int8 MiniLM stays close to fp32 torch: cosines over the corpus, size, and the ranking of a retrieval task."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from checkpoints.test_minilm import tokenize, torch_embeddings
from helpers.corpus import ndcg, retrieval, texts, top1_agreement
from helpers.engines import native_packed
from helpers.models import model_folder
from pocketformer.pocketfile import read_pocket
from pocketformer.sources.huggingface import load_checkpoint

Embeddings = NDArray[np.float32]


@dataclass
class Figures:
    file_bytes: int
    expected: Embeddings
    actual: Embeddings


@pytest.fixture(scope="module")
def figures(minilm_int8: Path) -> Figures:
    """The corpus embedded by torch in fp32 and by the int8 file, without any calibration data."""
    sequences = tokenize(load_checkpoint(model_folder("minilm")), texts())
    graph = read_pocket(minilm_int8).graph
    actual = native_packed(graph, np.concatenate(sequences), [len(ids) for ids in sequences])
    return Figures(minilm_int8.stat().st_size, torch_embeddings(sequences), actual)


def test_cosine(figures: Figures) -> None:
    cosine = (figures.expected * figures.actual).sum(1)
    print(f"\n{len(cosine)} texts: cosine mean {cosine.mean():.5f}, min {cosine.min():.5f}")
    assert cosine.mean() >= 0.9996
    assert cosine.min() >= 0.9985


def test_file_size(figures: Figures) -> None:
    print(f"\nfile: {figures.file_bytes / 1e6:.2f} MB")
    assert figures.file_bytes <= 23.5e6


def test_ranking(figures: Figures) -> None:
    task = retrieval()
    passages, queries = len(task.passages), len(task.queries)

    def scores(rows: Embeddings) -> Embeddings:
        tail = rows[-(passages + queries) :]
        return tail[passages:] @ tail[:passages].T

    before, after = scores(figures.expected), scores(figures.actual)
    ndcgs = ndcg(before, task.relevance), ndcg(after, task.relevance)
    agreement = top1_agreement(before, after)
    print(f"\nnDCG@10: fp32 {ndcgs[0]:.4f}, int8 {ndcgs[1]:.4f}; top-1 agreement {agreement:.3f}")
    assert abs(ndcgs[0] - ndcgs[1]) <= 0.005
    assert agreement == 1

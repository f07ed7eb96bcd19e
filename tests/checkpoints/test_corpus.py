"""The corpus is what the quality figures say it is."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.corpus import ndcg, retrieval, texts, top1_agreement


def test_texts_are_many_varied_and_distinct() -> None:
    words = [len(text.split()) for text in texts()]
    assert len(texts()) == len(set(texts())) >= 320
    assert min(words) >= 3
    assert max(words) <= 250
    assert sum(w <= 8 for w in words) >= 40
    assert sum(w >= 100 for w in words) >= 40


def test_every_query_has_an_answer_and_a_relative() -> None:
    relevance = retrieval().relevance
    assert relevance.shape == (40, 120)
    assert ((relevance == 2).sum(1) == 1).all()
    assert ((relevance == 1).sum(1) == 1).all()
    assert relevance.max(0).sum() == 120  # no passage serves two queries


def test_ndcg_by_hand() -> None:
    relevance = np.array([[0.0, 2, 1]])
    assert ndcg(np.array([[1.0, 3, 2]]), relevance) == 1
    worst = (1 / np.log2(3) + 3 / np.log2(4)) / (3 + 1 / np.log2(3))
    assert ndcg(np.array([[3.0, 1, 2]]), relevance) == pytest.approx(worst)
    assert ndcg(np.array([[3.0, 1, 2]]), relevance, depth=1) == 0
    assert top1_agreement(np.eye(3), np.eye(3)[::-1]) == pytest.approx(1 / 3)

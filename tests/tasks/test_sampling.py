"""The choice of a token equals plain numpy's in the same order, and keeps what transformers keeps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from pocketformer import _core, _sampling
from pocketformer.graph import Array
from pocketformer.sampling import Sampler, Sampling

SIZE = 300
SETTINGS = [(0, 1.0, 0.0), (1, 1.0, 0.0), (7, 1.0, 0.0), (0, 0.6, 0.0), (0, 1.0, 0.2), (20, 0.7, 0.0), (40, 0.9, 0.1)]
SETTINGS += [(0, 0.0, 0.0), (0, 1.0, 1.0), (SIZE, 0.5, 0.0), (SIZE + 1, 1.0, 0.01)]


def probabilities(seed: int, spread: float = 2.0, ties: bool = False) -> Array:
    logits = np.random.default_rng(seed).standard_normal(SIZE).astype(np.float32) * np.float32(spread)
    return _core.softmax((np.round(logits) if ties else logits)[None])[0]


def kept(p: Array, top_k: int, top_p: float, min_p: float) -> Array:
    """The twin: the tokens that are drawn from, likeliest first, or by number where all are."""
    if not 0 < top_k < len(p) and top_p >= 1 and min_p <= 0:
        return np.flatnonzero(p > 0)
    order = np.lexsort((np.arange(len(p)), -p))
    limit = np.cumsum(p, dtype=np.float64)[-1] * top_p
    if 0 < top_k < len(p):
        order = order[:top_k]
        limit = np.cumsum(p[order], dtype=np.float64)[-1] * top_p
    before = np.concatenate([[0], np.cumsum(p[order], dtype=np.float64)[:-1]])
    stays = (p[order] > 0) & (p[order] >= min_p * p[order[0]].astype(np.float64))
    if top_p < 1:
        stays &= before < limit
    stays[0] = True
    return order[stays]


def drawn(p: Array, tokens: Array, u: float) -> int:
    sums = np.cumsum(p[tokens], dtype=np.float64)
    return int(tokens[np.searchsorted(sums, u * sums[-1], side="right")])


@pytest.mark.parametrize(("top_k", "top_p", "min_p"), SETTINGS)
def test_draws_equal_the_twins(top_k: int, top_p: float, min_p: float) -> None:
    order = np.empty(SIZE, np.int32)
    for seed in range(6):
        p = probabilities(seed, spread=(0.1, 2.0, 30.0)[seed % 3], ties=seed >= 3)
        tokens = kept(p, top_k, top_p, min_p)
        for u in (0.0, 0.1, 0.5, 0.97, 1 - 2**-53, *np.random.default_rng(seed).random(20)):
            assert _sampling.draw(p, order, top_k, top_p, min_p, u) == drawn(p, tokens, u)


@pytest.mark.parametrize(("top_k", "top_p", "min_p"), SETTINGS)
def test_what_is_kept_is_what_transformers_keeps(top_k: int, top_p: float, min_p: float) -> None:
    logits = np.random.default_rng(9).standard_normal(SIZE).astype(np.float32) * 2
    scores = torch.tensor(logits)[None]
    if top_k:
        scores = TopKLogitsWarper(min(top_k, SIZE))(None, scores)
    if top_p < 1:
        scores = TopPLogitsWarper(max(top_p, 1e-9))(None, scores)
    if min_p > 0:
        scores = MinPLogitsWarper(min_p)(None, scores)
    p = _core.softmax(logits[None])[0]
    assert set(kept(p, top_k, top_p, min_p)) == set(torch.isfinite(scores[0]).nonzero()[:, 0].tolist())


def test_draws_have_the_probabilities() -> None:
    p, order, count = probabilities(1), np.empty(SIZE, np.int32), 20_000
    draws = [_sampling.draw(p, order, 0, 1.0, 0.0, _sampling.uniform(5, i)) for i in range(count)]
    frequencies = np.bincount(draws, minlength=SIZE) / count
    assert np.abs(frequencies - p).max() < 4 * np.sqrt(p.max() / count)


def test_uniform_is_splitmix() -> None:
    def twin(seed: int, step: int) -> float:
        z = (seed + (step + 1) * 0x9E3779B97F4A7C15) % 2**64
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        return ((z ^ z >> 31) >> 11) / 2**53

    for seed in (0, 1, 2**64 - 1):
        assert [_sampling.uniform(seed, i) for i in range(50)] == [twin(seed, i) for i in range(50)]


def test_penalties_equal_the_twins() -> None:
    rng = np.random.default_rng(0)
    logits, marks = rng.standard_normal(SIZE).astype(np.float32), rng.integers(0, 4, SIZE).astype(np.uint8)
    expected = np.where(logits > 0, logits / np.float32(1.3), logits * np.float32(1.3))
    expected = np.where(marks & 1, expected, logits) - np.where(marks & 2, np.float32(0.4), np.float32(0))
    _sampling.penalize(logits, marks, 1.3, 0.4)
    assert logits.tobytes() == expected.astype(np.float32).tobytes()


def test_the_likeliest_is_the_first_of_equals() -> None:
    assert _sampling.best(np.array([1, 3, 2, 3], np.float32)) == 1
    assert _sampling.best(np.full(9, -1, np.float32)) == 0


def test_a_sampler_repeats_its_seed_and_applies_settings_in_order() -> None:
    logits = [np.random.default_rng(i).standard_normal(SIZE).astype(np.float32) for i in range(40)]
    sampling = Sampling(temperature=0.8, top_k=30, top_p=0.9, repetition_penalty=1.2, seed=3, logit_bias={5: 1.5})

    def texts(sampling: Sampling) -> list[int]:
        sampler = Sampler(sampling, SIZE)
        sampler.see([1, 2])
        return [sampler.choose(row.copy()) for row in logits]

    chosen = texts(sampling)
    assert chosen == texts(sampling)
    assert chosen != texts(Sampling(**{**vars(sampling), "seed": 4}))
    seen, expected = {1, 2}, []
    for step, row in enumerate(logits):
        row = row.copy()
        row[5] += np.float32(1.5)
        for token in seen:
            row[token] = row[token] / np.float32(1.2) if row[token] > 0 else row[token] * np.float32(1.2)
        p = _core.softmax((row / np.float32(0.8))[None])[0]
        expected.append(drawn(p, kept(p, 30, 0.9, 0.0), _sampling.uniform(3, step)))
        seen.add(expected[-1])
    assert chosen == expected
    assert Sampler(Sampling(temperature=1.0), SIZE).seed != Sampler(Sampling(temperature=1.0), SIZE).seed


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"temperature": -1}, "temperature is -1; it must be a finite number of at least 0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_k": 1.5}, "top_k is 1.5; it must be an integer"),
        ({"top_p": 1.1}, "top_p is 1.1; it must be a finite number of at least 0 and at most 1"),
        ({"min_p": -0.1}, "min_p is -0.1"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0; it must be above 0"),
        ({"presence_penalty": "1"}, "presence_penalty is '1'"),
        ({"seed": -1}, "seed is -1"),
        ({"logit_bias": {3: float("inf")}}, r"logit_bias\[3\] is inf"),
        ({"logit_bias": {SIZE: 1.0}}, f"logit_bias names the token {SIZE}; the vocabulary has 0…{SIZE - 1}"),
    ],
)
def test_wrong_settings_are_refused(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampler(Sampling(**setting), SIZE)


def test_wrong_arrays_are_refused() -> None:
    with pytest.raises(ValueError, match="order has 3 entries; there are 300 logits"):
        _sampling.draw(probabilities(0), np.empty(3, np.int32), 0, 0.5, 0.0, 0.5)
    with pytest.raises(ValueError, match="marks has 3 entries"):
        _sampling.penalize(np.zeros(4, np.float32), np.zeros(3, np.uint8), 1.0, 0.0)
    with pytest.raises(ValueError, match="it must have at least 1"):
        _sampling.best(np.zeros(0, np.float32))
    with pytest.raises(ValueError, match="holds NaN or infinity"):
        Sampler(Sampling(temperature=1.0), 2).choose(np.array([0, np.nan], np.float32))

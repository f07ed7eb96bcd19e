"""Arrays that are read when they are used, and only as far as they are used."""

from __future__ import annotations

import copy
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from helpers.torch_models import build
from pocketformer.errors import CheckpointError
from pocketformer.lazy import LazyArray, concatenate, lazy, same_values
from pocketformer.sources.huggingface import load_checkpoint
from pocketformer.sources.weights import open_weights

VALUES = np.arange(42, dtype=np.float32).reshape(6, 7)


class Reader:
    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []

    def __call__(self, begin: int, end: int) -> np.ndarray:
        self.calls.append((begin, end))
        return VALUES[begin:end]


def test_nothing_is_read_before_it_is_used() -> None:
    reader = Reader()
    array = LazyArray((6, 7), reader)
    assert (array.shape, array.dtype, array.ndim, array.size, array.nbytes, len(array)) == (
        (6, 7),
        np.float32,
        2,
        42,
        168,
        6,
    )
    assert copy.deepcopy(array) is array
    assert "6, 7" in repr(array)
    assert reader.calls == []


def test_use_reads_the_rows_that_it_needs() -> None:
    reader = Reader()
    array = LazyArray((6, 7), reader)
    assert np.array_equal(array[2:4], VALUES[2:4])
    assert np.array_equal(array[4:99], VALUES[4:])
    assert array[5:2].shape == (0, 7)
    assert reader.calls == [(2, 4), (4, 6), (5, 5)]
    assert np.array_equal(array, VALUES)
    assert np.array_equal(array[::2], VALUES[::2])
    assert np.array_equal(array[[3, 1], 2], VALUES[[3, 1], 2])
    assert np.array_equal(array.T @ np.ones(6), VALUES.T @ np.ones(6))
    assert np.asarray(array, np.float64).dtype == np.float64
    assert set(reader.calls[3:]) == {(0, 6)}


def test_concatenation_reads_across_its_parts() -> None:
    readers = [Reader(), Reader(), Reader()]
    parts = [lazy((n, 7), reader) for n, reader in zip((6, 2, 4), readers, strict=True)]
    joined = concatenate(parts)
    whole = np.concatenate([VALUES, VALUES[:2], VALUES[:4]])
    assert joined.shape == whole.shape
    for begin in range(12):
        for end in range(begin + 1, 13):
            assert np.array_equal(joined[begin:end], whole[begin:end])
    for reader in readers:
        reader.calls.clear()
    assert np.array_equal(joined[5:7], whole[5:7])
    assert [reader.calls for reader in readers] == [[(5, 6)], [(0, 1)], []]


def test_equality_in_blocks() -> None:
    assert same_values(lazy((6, 7), Reader()), VALUES, rows_at_once=4)
    other = VALUES.copy()
    other[5, 6] = 0
    assert not same_values(lazy((6, 7), Reader()), other, rows_at_once=4)
    assert not same_values(VALUES[:5], VALUES, rows_at_once=4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_every_float_is_read_by_rows(tmp_path: Path, dtype: torch.dtype) -> None:
    values = torch.randn(64, 5, dtype=torch.float64).to(dtype)
    save_file({"w": values, "v": values[:, 0].contiguous()}, tmp_path / "model.safetensors")
    weights = open_weights(tmp_path)
    array = weights.weight("w", 64, 5)
    expected = values.float().numpy()
    assert np.array_equal(array, expected)
    assert np.array_equal(array[7:9], expected[7:9])
    assert np.array_equal(weights.vector("v", 64), expected[:, 0])
    assert array[7:9].dtype == np.float32


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 1e300])
def test_what_is_not_finite_is_refused_when_it_is_read(tmp_path: Path, value: float) -> None:
    values = torch.zeros(9, 4, dtype=torch.float64)
    values[6, 2] = value
    save_file({"w": values}, tmp_path / "model.safetensors")
    array = open_weights(tmp_path).weight("w", 9, 4)
    assert not array[:6].any()
    with pytest.raises(CheckpointError, match=r"tensor 'w' in .* holds NaN or infinity"):
        array[6:]


def test_import_holds_no_matrix(tmp_path: Path) -> None:
    build("bert", "fill_mask", tmp_path, hidden_size=384, intermediate_size=1536, vocab_size=4000)
    size = (tmp_path / "model.safetensors").stat().st_size
    load_checkpoint(tmp_path)  # what is imported once
    tracemalloc.start()
    graph = load_checkpoint(tmp_path).graph
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    largest = 0
    for array in graph.params.values():
        largest = max(largest, np.asarray(array).nbytes)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size > 20e6
    assert held < 0.02 * size
    assert peak - held < 2 * largest + 1e6

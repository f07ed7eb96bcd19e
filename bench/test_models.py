"""Whole models: latency by length, batch and threads; loading; memory; fixed cost. ``pytest bench/test_models.py``.

One thread is timed by its own clock, which stands while a neighbour has the core; several are by the wall's.
"""

from __future__ import annotations

import time
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import pocketformer
from bench.conftest import Measure
from bench.random_models import bert_base, toy
from pocketformer import _core
from pocketformer.engine import Engine
from pocketformer.fetch import cache_folder, fetch
from pocketformer.perf.measure import fresh_rss, multiply_adds, prepare, weight_bytes

one_thread = pytest.mark.benchmark(timer=time.thread_time)
THREADS = [pytest.param(n, marks=one_thread if n == 1 else ()) for n in sorted({1, _core.default_threads()})]
MINILM = ((1, 16), (1, 32), (1, 128), (1, 256), (1, 512), (8, 128), (32, 128))  # batch × tokens
BERT_BASE = ((1, 32), (1, 128), (1, 512))


@cache
def minilm(weights: str) -> Path:
    path = cache_folder() / "bench" / f"minilm.{weights}.pocket"
    path.parent.mkdir(parents=True, exist_ok=True)
    pocketformer.compress(fetch("minilm"), path, weights=weights)
    return path


def forward(measure: Measure, path: Path, weights: str, batch: int, tokens: int, threads: int) -> None:
    engine = Engine(path, threads)
    int8 = weights == "int8"
    macs = {name: batch * count for name, count in multiply_adds(engine, tokens).items()}
    read = weight_bytes(engine)
    arena = engine.program.arena_bytes([tokens] * batch, threads)
    shape = {"batch": batch, "tokens": tokens, "arena_bytes": arena, **macs}
    call = prepare(engine, tokens, batch)
    measure(call, multiply_adds=sum(macs.values()), bytes=read, int8=int8, threads=threads, **shape)


def cells(shapes: tuple[tuple[int, int], ...]) -> list[object]:
    return [pytest.param(*cell, id=f"{cell[0]}x{cell[1]}") for cell in shapes]


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize(("batch", "tokens"), cells(MINILM))
def test_minilm_int8(measure: Measure, batch: int, tokens: int, threads: int) -> None:
    forward(measure, minilm("int8"), "int8", batch, tokens, threads)


@one_thread
@pytest.mark.parametrize(("batch", "tokens"), cells(MINILM[::2]))
def test_minilm_fp32(measure: Measure, batch: int, tokens: int) -> None:
    forward(measure, minilm("fp32"), "fp32", batch, tokens, 1)


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize(("batch", "tokens"), cells(BERT_BASE))
def test_bert_base_shape_int8(measure: Measure, batch: int, tokens: int, threads: int) -> None:
    forward(measure, bert_base(fetch("minilm")), "int8", batch, tokens, threads)


@one_thread
@pytest.mark.parametrize("weights", ["int8", "fp32"])
def test_load(measure: Measure, weights: str) -> None:
    path = minilm(weights)
    measure(lambda: Engine(path, 1), file_bytes=path.stat().st_size)


@pytest.mark.parametrize("weights", ["int8", "fp32"])
def test_memory_of_a_fresh_process(measure: Measure, weights: str) -> None:
    """The time is that of the process, from start to end; what matters is ``peak_rss_bytes``."""
    path = str(minilm(weights))
    measure(lambda: fresh_rss(path), peak_rss_bytes=fresh_rss(path))


@one_thread
@pytest.mark.parametrize("weights", ["int8", "fp32"])
def test_fixed_cost(measure: Measure, tmp_path: Path, weights: str) -> None:
    """A forward pass with next to no arithmetic, through the session; bench/native/fixed_cost.cpp is without Python."""
    engine = Engine(toy(tmp_path / "toy.pocket", weights), 1)
    session = _core.Session(engine.program)
    inputs = {"ids": np.arange(10, dtype=np.int32), "tokens": np.array([0, 10])}
    measure(lambda: session.run(inputs))


@one_thread
@pytest.mark.parametrize("weights", ["int8", "fp32"])
def test_fixed_cost_of_an_engine(measure: Measure, tmp_path: Path, weights: str) -> None:
    """The same with what ``Model`` does around the session: choosing one, joining sequences."""
    engine = Engine(toy(tmp_path / "toy.pocket", weights), 1)
    ids = [np.arange(10, dtype=np.int32)]
    measure(lambda: engine.run(ids))

"""Kernels on one thread: ``pytest bench/test_kernels.py``.

The clock is that of the thread: a neighbour who takes the core away does not count, one who shares it does.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import pytest

from bench.conftest import Measure
from bench.kernels import Attention, Product, floats, zeros
from pocketformer import _core

SHAPES = ((384, 384), (1536, 384), (384, 1536), (768, 768), (3072, 768), (1024, 1024), (2048, 2048))  # N × K
TELLING = SHAPES[1:4]
ROWS = (1, 16, 64, 128, 512)
RANGES = {"full": (-1, -1), "causal": (-1, 0), "window": (256, 256)}
OTHER_ISAS = _core.isas()[1:-1]  # without the one in use and the scalar one

pytestmark = pytest.mark.benchmark(timer=time.thread_time)
everything = pytest.mark.everything


def cases(cells: Sequence[tuple[object, ...]], chosen: Sequence[bool]) -> list[object]:
    """All cells; those that are not chosen run with ``--everything`` only."""
    return [
        pytest.param(*cell, marks=() if pick else everything, id="-".join(map(str, cell)))
        for cell, pick in zip(cells, chosen, strict=True)
    ]


def products(*, less: bool) -> list[object]:
    cells = [(m, n, k) for n, k in SHAPES for m in ROWS]
    return cases(cells, [not less or ((n, k) in TELLING and m in (1, 128)) for m, n, k in cells])


@pytest.mark.parametrize(("m", "n", "k"), products(less=False))
def test_product_int8(measure: Measure, m: int, n: int, k: int) -> None:
    product = Product(True, m, n, k)
    measure(product, multiply_adds=product.multiply_adds, empty=product.empty)


@pytest.mark.parametrize(("m", "n", "k"), products(less=True))
def test_product_fp32(measure: Measure, m: int, n: int, k: int) -> None:
    product = Product(False, m, n, k)
    measure(product, multiply_adds=product.multiply_adds, int8=False, empty=product.empty)


@pytest.mark.parametrize("isa", OTHER_ISAS)
@pytest.mark.parametrize(("n", "k"), TELLING, ids=lambda n: str(n))
def test_product_int8_of_another_isa(measure: Measure, isa: str, n: int, k: int) -> None:
    product = Product(True, 128, n, k, isa)
    measure(product, multiply_adds=product.multiply_adds, isa=isa, empty=product.empty)


@pytest.mark.parametrize("int8", [True, False], ids=["int8", "fp32"])
def test_product_of_one_row_from_memory(measure: Measure, int8: bool) -> None:
    """A matrix beyond the caches: what bounds it is reading."""
    n, k = (16384, 8192) if int8 else (8192, 4096)
    product = Product(int8, 1, n, k)
    measure(product, multiply_adds=product.multiply_adds, bytes=n * k * (1 if int8 else 4), int8=int8)


def attentions() -> list[object]:
    cells: list[tuple[object, ...]] = []
    chosen: list[bool] = []
    for weights in ("int8", "fp32"):
        for head_dim in (64, 32):
            for kind in RANGES:
                for length in (128, 512, 2048, 8192):
                    cells.append((weights, head_dim, kind, length))
                    slow = length == 8192 and (kind != "window" or weights == "fp32")
                    chosen.append(
                        not slow and (weights == "int8" or kind == "full") and (kind, head_dim) != ("causal", 32)
                    )
    return cases(cells, chosen)


@pytest.mark.parametrize(("weights", "head_dim", "kind", "length"), attentions())
def test_attention(measure: Measure, weights: str, head_dim: int, kind: str, length: int) -> None:
    int8 = weights == "int8"
    attention = Attention(int8, length, 12, head_dim, *RANGES[kind])
    measure(attention, multiply_adds=attention.multiply_adds, int8=int8, empty=attention.empty)


@pytest.mark.parametrize("length", [4096, 16384, 32768])
def test_attention_window_by_length(measure: Measure, length: int) -> None:
    """Time and memory of a token must not depend on the length."""
    attention = Attention(True, length, 12, 64, 256, 256)
    measure(attention, multiply_adds=attention.multiply_adds, empty=attention.empty, tokens=length)


@pytest.mark.parametrize(("weights", "head_dim"), [("int8", 32), ("int8", 64), ("fp32", 64)])
def test_store(measure: Measure, weights: str, head_dim: int) -> None:
    """Splitting a projection into queries, keys and values, in int8 with their quantization."""
    attention = Attention(weights == "int8", 128, 12, head_dim)
    measure(attention.store, bytes=attention.qkv.nbytes)


WIDTHS = (384, 768, 1536, 3072)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("rotate", [0, 128])
def test_quantize(measure: Measure, rotate: int, width: int) -> None:
    x, q, scale = floats(56, width), zeros(56, width, dtype=np.uint8), zeros(56)
    kernels = _core.Kernels()
    measure(lambda: kernels.quantize_rows(x, q, scale, width, rotate), bytes=x.nbytes + q.nbytes)


@pytest.mark.parametrize("kind", ["layer", "rms"])
@pytest.mark.parametrize("width", WIDTHS[:2])
def test_norm(measure: Measure, kind: str, width: int) -> None:
    x, out, weight, bias = floats(56, width), zeros(56, width), floats(width), floats(width)
    kernels = _core.Kernels()
    measure(lambda: kernels.norm(x, weight, bias, out, width, 1e-12, kind), bytes=x.nbytes + out.nbytes)


@pytest.mark.parametrize("activation", ["none", "relu", "gelu", "gelu_tanh", "silu", "tanh"])
@pytest.mark.parametrize("weights", ["int8", "fp32"])
def test_activation(measure: Measure, weights: str, activation: str) -> None:
    """16 × 1536 results of the shortest product, k = 4: what stands beside ``none`` is the activation."""
    product = Product(weights == "int8", 16, 1536, 4)
    (block,) = product.blocks
    measure(lambda: product.block(*block, activation=activation), bytes=block[2].nbytes)


@pytest.mark.parametrize("kind", ["mean", "cls", "max"])
def test_pool(measure: Measure, kind: str) -> None:
    x, out, kernels = floats(128, 384), zeros(384), _core.Kernels()
    measure(lambda: kernels.pool(x, out, 384, kind), bytes=x.nbytes)


def test_embed(measure: Measure) -> None:
    kernels = _core.Kernels()
    table, scale, out = zeros(30528, 384, dtype=np.int8), zeros(30528), zeros(128, 384)
    index = np.random.default_rng(0).integers(0, 30522, 128, np.int32)
    ids = zeros(128, dtype=np.int32)
    ids[...] = index
    measure(lambda: kernels.embed(table, scale, ids, out, 384), bytes=128 * 384 + out.nbytes)

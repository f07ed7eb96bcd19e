"""Products and lookups of fp16 weights on every ISA: the bits of fp32 ones that hold the same numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from helpers.kernels import aligned, fresh, kernels, padded, panels
from pocketformer import _core
from pocketformer.graph import Array
from pocketformer.layout import LANES, round_up

ROWS = (*range(1, 16), 29, 63, 64, 65, 130)
SHAPES = ((1, 1), (15, 5), (16, 26), (33, 127), (48, 255), (64, 256), (70, 257), (85, 384), (130, 523))
LARGEST = 0x7BFF
"""The bits of 65504."""

every_isa = pytest.mark.parametrize("isa", _core.isas())


def floats(shape: tuple[int, ...], seed: int = 0) -> Array:
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float32)


def halves(n: int, k: int) -> Array:
    """Of all sizes, subnormal numbers and both zeros among them."""
    rng = np.random.default_rng((n, k))
    bits = rng.integers(0, LARGEST + 1, (n, k)) | rng.integers(0, 2, (n, k)) << 15
    weight: Array = bits.astype(np.uint16).view(np.float16)
    weight[rng.random((n, k)) < 0.1] *= 0
    return weight


def as_bits(weight: Array) -> Array:
    """Panels of the bits: the kernels take no float16."""
    return panels(weight).view(np.uint16)


def product(isa: str, x: Array, weight: Array, n: int, k: int, columns: int, **options: Any) -> Array:
    out = fresh((len(x), columns))
    kernels(isa).gemm(x, weight, out, k, n=n, **options)
    return out


def same_bytes(a: Array, b: Array) -> None:
    np.testing.assert_array_equal(a.view(np.uint8), b.view(np.uint8))


@every_isa
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_product_is_that_of_the_widened_weights(isa: str, n: int, k: int) -> None:
    x, weight, whole = padded(floats((max(ROWS), k))), halves(n, k), round_up(n, LANES)
    beside = {"bias": padded(floats((n,), 2)), "residual": padded(floats((max(ROWS), n), 3))}
    stored, wide = as_bits(weight), panels(weight.astype(np.float32))
    reference = product("scalar", x, wide, n, k, whole, **beside)
    for rows in ROWS:
        options = {**beside, "residual": aligned(beside["residual"][:rows])}
        same_bytes(product(isa, aligned(x[:rows]), stored, n, k, whole, **options), reference[:rows])


@every_isa
@pytest.mark.parametrize("rows", [1, 2, 3, 20, 70])
@pytest.mark.parametrize("activation", ["none", "gelu", "silu"])
def test_epilogue_and_rows_as_short_as_the_channels(isa: str, rows: int, activation: str) -> None:
    n, k = 70, 523
    x, weight = padded(floats((rows, k))), halves(n, k)
    narrow = {"multiply": aligned(floats((rows, n), 3)), "residual": aligned(floats((rows, n), 4)), "precise": True}
    options = {"bias": padded(floats((n,), 2)), "activation": activation, **narrow}
    wide = panels(weight.astype(np.float32))
    same_bytes(
        product(isa, x, as_bits(weight), n, k, n, **options),
        product(isa, x, wide, n, k, n, **options),
    )


@every_isa
def test_a_range_of_panels_leaves_the_others_alone(isa: str) -> None:
    n, k = 96, 300
    x, weight = padded(floats((17, k))), halves(n, k)
    for rows in (1, 17):
        part, all_of_it = (
            product(isa, aligned(x[:rows]), as_bits(weight), n, k, n, **which)
            for which in ({"panel_begin": 1, "panel_end": 4}, {})
        )
        same_bytes(aligned(part[:, 16:64]), aligned(all_of_it[:, 16:64]))
        assert (part[:, :16].view(np.uint8) == fresh((1,), np.uint8)).all()
        assert (part[:, 64:].view(np.uint8) == fresh((1,), np.uint8)).all()


@every_isa
def test_residual_may_be_the_output(isa: str) -> None:
    n, k = 33, 523
    for rows in (1, 5, 70):
        x, weight, residual = padded(floats((rows, k))), halves(n, k), padded(floats((rows, n), 3))
        apart = product(isa, x, as_bits(weight), n, k, 48, residual=residual)
        kernels(isa).gemm(x, as_bits(weight), residual, k, n=n, residual=residual)
        same_bytes(residual, apart)


@every_isa
@pytest.mark.parametrize("stored", ["rows", "panels"])
def test_every_finite_number_is_widened_exactly(isa: str, stored: str) -> None:
    every = np.concatenate([np.arange(LARGEST + 1), np.arange(0x8000, 0x8000 + LARGEST + 1)]).astype(np.uint16)
    table = every.view(np.float16).reshape(-1, 31)
    index = np.arange(len(table), dtype=np.int32)
    out = padded(np.ones((len(table), 31), np.float32))
    weight = aligned(table.view(np.uint16)) if stored == "rows" else as_bits(table)
    kernels(isa).embed(weight, None, aligned(index), out, 31)
    same_bytes(aligned(out[:, :31]), table.astype(np.float32))
    assert not out[:, 31:].any()

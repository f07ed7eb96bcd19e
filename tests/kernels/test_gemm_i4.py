"""int4 products of every ISA: the bits of the numpy oracle, whatever the tile, the group and the codebook."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from helpers.kernels import OLD, aligned, fresh, grouped_scales, kernels, nibble_panels, padded, product_i4
from pocketformer import _core
from pocketformer.graph import Array
from pocketformer.layout import LANES, round_up

every_isa = pytest.mark.parametrize("isa", _core.isas())
ROWS = (*range(1, 14), 17, 24, 29, 63)
COLUMNS = (1, 15, 16, 17, 33, 48, 100)
CHANNEL_DEPTHS = (1, 3, 4, 5, 8, 12, 26, 127, 384, 1536)
GROUPED = ((16, 16), (48, 16), (32, 32), (96, 32), (1536, 32), (144, 48), (384, 64), (128, 128), (640, 128))
LINEAR = np.arange(-8, 8)
UNSIGNED = np.arange(16)
NF4 = np.array([-127, -88, -67, -50, -36, -23, -12, 0, 10, 20, 31, 43, 56, 71, 92, 127])
EXTREME = np.where(np.arange(16) % 3 == 0, -127, 127)


@dataclass(frozen=True)
class Case:
    q: Array
    sums: Array
    x_scale: Array
    index: Array
    codebook: Array
    scale: Array
    minimum: Array
    bias: Array
    group: int

    @property
    def expected(self) -> Array:
        return self.product()

    def product(self, minimum: bool = False) -> Array:
        weight = self.codebook.astype(np.int64)[self.index]
        return product_i4(self.q, self.x_scale, weight, self.scale, self.bias, self.minimum if minimum else None)

    def run(self, isa: str, rows: int, columns: int = 0, minimum: bool = False, **options: Any) -> Array:
        n, k = self.index.shape
        x = fresh((rows, round_up(k, 64)), np.uint8)
        x[:, : round_up(k, LANES)] = 0
        x.view(np.int8)[:, :k] = self.q[:rows]
        layout = grouped_scales if self.group else (lambda scale: padded(scale[:, 0]))
        out = fresh((rows, columns or round_up(n, LANES)))
        arguments: dict[str, Any] = {
            "x_scale": aligned(self.x_scale[:rows]),
            "x_sum": aligned(self.sums[:rows]),
            "scale": layout(self.scale),
            "codebook": aligned(self.codebook),
            "bias": padded(self.bias),
            "group": self.group,
        }
        if minimum:
            arguments["minimum"] = layout(self.minimum)
        kernels(isa).gemm(x, nibble_panels(self.index), out, k, n=n, **(arguments | options))
        return out


def case(m: int, n: int, k: int, group: int = 0, codebook: Array = NF4, extreme: bool = False) -> Case:
    rng = np.random.default_rng((m, n, k, group))
    groups = k // group if group else 1
    if extreme:
        q = np.where(np.arange(m)[:, None] % 2 == 0, 127, -127) * np.where(np.arange(k) % 5 == 4, -1, 1)
    else:
        q = rng.integers(-127, 128, (m, k))
    floats = [rng.standard_normal(shape).astype(np.float32) for shape in ((m,), (n, groups), (n, groups), (n,))]
    return Case(
        q=q.astype(np.int8),
        sums=q.reshape(m, groups, -1).sum(2).astype(np.int32),
        x_scale=floats[0],
        index=rng.integers(0, 16, (n, k)),
        codebook=codebook.astype(np.int8),
        scale=floats[1],
        minimum=floats[2],
        bias=floats[3] * 100,
        group=group,
    )


def check(isa: str, c: Case, minimum: bool = False) -> None:
    n, expected = len(c.index), c.product(minimum)
    for rows in (r for r in ROWS if r <= len(c.q)):
        out = c.run(isa, rows, minimum=minimum)
        assert np.array_equal(out[:, :n], expected[:rows]), rows
        assert not out[:, n:].any()


@every_isa
@pytest.mark.parametrize("n", COLUMNS)
@pytest.mark.parametrize("k", CHANNEL_DEPTHS)
def test_one_scale_a_channel(isa: str, k: int, n: int) -> None:
    check(isa, case(63, n, k))


@every_isa
@pytest.mark.parametrize("n", [17, 100])
@pytest.mark.parametrize(("k", "group"), GROUPED)
def test_groups(isa: str, k: int, group: int, n: int) -> None:
    check(isa, case(63, n, k, group))


@every_isa
@pytest.mark.parametrize("codebook", [LINEAR, UNSIGNED, NF4, EXTREME, np.full(16, 127), np.full(16, -127)])
@pytest.mark.parametrize(("k", "group"), [(26, 0), (48, 16), (96, 32)])
def test_codebooks(isa: str, k: int, group: int, codebook: Array) -> None:
    """Up to the largest values, where an instruction that saturates would show."""
    check(isa, case(29, 33, k, group, codebook))
    check(isa, case(29, 33, k, group, codebook, extreme=True))


@every_isa
@pytest.mark.parametrize(("k", "group"), [(26, 0), (96, 32), (256, 128)])
def test_minimum(isa: str, k: int, group: int) -> None:
    check(isa, case(29, 33, k, group), minimum=True)


@every_isa
@pytest.mark.parametrize(("k", "group"), [(4096, 0), (4096, 64), (4104, 0), (4160, 64), (11008, 128)])
def test_long_rows(isa: str, k: int, group: int) -> None:
    c = case(24, 20, k, group)
    expected = c.expected
    for rows in (1, 7, 24):
        assert np.array_equal(c.run(isa, rows)[:, :20], expected[:rows])


@every_isa
@pytest.mark.parametrize("rows", [1, 3, 17, 40])
def test_short_rows_panels_and_epilogue(isa: str, rows: int) -> None:
    c = case(40, 70, 64, 32)
    rng = np.random.default_rng(rows)
    multiply, residual = (aligned(rng.standard_normal((rows, 70)).astype(np.float32)) for _ in range(2))
    assert np.array_equal(
        c.run(isa, rows, 70, multiply=multiply, residual=residual), c.expected[:rows] * multiply + residual
    )
    whole = c.run(isa, rows)
    for begin, end in ((0, 1), (1, 4), (2, 5), (3, 3)):
        part = c.run(isa, rows, panel_begin=begin, panel_end=end)
        inside = slice(begin * LANES, end * LANES)
        assert np.array_equal(part[:, inside], whole[:, inside])
        outside = np.delete(part, np.arange(inside.start, inside.stop), axis=1)
        assert (np.ascontiguousarray(outside).view(np.uint8) == OLD).all()

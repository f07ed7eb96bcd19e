"""Rotary embedding of every ISA against float64, with equal bytes on all of them."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.kernels import EPS, OLD, aligned, fresh, kernels, padded
from pocketformer import _core
from pocketformer.graph import Array
from pocketformer.layout import LANES, round_up

ISAS = _core.isas()
SIN_COS_ERROR = 2e-7
"""What docs/format.md promises of a sine before it is multiplied."""

every_isa = pytest.mark.parametrize("isa", ISAS)


def frequencies(pairs: int, base: float = 10000.0) -> Array:
    return aligned((base ** (-np.arange(pairs) / max(1, pairs))).astype(np.float32))


def angles(positions: Array, frequency: Array) -> Array:
    """Products in float32, as the models compute them, [row, 1, pair] in float64."""
    product: Array = positions.astype(np.float32)[:, None] * frequency
    return product.astype(np.float64)[:, None]


def exact(x: Array, positions: Array, frequency: Array, factor: float) -> tuple[Array, Array]:
    """[rows, heads, head_dim] in float64, and a bound of the kernel's error."""
    pairs = len(frequency)
    sin, cos = (f(angles(positions, frequency)) * factor for f in (np.sin, np.cos))
    x = x.astype(np.float64)
    out, bound = x.copy(), np.zeros(x.shape)
    a, b = x[..., :pairs], x[..., pairs : 2 * pairs]
    out[..., :pairs], out[..., pairs : 2 * pairs] = a * cos - b * sin, b * cos + a * sin
    both = (np.abs(a) + np.abs(b)) * (factor * SIN_COS_ERROR + 4 * factor * EPS)
    bound[..., :pairs] = bound[..., pairs : 2 * pairs] = both
    return out, bound


@every_isa
def test_sines_and_cosines(isa: str) -> None:
    """Turning (1, 0) gives them: of every angle up to 131,072, and near multiples of a right angle."""
    positions = np.arange(0, 131073, 1 if isa != "scalar" else 61, dtype=np.int32)
    quarter = np.rint(np.arange(1, 4001) * np.pi / 2 * 32).astype(np.int32)
    for steps, frequency in ((positions, 1.0), (quarter, 1 / 32), (positions[::7], 0.7431), (positions[::7], 1e-4)):
        x = padded(np.tile(np.array([[1, 0]], np.float32), (len(steps), 1)))
        out, table = fresh(x.shape), aligned(np.array([frequency], np.float32))
        kernels(isa).rope(x, out, aligned(steps), table, 1, 2)
        angle = angles(steps, table)[:, 0, 0]
        assert np.abs(out[:, 0] - np.cos(angle)).max() <= SIN_COS_ERROR
        assert np.abs(out[:, 1] - np.sin(angle)).max() <= SIN_COS_ERROR


@pytest.mark.parametrize("factor", [1.0, 1.3466])
@pytest.mark.parametrize(
    ("head_dim", "rotated", "heads"),
    [
        (2, 2, 1),
        (5, 2, 3),
        (26, 26, 4),
        (32, 32, 3),
        (64, 64, 9),
        (80, 32, 2),
        (96, 96, 2),
        (128, 128, 5),
        (256, 256, 1),
    ],
)
def test_rows(head_dim: int, rotated: int, heads: int, factor: float) -> None:
    """Near float64; the same bytes on every ISA, at any column of wider rows and in place."""
    rng = np.random.default_rng(head_dim)
    positions = aligned(np.array([0, 1, 2, 63, 1000, 4095, 131071], np.int32))
    frequency, width, column = frequencies(rotated // 2), heads * head_dim, 3
    wide = padded(rng.standard_normal((len(positions), column + width + 7)).astype(np.float32))
    x = wide[:, column : column + width].reshape(len(positions), heads, head_dim)
    expected, bound = exact(x, positions, frequency, factor)
    results = []
    for isa in ISAS:
        out = fresh((len(positions), round_up(width, LANES) + LANES))
        kernels(isa).rope(wide, out, positions, frequency, heads, head_dim, factor, column)
        results.append(out[:, :width].copy())
        assert not out[:, width : round_up(width, LANES)].view(np.uint8).any(), "padding holds zeros"
        assert (np.ascontiguousarray(out[:, round_up(width, LANES) :]).view(np.uint8) == OLD).all()
        same = aligned(wide)
        kernels(isa).rope(same, same, positions, frequency, heads, head_dim, factor, column)
        assert np.array_equal(same[:, column : column + width], results[-1])
        same[:, column : column + width] = wide[:, column : column + width]
        assert np.array_equal(same, wide), "nothing beside the heads is touched"
    assert (np.abs(results[-1].reshape(x.shape) - expected) <= bound).all()
    for result in results:
        assert result.tobytes() == results[-1].tobytes()


def test_wrong_pairs_and_angles_are_noticed() -> None:
    """The bound tells neighbouring pairs, another base and another position from the right ones."""
    x = np.random.default_rng(0).standard_normal((3, 2, 32)).astype(np.float32)
    positions, frequency = np.array([5, 90, 1000], np.int32), frequencies(16)
    right, bound = exact(x, positions, frequency, 1.0)
    for wrong, _ in (
        exact(x, positions + 1, frequency, 1.0),
        exact(x, positions, frequencies(16, 10010.0), 1.0),
        exact(x[..., ::-1], positions, frequency, 1.0),
    ):
        assert (np.abs(wrong - right) > bound)[..., :8].any()


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("frequency has 9 entries; a head of 16 has 8", {"frequency": frequencies(9)}),
        ("positions is -1", {"positions": aligned(np.array([0, -1], np.int32))}),
        ("heads is 0", {"heads": 0}),
        ("column is -1", {"column": -1}),
        ("x is", {"column": 1}),
        ("out is", {"out": fresh((2, 16))}),
    ],
)
def test_bad_arguments_are_named(message: str, options: dict[str, object]) -> None:
    x = fresh((2, 32), fill=0)
    good = {"x": x, "out": x, "positions": aligned(np.zeros(2, np.int32)), "frequency": frequencies(8)}
    with pytest.raises(ValueError, match=message):
        kernels("scalar").rope(**(good | {"heads": 2, "head_dim": 16} | options))  # type: ignore[arg-type]

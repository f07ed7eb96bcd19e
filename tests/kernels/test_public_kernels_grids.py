"""Convolutions on plain arrays: near float64, the same bits on every ISA and as in a model, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from helpers.programs import program
from pocketformer import _core, kernels
from pocketformer.graph import Array, GraphBuilder


def floats(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng((seed, *shape)).standard_normal(shape, np.float32)


def windows(x: Array, height: int, width: int, stride: int, padding: int) -> Array:
    """[images, rows, columns, height, width, channels]."""
    around = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    found = np.lib.stride_tricks.sliding_window_view(around, (height, width), axis=(1, 2))
    return found[:, ::stride, ::stride].transpose(0, 1, 2, 4, 5, 3)


@pytest.mark.parametrize(
    ("size", "stride", "padding"), [((3, 3), 1, 1), ((3, 3), 2, 1), ((1, 4), 3, 2), ((1, 1), 1, 0)]
)
@pytest.mark.parametrize("channels", [3, 16])
def test_convolutions(channels: int, size: tuple[int, int], stride: int, padding: int) -> None:
    x, kernel = floats(2, 7, 9, channels), floats(5, channels, *size, seed=1)
    w = kernels.pack(kernel.transpose(0, 2, 3, 1).reshape(5, -1), "float32")
    of = windows(x, *size, stride, padding)
    np.testing.assert_array_equal(kernels.unfold(x, size, stride, padding), of.reshape(*of.shape[:3], -1))
    found = kernels.conv2d(x, w, size, stride, padding, floats(5), "relu")
    expected = np.maximum(np.einsum("brchwi,oihw->brco", of.astype(np.float64), kernel) + floats(5), 0)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    taps = floats(channels, *size, seed=2)
    found = kernels.depthwise(x, taps, floats(channels), stride, padding, "relu")
    expected = np.maximum(np.einsum("brchwi,ihw->brci", of.astype(np.float64), taps) + floats(channels), 0)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    for isa in kernels.isas():
        with kernels.using(isa):
            again = kernels.depthwise(x, taps, floats(channels), stride, padding, "relu", threads=1)
        assert again.tobytes() == found.tobytes()


def test_the_same_bits_as_in_a_model() -> None:
    build = GraphBuilder([{"name": "pixels", "kind": "grid", "height": 6, "width": 5}])
    build.inputs.append({"name": "image", "domain": "pixels", "dtype": "f32", "width": 16})
    kernel, taps = floats(16, 144), floats(16, 3, 3)
    y = build.depthwise(
        "image", taps.reshape(16, 9).T.copy(), None, "pixels", name="taps", height=3, width=3, padding=1
    )
    y = build.linear(build.unfold(y, "pixels", height=3, width=3, padding=1), kernel, name="conv")
    x = floats(2, 6, 5, 16, seed=1)
    expected = _core.Session(program(build.build(y))).run({"image": x.reshape(-1, 16)})
    found = kernels.conv2d(kernels.depthwise(x, taps, padding=1), kernels.pack(kernel, "float32"), 3, padding=1)
    assert found.tobytes() == expected.tobytes()


def test_other_sizes() -> None:
    x = np.arange(8, dtype=np.float32).reshape(1, 2, 4, 1)
    np.testing.assert_allclose(kernels.resize(x, (1, 2))[0, :, :, 0], [[2.5, 4.5]])
    assert kernels.resize(x, (2, 4)).tobytes() == x.tobytes()
    assert kernels.resize(x[:0], (3, 3)).shape == (0, 3, 3, 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, w: kernels.unfold(x[0], 3), r"x is float32 of shape \(4, 4, 3\); pass a C-contiguous float32"),
        (lambda x, w: kernels.unfold(x.astype(np.float64), 3), "x is float64"),
        (lambda x, w: kernels.unfold(x, 5), "size is 5 × 5, larger than x of 4 × 4 with a padding of 0"),
        (lambda x, w: kernels.unfold(x, 0), "size is 0; it must be an integer of at least 1"),
        (lambda x, w: kernels.unfold(x, 3, stride=True), "stride is True"),
        (lambda x, w: kernels.conv2d(x, w, 2), "w has 27 inputs; windows of 2 × 2 over 3 channels have 12"),
        (lambda x, w: kernels.depthwise(x, floats(4, 3, 3)), r"weight is float32 of shape \(4, 3, 3\); it must be"),
        (lambda x, w: kernels.depthwise(x, floats(3, 9, 1), padding=4), "'height' is 9; it must be an integer in 1…8"),
        (lambda x, w: kernels.depthwise(x, floats(3, 1, 1), floats(2)), "bias is float32"),
        (lambda x, w: kernels.depthwise(x, floats(3, 1, 1), activation="swish"), "'activation' is 'swish'"),
        (lambda x, w: kernels.resize(x * np.nan, (2, 2)), "x holds NaN or infinity"),
    ],
)
def test_what_is_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(floats(1, 4, 4, 3), kernels.pack(floats(2, 27)))

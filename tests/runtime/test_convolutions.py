"""Operators over grids: windows, channels each by itself, patches taken apart and put together, other sizes."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from helpers.programs import packed, program, quantize_graph
from pocketformer import _core, reference
from pocketformer.graph import Array, Graph, GraphBuilder

every_isa = pytest.mark.parametrize("isa", _core.isas())
HEIGHT, WIDTH = 7, 9


def floats(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float32)


def image(channels: int, height: int = HEIGHT, width: int = WIDTH) -> tuple[GraphBuilder, str]:
    """A graph over pixels of so many channels, and their rows, padded to whole vectors."""
    build = GraphBuilder([{"name": "pixels", "kind": "grid", "height": height, "width": width}])
    build.inputs.append({"name": "image", "domain": "pixels", "dtype": "f32", "width": channels})
    return build, build.unfold("image", "pixels", height=1, width=1)


def grid(build: GraphBuilder, height: int, width: int) -> str:
    return build.domain(f"{height}x{width}", "grid", "pixels", height=height, width=width)


def agree(graph: Graph, pixels: Array, isa: str, tolerance: float = 2e-6) -> Array:
    """The runtime near the interpreter, and the same bytes however the work is divided."""
    expected = reference.run(graph, {"image": pixels})
    compiled = program(graph, isa)
    result = _core.Session(compiled).run({"image": pixels})
    assert result.shape == expected.shape
    assert np.abs(result - expected).max() <= tolerance * max(1.0, float(np.abs(expected).max()))
    for threads, mode, block_rows in itertools.product([1, 2, 3], ["rows", "columns"], [0, 5]):
        other = _core.Session(compiled, mode, block_rows).run({"image": pixels}, threads)
        assert other.tobytes() == result.tobytes(), (threads, mode, block_rows)
    return result


@every_isa
@pytest.mark.parametrize(
    ("channels", "height", "width", "stride", "padding", "activation"),
    [
        (5, 3, 3, 1, 1, "silu"),
        (20, 3, 3, 2, 1, "none"),
        (48, 2, 5, 1, 2, "gelu"),
        (33, 8, 8, 3, 4, "relu"),
        (16, 1, 1, 1, 0, "none"),
    ],
)
@pytest.mark.parametrize("images", [1, 3])
def test_channels_by_themselves(
    isa: str, channels: int, height: int, width: int, stride: int, padding: int, activation: str, images: int
) -> None:
    build, x = image(channels)
    sides = ((side + 2 * padding - n) // stride + 1 for side, n in ((HEIGHT, height), (WIDTH, width)))
    x = build.depthwise(
        x,
        floats(height * width, channels),
        floats(channels) if stride == 1 else None,
        grid(build, *sides),
        name="taps",
        height=height,
        width=width,
        stride=stride,
        padding=padding,
        activation=activation,
    )
    pixels = floats(images * HEIGHT * WIDTH, channels, seed=1)
    together = agree(build.build(x), pixels, isa)
    if isa != _core.isas()[-1]:
        assert _core.Session(program(build.build(x), _core.isas()[-1])).run({"image": pixels}).tobytes() == (
            together.tobytes()
        )
    first = _core.Session(program(build.build(x), isa)).run({"image": pixels[: HEIGHT * WIDTH]})
    assert first.tobytes() == together[: len(first)].tobytes()


@every_isa
@pytest.mark.parametrize("weights", ["fp32", "int8"])
def test_an_inverted_residual(isa: str, weights: str) -> None:
    """Its ends are products over the grid of its middle, to which it is added: windows of a grid on that grid."""
    build, x = image(12)
    wide = build.linear(x, floats(40, 12), floats(40), name="expand", activation="silu")
    window = {"height": 3, "width": 3, "padding": 1}
    wide = build.depthwise(wide, floats(9, 40), floats(40), "pixels", name="taps", activation="silu", **window)
    x = build.linear(wide, floats(12, 40), floats(12), name="reduce", residual=x)
    x = build.linear(build.unfold(x, "pixels", **window), floats(12, 108), name="conv", activation="silu", residual=x)
    x = build.linear(build.concat([x, wide]), floats(5, 52), name="both")
    graph = build.build(x)
    pixels = floats(2 * HEIGHT * WIDTH, 12, seed=1)
    agree(quantize_graph(graph) if weights == "int8" else graph, pixels, isa, 2e-2 if weights == "int8" else 1e-5)


def test_padding_is_exact_in_int8() -> None:
    """The windows over the border are those of an image with zeros around it."""
    window = {"height": 3, "width": 3}
    plain, x = image(16)
    x = plain.linear(plain.unfold(x, "pixels", padding=1, **window), floats(8, 144), name="conv")
    wide, y = image(16, HEIGHT + 2, WIDTH + 2)
    y = wide.linear(wide.unfold(y, grid(wide, HEIGHT, WIDTH), **window), floats(8, 144), name="conv")
    pixels = floats(2, HEIGHT, WIDTH, 16, seed=1)
    around = np.pad(pixels, ((0, 0), (1, 1), (1, 1), (0, 0)))
    results = [
        _core.Session(program(quantize_graph(build.build(out)))).run({"image": given.reshape(-1, 16)}).tobytes()
        for build, out, given in ((plain, x, pixels), (wide, y, around))
    ]
    assert results[0] == results[1]


@every_isa
def test_pixels_of_patches_attend_to_their_like(isa: str) -> None:
    """Each pixel of a 2 × 2 patch to those at its place in the others, as sequences of their own would."""
    build, x = image(3 * 24, 6, 8)
    patches = grid(build, 3, 4)
    window = {"height": 2, "width": 2}
    parts = [build.unfold(build.columns(x, begin, 24), patches, stride=2, **window) for begin in (0, 24, 48)]
    state = build.store(parts[1], parts[2], heads=12, head_dim=8, domain=patches)
    x = build.fold(build.attend(parts[0], state, scale=0.5), "pixels", **window)
    pixels = floats(2 * 48, 72, seed=1)
    found = agree(build.build(x), pixels, isa, 1e-5)

    images = pixels.reshape(2, 3, 2, 4, 2, 3, 3, 8).astype(np.float64)  # row, line, column, pixel; q k v; head
    q, k, v = images.transpose(5, 0, 2, 4, 6, 1, 3, 7).reshape(3, 2, 2, 2, 3, 12, 8)
    p = np.exp(0.5 * q @ k.swapaxes(-1, -2))
    mixed = (p / p.sum(axis=-1, keepdims=True) @ v).reshape(2, 2, 2, 3, 3, 4, 8)
    expected = mixed.transpose(0, 4, 1, 5, 2, 3, 6).reshape(96, 24)
    assert np.abs(found - expected).max() < 1e-5


@every_isa
@pytest.mark.parametrize("to", [(8, 10), (14, 18), (3, 4), (7, 9), (1, 1), (20, 3)])
def test_other_sizes(isa: str, to: tuple[int, int]) -> None:
    """As PyTorch interpolates them, which rounds a place to float32 as the runtime does."""
    torch = pytest.importorskip("torch")
    build, x = image(19)
    pixels = floats(2 * HEIGHT * WIDTH, 19, seed=1)
    found = agree(build.build(build.resize(x, grid(build, *to))), pixels, isa, 1e-5)
    given = torch.from_numpy(pixels.reshape(2, HEIGHT, WIDTH, 19).transpose(0, 3, 1, 2).copy())
    expected = torch.nn.functional.interpolate(given, size=to, mode="bilinear", align_corners=False)
    assert np.abs(found - expected.numpy().transpose(0, 2, 3, 1).reshape(-1, 19)).max() < 1e-5


def test_work() -> None:
    build, x = image(5)
    window = {"height": 3, "width": 3, "padding": 1}
    build.depthwise(x, floats(9, 5), None, "pixels", name="taps", activation="silu", **window)
    (step,) = (
        step for step in program(build.build(str(build.ops[-1]["out"]))).work([1, 1]) if step["kind"] == "depthwise"
    )
    assert step["rows"] == 2 * HEIGHT * WIDTH
    assert step["multiply_adds"] == step["rows"] * 9 * 5
    assert (step["activated"], step["weight_bytes"]) == (step["rows"] * 5, 9 * 16 * 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stride": 2}, "'domain' is 'pixels' of 7 × 9; it has another size than the windows of 7 × 9"),
        ({"domain": "none"}, "'domain' names 'none', which is no domain"),
        ({"domain": "sequences"}, "'domain' names 'sequences', which is no grid"),
        ({"height": 9, "padding": 4}, "'height' is 9; it must be an integer in 1…8"),
        ({"width": 5, "padding": 1}, "another size"),
        ({"bias": "absent"}, "tensor 'absent' is missing"),
        ({"in": "image"}, "no whole vectors of 16"),
    ],
)
def test_wrong_depthwise_convolutions_are_refused(change: dict[str, Any], message: str) -> None:
    build, x = image(5)
    build.domain("sequences", "one", "pixels")
    build.depthwise(x, floats(9, 5), None, "pixels", name="taps", height=3, width=3, padding=1)
    graph = packed(build.build(str(build.ops[-1]["out"])))
    graph.ops[-1].update(change)
    with pytest.raises(ValueError, match=message):
        _core.Program(graph.description(), graph.params)


def test_wrong_folds_are_refused() -> None:
    build, x = image(8)
    rows = grid(build, 3, 4)
    for domain, window, message in [
        (grid(build, 14, 17), (2, 2), "'14x17' of 14 × 17; 7 × 9 windows of 2 × 2 make another"),
        (grid(build, 21, 27), (3, 3), "of 8 columns, which are not those of 3 × 3 pixels"),
        (rows, (2, 2), "make another"),
    ]:
        graph = packed(build.build(build.fold(x, domain, height=window[0], width=window[1])))
        with pytest.raises(ValueError, match=message):
            _core.Program(graph.description(), graph.params)
        build.ops.pop()

"""Operators beside those of text encoders: rope, windows of a grid, rows before a sequence, gates, 4-bit weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from helpers.agreement import LENGTHS, agree, floats, text_inputs
from helpers.programs import packed, program, quantize_graph
from pocketformer import _core, reference
from pocketformer.graph import GraphBuilder, Table
from pocketformer.hadamard import hadamard

every_isa = pytest.mark.parametrize("isa", _core.isas())


@every_isa
@pytest.mark.parametrize(("head_dim", "rotated", "begin"), [(8, 8, 0), (26, 20, 0), (26, 26, 26), (64, 32, 3)])
def test_rope(isa: str, head_dim: int, rotated: int, begin: int) -> None:
    """Of whole rows and of columns that begin anywhere."""
    build = GraphBuilder.text(50, 0, 40)
    x = build.embed([Table("words", floats(50, begin + 3 * head_dim), "ids")])
    part = build.columns(x, begin, 3 * head_dim)
    frequencies = (1.0 / 100 ** (np.arange(rotated // 2) / (rotated // 2))).astype(np.float32)
    agree(build.build(build.rope(part, frequencies, name="f", head_dim=head_dim, factor=1.1)), text_inputs(), isa)


def image_graph(channels: int, size: int, window: int, stride: int, padding: int) -> GraphBuilder:
    build = GraphBuilder([{"name": "pixels", "kind": "grid", "height": size, "width": size + 2}])
    build.inputs.append({"name": "image", "domain": "pixels", "dtype": "f32", "width": channels})
    sides = ((side + 2 * padding - window) // stride + 1 for side in (size, size + 2))
    build.domain("patches", "grid", "pixels", height=next(sides), width=next(sides))
    return build


@every_isa
@pytest.mark.parametrize(("channels", "window", "stride", "padding"), [(3, 4, 4, 0), (1, 3, 1, 1), (16, 3, 2, 1)])
@pytest.mark.parametrize("images", [1, 3])
def test_windows_of_a_grid(isa: str, channels: int, window: int, stride: int, padding: int, images: int) -> None:
    """Unfolded and multiplied: a convolution."""
    build = image_graph(channels, 10, window, stride, padding)
    x = build.unfold("image", "patches", height=window, width=window, stride=stride, padding=padding)
    x = build.linear(x, floats(20, window * window * channels), floats(20), name="conv", activation="relu")
    agree(build.build(x), {"image": floats(images * 120, channels)}, isa)


@every_isa
def test_rows_before_every_sequence(isa: str) -> None:
    """Patches of two images behind two rows of their own, positions added, pooled: the ends of a vision transformer."""
    build = image_graph(3, 8, 4, 4, 0)
    x = build.unfold("image", "patches", height=4, width=4, stride=4)
    x = build.linear(x, floats(24, 48), name="patch")
    build.domain("tokens", "ragged", "patches", prepended=2)
    x = build.prepend(x, floats(2, 24), "tokens", name="first")
    x = build.embed([Table("positions", floats(6, 24, seed=3), "positions")], add_to=x)
    qkv = build.linear(x, floats(72, 24), name="qkv")
    x = build.linear(build.attention(qkv, heads=2, head_dim=12), floats(24, 24), name="out", residual=x)
    second, patches = build.pool(x, "cls", begin=1), build.pool(x, "mean", begin=2)
    graph = build.build(build.linear(second, floats(24, 24), name="both", residual=patches))
    images = floats(2 * 80, 3)
    together = agree(graph, {"image": images}, isa)
    for row, part in zip(together, (images[:80], images[80:]), strict=True):
        assert _core.Session(program(graph, isa)).run({"image": part})[0].tobytes() == row.tobytes()


@every_isa
def test_gates(isa: str) -> None:
    """SwiGLU: two products that share one input."""
    build = GraphBuilder.text(50, 0, 40)
    x = build.embed([Table("words", floats(50, 36), "ids")])
    up = build.linear(x, floats(52, 36), name="up")
    gated = build.linear(x, floats(52, 36, seed=1), name="gate", activation="silu", multiply=up)
    agree(build.build(build.linear(gated, floats(36, 52), name="down", residual=x)), text_inputs(), isa)


@every_isa
@pytest.mark.parametrize("group", [0, 16, 32])
@pytest.mark.parametrize("minimum", [False, True])
def test_four_bit_weights(isa: str, group: int, minimum: bool) -> None:
    """In a graph they are read, rounded inputs and all, as the interpreter reads them."""
    build, rng = GraphBuilder.text(50, 0, 40), np.random.default_rng(5)
    n, k = 70, 96
    x = build.embed([Table("words", floats(50, k), "ids")])
    graph = build.build(build.linear(x, floats(n, k), floats(n), name="w"))
    shape = (n, k // group) if group else (n,)
    params: dict[str, Any] = {
        **graph.params,
        "w.weight": rng.integers(0, 16, (n, k)).astype(np.uint8),
        "w.codebook": np.sort(rng.integers(-127, 128, 16)).astype(np.int8),
        "w.scale": rng.random(shape).astype(np.float32) / 100,
    }
    if minimum:
        params["w.minimum"] = floats(*shape) / 100
    facts = {"format": "i4", "n": n, "k": k, "rotate": 32, **({"group": group} if group else {})}
    graph = replace(graph, params=params, weights={**graph.weights, "w": facts})
    agree(graph, text_inputs(), isa, 1e-4)
    np.testing.assert_array_equal(reference.run(graph, text_inputs()), reference.run(packed(graph), text_inputs()))


@every_isa
@pytest.mark.parametrize("bits", [3, 4, 5, 6, 7])
@pytest.mark.parametrize(("width", "rotate"), [(26, 2), (16, 16), (96, 0)])
def test_tables_of_few_bits(isa: str, bits: int, width: int, rotate: int) -> None:
    """Looked up and rotated back, as the interpreter has it, packed or plain."""
    build, rng = GraphBuilder.text(50, 0, 40), np.random.default_rng(bits)
    x = build.embed([Table("words", floats(50, width), "ids"), Table("places", floats(40, width), "positions")])
    graph = build.build(x)
    params = {
        **graph.params,
        "words.weight": rng.integers(0, 1 << bits, (50, width)).astype(np.uint8),
        "words.codebook": np.sort(rng.integers(-127, 128, 1 << bits)).astype(np.int8),
        "words.scale": rng.random(50).astype(np.float32) / 100,
    }
    facts = {"format": f"i{bits}", "n": 50, "k": width, "rotate": rotate}
    graph = replace(graph, params=params, weights={**graph.weights, "words": facts})
    agree(graph, text_inputs(), isa)
    np.testing.assert_array_equal(reference.run(graph, text_inputs()), reference.run(packed(graph), text_inputs()))
    ids = text_inputs()["ids"]
    real = params["words.codebook"][params["words.weight"][ids]] * params["words.scale"][ids, None]
    np.testing.assert_allclose(
        reference.run(graph, text_inputs())[0] - graph.params["places.weight"][0], hadamard(real[0], rotate), atol=1e-4
    )


@every_isa
@pytest.mark.parametrize("bits", [4, 5])
def test_tables_by_rows_in_bytes_are_rotated_too(isa: str, bits: int) -> None:
    build = GraphBuilder.text(50, 0, 40)
    x = build.embed([Table("words", floats(50, 32), "ids")])
    graph = quantize_graph(build.build(x), table_bits=bits, fp32_rows=0)
    assert graph.weights["words"]["rotate"] == 32
    agree(graph, text_inputs(), isa)
    byte = {"format": "i8", "n": 50, "k": 32, "rotate": 32}
    values = graph.params["words.codebook"][graph.params["words.weight"]]
    wide = replace(graph, params={**graph.params, "words.weight": values}, weights={"words": byte})
    wide.params.pop("words.codebook")
    inputs = text_inputs()
    few, whole = (_core.Session(program(part, isa)).run(inputs) for part in (graph, wide))
    assert few.tobytes() == whole.tobytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rotated": 7}, "'rotated' is 7; it must be even"),
        ({"head_dim": 5}, "'head_dim' is 5, which does not divide the 24 columns"),
        ({"frequencies": "words.weight"}, "'words.weight' is float32"),
    ],
)
def test_wrong_ropes_are_refused(change: dict[str, Any], message: str) -> None:
    build = GraphBuilder.text(50, 0, 40)
    x = build.embed([Table("words", floats(50, 24), "ids")])
    graph = build.build(build.rope(x, np.ones(4, np.float32), name="f", head_dim=8))
    graph.ops[-1].update(change)
    ready = packed(build.build(x) if "frequencies" in change else graph)
    description = {**ready.description(), "ops": graph.ops, "output": graph.output}
    with pytest.raises(ValueError, match=message):
        _core.Program(description, ready.params | packed(build.build(x)).params)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stride": 3}, "it has another size than the windows of 8 × 10"),
        ({"height": 11}, "it has another size"),
        ({"domain": "pixels"}, "is 'pixels' of 8 × 10; it has another size than the windows of 8 × 10"),
        ({"domain": "rows"}, "names 'rows', which is no grid"),
    ],
)
def test_wrong_windows_are_refused(change: dict[str, Any], message: str) -> None:
    build = image_graph(3, 8, 4, 4, 0)
    build.domain("rows", "one", "pixels")
    graph = packed(build.build(build.unfold("image", "patches", height=4, width=4, stride=4)))
    graph.ops[-1].update(change)
    with pytest.raises(ValueError, match=message):
        _core.Program(graph.description(), graph.params)


def test_pixels_are_checked() -> None:
    build = image_graph(3, 8, 4, 4, 0)
    session = _core.Session(program(build.build(build.unfold("image", "patches", height=4, width=4, stride=4))))
    spoilt = floats(80, 3)
    spoilt[7, 1] = np.nan
    for image, message in [
        (spoilt, r"image\[7\] holds nan; every number must be finite"),
        (floats(79, 3), "image has 79 rows; they must be a multiple of 8 × 10"),
        (floats(80, 4), r"image is float32 of shape \(80, 4\); a row has 3 numbers"),
        (None, "image is missing"),
    ]:
        with pytest.raises(ValueError, match=message):
            session.run({"image": image})


@every_isa
@pytest.mark.parametrize("kind", ["mean", "cls", "max", "last", "mean_sqrt", "weighted_mean"])
def test_pools_from_a_row_on(isa: str, kind: str) -> None:
    """With rows left out, more than there are included: then the last row stands alone."""
    build = GraphBuilder.text(100, 0, 40)
    x = build.embed([Table("words", floats(100, 26), "ids")])
    skip = build.sequence_index("skipped", 41)
    graph = build.build(build.pool(x, kind, skip=skip))
    skipped = np.array([0, 20, 17, 1, 40], np.int32)
    inputs = {**text_inputs(), "ids": np.arange(sum(LENGTHS), dtype=np.int32)}
    whole, part = agree(graph, inputs, isa), agree(graph, {**inputs, "skipped": skipped}, isa)
    same = [bool((a == b).all()) for a, b in zip(whole, part, strict=True)]
    assert same == [True, kind == "last", kind == "last", kind == "last", kind == "last"]
    with pytest.raises(ValueError, match=r"skipped has 4 entries"):
        _core.Session(program(graph, isa)).run({**inputs, "skipped": skipped[:4]})


@every_isa
@pytest.mark.parametrize("widths", [(16, 32), (5, 11), (7, 26, 16)])
def test_values_side_by_side(isa: str, widths: tuple[int, ...]) -> None:
    build = GraphBuilder.text(50, 0, 40)
    x = build.embed([Table("words", floats(50, 40), "ids")])
    parts = [build.linear(x, floats(width, 40), name=f"part{width}") for width in widths]
    parts.append(build.columns(x, 3, 9))
    joined = build.concat(parts)
    assert build.build(joined).widths()[joined] == sum(widths) + 9
    agree(build.build(build.linear(joined, floats(20, sum(widths) + 9), name="last")), text_inputs(), isa)

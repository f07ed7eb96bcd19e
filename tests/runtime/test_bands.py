"""Maps that are made line by line for the windows which alone read them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from helpers.programs import program, quantize_graph
from pocketformer import _core, reference
from pocketformer.graph import Array, Graph, GraphBuilder

INPUTS, WIDE, OUTPUTS = 12, 40, 8


def floats(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float32)


def residual_block(
    size: tuple[int, int], kernel: tuple[int, int], stride: int, padding: int, *, read_twice: bool = False
) -> Graph:
    """Two inverted residuals, the second over the results of the first."""
    build = GraphBuilder([{"name": "pixels", "kind": "grid", "height": size[0], "width": size[1]}])
    build.inputs.append({"name": "image", "domain": "pixels", "dtype": "f32", "width": INPUTS})
    x = build.linear(build.unfold("image", "pixels", height=1, width=1), floats(INPUTS, INPUTS), name="stem")
    windows = {"height": kernel[0], "width": kernel[1], "stride": stride, "padding": padding}
    for name, domain, over in (
        ("first", "pixels", {"height": 3, "width": 3, "padding": 1}),
        ("second", build.domain("windows", "grid", "pixels", **_sizes(size, kernel, stride, padding)), windows),
    ):
        wide = build.linear(x, floats(WIDE, INPUTS), floats(WIDE), name=f"{name}.expand", activation="silu")
        if read_twice:
            build.columns(wide, 0, 16)
        taps = floats(over["height"] * over["width"], WIDE)
        mixed = build.depthwise(wide, taps, floats(WIDE), domain, name=f"{name}.taps", activation="silu", **over)
        residual = x if domain == "pixels" else None
        outputs = INPUTS if residual else OUTPUTS
        x = build.linear(mixed, floats(outputs, WIDE) / 8, floats(outputs), name=f"{name}.reduce", residual=residual)
    return build.build(x)


def _sizes(size: tuple[int, int], kernel: tuple[int, int], stride: int, padding: int) -> dict[str, int]:
    height, width = ((side + 2 * padding - n) // stride + 1 for side, n in zip(size, kernel, strict=True))
    return {"height": height, "width": width}


CASES = [
    ((26, 35), (3, 3), 1, 1),
    ((25, 33), (3, 3), 2, 1),
    ((40, 5), (5, 2), 3, 1),
    ((24, 40), (3, 3), 1, 2),
    ((24, 9), (1, 4), 1, 0),
]


@pytest.mark.parametrize("weights", ["fp32", "int8"])
@pytest.mark.parametrize(("size", "kernel", "stride", "padding"), CASES)
def test_lines_are_those_of_the_whole_map(
    size: tuple[int, int], kernel: tuple[int, int], stride: int, padding: int, weights: str
) -> None:
    """Near the interpreter, and the bytes of a program that keeps the map, however the work is divided."""
    banded, whole = (residual_block(size, kernel, stride, padding, read_twice=twice) for twice in (False, True))
    images = floats(2 * size[0] * size[1], INPUTS, seed=1)
    if weights == "int8":
        banded, whole = quantize_graph(banded), quantize_graph(whole)
    keeping = _core.Session(program(whole))
    expected = keeping.run({"image": images})
    for isa in _core.isas():
        compiled = program(banded, isa)
        for threads, mode, block_rows in itertools.product([1, 2, 3], ["rows", "columns"], [0, 5]):
            session = _core.Session(compiled, mode, block_rows)
            assert session.run({"image": images}, threads).tobytes() == expected.tobytes(), (isa, threads, block_rows)
    near = reference.run(banded, {"image": images})
    tolerance = 1e-5 if weights == "fp32" else 2e-2
    assert np.abs(expected - near).max() <= tolerance * np.abs(near).max()
    first = _core.Session(program(banded)).run({"image": images[: len(images) // 2]})
    assert first.tobytes() == expected[: len(first)].tobytes()


def test_memory_holds_lines_instead_of_the_map() -> None:
    size = (128, 64)
    images = floats(size[0] * size[1], INPUTS)
    sessions = [_core.Session(program(residual_block(size, (3, 3), 1, 1, read_twice=twice))) for twice in (False, True)]
    for session in sessions:
        session.run({"image": images})
    lines, whole = (session.arena_bytes for session in sessions)
    assert whole - lines > 0.8 * size[0] * size[1] * 48 * 4


def test_work_counts_what_makes_the_lines() -> None:
    banded, whole = (
        program(residual_block((24, 8), (3, 3), 1, 1, read_twice=twice)).work([1]) for twice in (False, True)
    )
    totals = [
        sorted((step["kind"], step["rows"], step["multiply_adds"], step["weight_bytes"]) for step in steps)
        for steps in (banded, whole)
    ]
    assert totals[0] == totals[1]
    stages = [[step["stage"] for step in steps if step["kind"] == "linear"] for steps in (banded, whole)]
    assert stages[0] != stages[1]

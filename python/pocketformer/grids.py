"""The kernels over grids of pixels on plain arrays: each call is a graph of one operator (docs/format.md).

:mod:`pocketformer.kernels` has them all.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from . import _core
from .layout import LANES, round_up
from .segments import aligned

Floats: TypeAlias = NDArray[np.float32]
Activation: TypeAlias = Literal["gelu", "gelu_tanh", "relu", "silu", "tanh"]


def unfold(
    x: Floats, size: int | tuple[int, int], stride: int = 1, padding: int = 0, *, threads: int | None = None
) -> Floats:
    """Windows of ``size`` (height, width) every ``stride`` pixels of x: [images, height, width, channels] → [images,
    rows, columns, size · size · channels], line by line, pixel by pixel, channels last.

    ``padding`` pixels of zeros lie around an image.
    """
    height, width = pair("size", size)
    stride, padding = integer("stride", stride, 1), integer("padding", padding, 0)
    to = windows(x, (height, width), stride, padding)
    op = {"op": "unfold", "height": height, "width": width, "stride": stride, "padding": padding}
    return run(x, to, threads, op)


def depthwise(
    x: Floats,
    weight: Floats,
    bias: Floats | None = None,
    stride: int = 1,
    padding: int = 0,
    activation: Activation | None = None,
    *,
    threads: int | None = None,
) -> Floats:
    """A convolution of each channel by itself, in float32: [images, height, width, channels] → [images, rows, columns,
    channels].

    ``weight`` is [channels, height, width], of at most 8 × 8, and ``bias`` [channels].
    """
    channels = checked(x)[3]
    height, width = np.shape(weight)[1:] if np.ndim(weight) == 3 else (1, 1)
    stride, padding = integer("stride", stride, 1), integer("padding", padding, 0)
    padded("weight", weight, channels, height, width)
    taps = np.ascontiguousarray(weight.reshape(channels, -1).T)
    tensors = {"weight": padded("weight", taps, height * width, channels)}
    op = {"op": "depthwise", "weight": "weight", "height": height, "width": width, "stride": stride, "padding": padding}
    if bias is not None:
        tensors["bias"], op["bias"] = padded("bias", bias, channels), "bias"
    op["activation"] = "none" if activation is None else activation
    return run(x, windows(x, (height, width), stride, padding), threads, op, tensors)


def resize(x: Floats, size: tuple[int, int], *, threads: int | None = None) -> Floats:
    """x at another ``size`` (height, width), bilinear, as torch does without ``align_corners``: [images, height, width,
    channels] → [images, *size, channels]."""
    return run(x, pair("size", size), threads, {"op": "resize"})


def checked(x: Floats) -> tuple[int, int, int, int]:
    """The shape of ``x``, images, height, width and channels. Raises ValueError for another array than that."""
    if not isinstance(x, np.ndarray) or x.dtype != np.float32 or x.ndim != 4 or not x.flags.c_contiguous:
        given = f"{x.dtype} of shape {x.shape}" if isinstance(x, np.ndarray) else type(x).__name__
        raise ValueError(
            f"x is {given}; pass a C-contiguous float32 array [images, height, width, channels], by "
            "np.ascontiguousarray(x, np.float32)"
        )
    if min(x.shape[1:]) < 1:
        raise ValueError(f"x has the shape {x.shape}; height, width and channels must be at least 1")
    images, height, width, channels = x.shape
    return images, height, width, channels


def integer(name: str, value: Any, least: int) -> int:
    """Raises ValueError for what is no integer of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ValueError(f"{name} is {value!r}; it must be an integer of at least {least}")
    return int(value)


def pair(name: str, value: Any) -> tuple[int, int]:
    """Height and width, which one number may stand for. Raises ValueError for what is neither."""
    both = value if isinstance(value, tuple) and len(value) == 2 else (value, value)
    return integer(name, both[0], 1), integer(name, both[1], 1)


def windows(x: Floats, size: tuple[int, int], stride: int, padding: int) -> tuple[int, int]:
    """Rows and columns of windows over ``x``. Raises ValueError where none fits."""
    _, height, width, _ = checked(x)
    down, across = (side + 2 * padding - n for side, n in zip((height, width), size, strict=True))
    if min(down, across) < 0:
        raise ValueError(
            f"size is {size[0]} × {size[1]}, larger than x of {height} × {width} with a padding of {padding}"
        )
    return down // stride + 1, across // stride + 1


def run(
    x: Floats, to: tuple[int, int], threads: int | None, op: dict[str, Any], tensors: dict[str, Floats] | None = None
) -> Floats:
    """``op`` from ``x`` to a grid of the size ``to``: [images, rows, columns, what it makes of the channels]."""
    images, height, width, channels = checked(x)
    domains = [
        {"name": "x", "kind": "grid", "height": height, "width": width},
        {"name": "to", "kind": "grid", "of": "x", "height": to[0], "width": to[1]},
    ]
    ops: list[dict[str, Any]] = [{"in": "pixels", "out": "result", "domain": "to", **op}]
    if op["op"] == "depthwise" and channels % LANES:  # it reads whole vectors
        ops.insert(0, {"op": "unfold", "in": "pixels", "out": "whole", "domain": "x", "height": 1, "width": 1})
        ops[1]["in"] = "whole"
    graph = {
        "domains": domains,
        "inputs": [{"name": "pixels", "domain": "x", "dtype": "f32", "width": channels}],
        "weights": {},
        "states": [],
        "ops": ops,
        "output": "result",
    }
    chosen = _core.choose_isa(None)
    _core.choose_isa(chosen)
    program = _core.Program(graph, {name: aligned(array) for name, array in (tensors or {}).items()}, chosen or "")
    rows = x.reshape(-1, channels)
    if not np.isfinite(rows).all():
        raise ValueError("x holds NaN or infinity; every number must be finite")
    if images == 0:
        return np.zeros((0, *to, program.output_width), np.float32)
    result = _core.Session(program).run({"pixels": rows}, _core.default_threads() if threads is None else threads)
    return result.reshape(images, *to, -1)


def padded(name: str, array: Floats, *shape: int) -> Floats:
    """``array`` of ``shape`` with zeros up to whole vectors of its last axis. Raises ValueError for another one."""
    if not isinstance(array, np.ndarray) or array.dtype != np.float32 or array.shape != shape:
        given = f"{array.dtype} of shape {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        raise ValueError(f"{name} is {given}; it must be float32 of shape {shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds NaN or infinity; every number must be finite")
    result = np.zeros((*shape[:-1], round_up(shape[-1], LANES)), np.float32)
    result[..., : shape[-1]] = array
    return result

"""Kernels bound to arrays of a given shape, as calls without arguments for the benchmarks to repeat.

Each has ``empty()`` as well, the same call with nothing to do: what passing the arguments from Python costs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketformer import _core
from pocketformer.layout import ALIGNMENT, GROUP, LANES, fp32_panels, int8_panels, round_up

Array = NDArray[Any]


def zeros(*shape: int, dtype: Any = np.float32) -> Array:
    """Zeros that start at a multiple of 64 bytes."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.zeros(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    array: Array = memory[start : start + size].view(dtype).reshape(shape)
    return array


def floats(*shape: int, seed: int = 0) -> Array:
    out = zeros(*shape)
    out[...] = np.random.default_rng(seed).standard_normal(shape, np.float32)
    return out


def integers(*shape: int, dtype: Any = np.int8) -> Array:
    out = zeros(*shape, dtype=dtype)
    out[...] = np.random.default_rng(0).integers(-127, 128, shape, np.int8).view(dtype)
    return out


@dataclass
class Product:
    """[m, k] · [n, k]ᵀ in int8 (one scale a row and a channel, fp32 out) or fp32, in the runtime's row blocks."""

    int8: bool
    m: int
    n: int
    k: int
    isa: str = ""
    blocks: list[tuple[Array, Array, Array]] = field(init=False, repr=False)
    weight: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        columns = round_up(self.n, LANES)
        if self.int8:
            a = integers(self.m, round_up(self.k, 64), dtype=np.uint8)
            panels = integers(*int8_panels(self.n, self.k))
            self.weight = panels, {"scale": zeros(columns), "colsum": zeros(columns, dtype=np.int32)}
        else:
            a = floats(self.m, round_up(self.k, LANES))
            self.weight = floats(*fp32_panels(self.n, self.k)), {}
        rows, out = zeros(self.m), zeros(self.m, columns)
        step = _core.block_rows(self.m, 1, True)
        spans = [(i, min(i + step, self.m)) for i in range(0, self.m, step)]
        scales = [aligned(rows[b:e]) for b, e in spans]
        self.blocks = [(a[b:e], scale, out[b:e]) for (b, e), scale in zip(spans, scales, strict=True)]
        self._kernels = _core.Kernels(self.isa)

    @property
    def multiply_adds(self) -> int:
        return self.m * self.n * self.k

    def __call__(self, panel_end: int = -1) -> None:
        for block in self.blocks:
            self.block(*block, panel_end=panel_end)

    def block(self, a: Array, scale: Array, out: Array, **options: Any) -> None:
        """One block of rows; ``options`` as the kernel takes them."""
        panels, beside = self.weight
        if self.int8:
            options["x_scale"] = scale
        self._kernels.gemm(a, panels, out, self.k, **beside, **options)

    def empty(self) -> None:
        self(panel_end=0)


def aligned(array: Array) -> Array:
    out = zeros(*array.shape, dtype=array.dtype)
    out[...] = array
    return out


@dataclass
class Attention:
    """Attention of ``length`` tokens among themselves; ``left`` and ``right`` bound what each sees, −1 does not."""

    int8: bool
    length: int
    heads: int
    head_dim: int
    left: int = -1
    right: int = -1
    isa: str = ""

    def __post_init__(self) -> None:
        stride, capacity = round_up(self.head_dim, LANES), round_up(self.length, LANES)
        keys, scales = (self.heads, capacity, stride), (self.heads, capacity)
        self.qkv = floats(self.length, 3 * self.heads * self.head_dim)
        self.out = zeros(self.length, round_up(self.heads * self.head_dim, LANES))
        self.q = zeros(self.length, self.heads, stride, dtype=np.int8)
        self.q_scale = zeros(self.length, self.heads)
        if self.int8:
            values = zeros(self.heads, capacity // GROUP, stride, GROUP, dtype=np.int8)
            self.cache: Any = (zeros(*keys, dtype=np.uint8), zeros(*scales), values, zeros(*scales))
        else:
            self.cache = (zeros(*keys), zeros(*keys))
        self._kernels = _core.Kernels(self.isa)
        self.store()

    @property
    def pairs(self) -> int:
        """Queries times the keys they see, of one head."""
        i = np.arange(self.length)
        first = np.zeros_like(i) if self.left < 0 else np.maximum(i - self.left, 0)
        last = np.minimum(i + (self.length if self.right < 0 else self.right), self.length - 1)
        return int((last - first + 1).sum())

    @property
    def multiply_adds(self) -> int:
        return 2 * self.heads * self.head_dim * self.pairs

    def store(self) -> None:
        """Stores keys and values; in int8 quantizes them and the queries."""
        columns = {"k_column": self.heads * self.head_dim, "v_column": 2 * self.heads * self.head_dim}
        if self.int8:
            self._kernels.quantize_heads(self.qkv, self.q, self.q_scale, self.head_dim)
            self._kernels.store_i8(self.qkv, self.qkv, self.cache, self.head_dim, **columns)
        else:
            self._kernels.store_f32(self.qkv, self.qkv, self.cache, self.head_dim, **columns)

    def __call__(self, head_end: int = -1) -> None:
        options = {"keys": self.length, "scale": self.head_dim**-0.5, "left": self.left, "right": self.right}
        if self.int8:
            self._kernels.attention_i8(
                self.q, self.q_scale, self.cache, self.out, self.head_dim, head_end=head_end, **options
            )
        else:
            self._kernels.attention_f32(
                self.qkv,
                self.cache,
                self.out,
                self.heads,
                self.head_dim,
                head_end=head_end,
                **options,
            )

    def empty(self) -> None:
        self(head_end=0)

    def whole(self) -> None:
        """What another library's attention on fp32 does: the split and quantization included."""
        self.store()
        self()

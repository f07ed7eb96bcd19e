"""Arrays in the layouts of docs/format.md, and exact numpy counterparts of the kernels' arithmetic."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketformer import _core
from pocketformer.graph import Array
from pocketformer.layout import ALIGNMENT, GROUP, LANES, round_up

EPS = 2.0**-24
"""Half a unit in the last place of 1.0 in float32: the relative error of one rounding."""
OLD = 0xA5
"""What memory holds before a kernel writes to it, so that what was not written shows."""


def fresh(shape: tuple[int, ...], dtype: Any = np.float32, fill: int = OLD) -> Array:
    """An aligned array whose bytes are all ``fill``."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.full(size + ALIGNMENT, fill, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def aligned(array: Array) -> Array:
    """A copy that starts at a multiple of 64, as tensors in a mapped file do."""
    copy = fresh(array.shape, array.dtype)
    copy[...] = array
    return copy


def padded(array: Array, multiple: int = LANES) -> Array:
    """An aligned copy with zero columns up to a multiple."""
    out = fresh((*array.shape[:-1], round_up(array.shape[-1], multiple)), array.dtype, 0)
    out[..., : array.shape[-1]] = array
    return out


def panels(weight: Array) -> Array:
    """[n, k] as panels: int8 [p, ⌈k/4⌉, 16, 4], float32 [p, k, 16]."""
    n, k = weight.shape
    group = GROUP if weight.dtype == np.int8 else 1
    full = np.zeros((round_up(n, LANES), round_up(k, group)), weight.dtype)
    full[:n, :k] = weight
    packed = full.reshape(-1, LANES, full.shape[1] // group, group).transpose(0, 2, 1, 3)
    return aligned(packed if group > 1 else packed[..., 0])


def fma32(a: Array, b: Array, c: Array) -> Array:
    """a·b + c in float32 with one rounding: the float64 sum is rounded to odd first (Boldo and Melquiond, 2008)."""
    product, addend = a.astype(np.float64) * b, np.asarray(c, np.float64)
    total = np.asarray(product + addend)
    virtual = total - product
    error = (product - (total - virtual)) + (addend - virtual)
    towards = np.where(error > 0, np.inf, -np.inf)
    even = (total.view(np.int64) & 1) == 0
    return np.where((error != 0) & even, np.nextafter(total, towards), total).astype(np.float32)


def nibble_panels(index: Array) -> Array:
    """Indices [n, k] in 0…15 as uint8 [p, ⌈k/8⌉, 16, 4]: k-group 2i in the low nibbles, 2i + 1 in the high ones."""
    n, k = index.shape
    full = np.zeros((round_up(n, LANES), round_up(k, 2 * GROUP)), np.uint8)
    full[:n, :k] = index
    pairs = full.reshape(-1, LANES, full.shape[1] // (2 * GROUP), 2, GROUP).transpose(0, 2, 3, 1, 4)
    return aligned(pairs[:, :, 0] | pairs[:, :, 1] << 4)


def grouped_scales(scale: Array) -> Array:
    """[n, groups] as [p, groups, 16]."""
    n, groups = scale.shape
    full = np.zeros((round_up(n, LANES), groups), np.float32)
    full[:n] = scale
    return aligned(full.reshape(-1, LANES, groups).transpose(0, 2, 1))


def product_i4(
    q: Array, x_scale: Array, weight: Array, scale: Array, bias: Array, minimum: Array | None = None
) -> Array:
    """The arithmetic of the int4 product: ``q`` [m, k] and ``weight`` [n, k] integers, ``scale`` [n, groups]."""
    m, groups = len(q), scale.shape[1]
    x, w = (a.astype(np.int64).reshape(len(a), groups, -1) for a in (q, weight))
    total = np.zeros((m, len(w)), np.float32)
    for g in range(groups):
        total = fma32((x[:, g] @ w[:, g].T).astype(np.float32), scale[:, g], total)
        if minimum is not None:
            total = fma32(x[:, g].sum(1, keepdims=True).astype(np.float32), minimum[:, g], total)
    return fma32(total, x_scale[:, None], bias)


def product_groups(x: Array, values: Array, scale: Array, minimum: Array | None = None) -> Array:
    """Float rows [m, k], rounded with a scale a group, times integers [n, k] with ``scale`` float32 [n, groups]."""
    n, groups = scale.shape
    q, unit = quantized(x.reshape(len(x), groups, -1))
    w = values.astype(np.int64).reshape(n, groups, -1)
    total = np.zeros((len(x), n), np.float32)
    for g in range(groups):
        sums = (q[:, g] @ w[:, g].T).astype(np.float32) * unit[:, g, None]
        total = fma32(sums, scale[:, g], total)
        if minimum is not None:
            units = q[:, g].sum(1, keepdims=True).astype(np.float32) * unit[:, g, None]
            total = fma32(units, minimum[:, g], total)
    return total


def quantized(x: Array) -> tuple[NDArray[np.int64], Array]:
    """Rows of float32 as integers in −127…127 and one scale a row."""
    amax = np.abs(x).max(-1, keepdims=True, initial=0)
    inverse = np.divide(np.float32(127), amax, out=np.zeros_like(amax), where=amax > 1e-36)
    return np.rint(x * inverse).astype(np.int64), amax[..., 0] * np.float32(1 / 127)


def rotated(x: Array, block: int) -> Array:
    """Each ``block`` columns times the Walsh–Hadamard matrix, with float32 butterflies from far to near."""
    y = x.copy()
    distance = block // 2
    while distance >= 1:
        pairs = y.reshape(*x.shape[:-1], -1, 2, distance)
        a, b = pairs[..., 0, :].copy(), pairs[..., 1, :].copy()
        pairs[..., 0, :], pairs[..., 1, :] = a + b, a - b
        distance //= 2
    return y


@cache
def kernels(isa: str) -> _core.Kernels:
    return _core.Kernels(isa)


@dataclass(frozen=True)
class Heads:
    """A layer's projection [length, (heads + 2·kv_heads)·head_dim] and the shape that attention sees in it."""

    qkv: Array
    head_dim: int
    heads: int = 4
    kv_heads: int = 2

    @property
    def length(self) -> int:
        return int(self.qkv.shape[0])

    @property
    def scale(self) -> float:
        return float(np.float32(self.head_dim**-0.5))

    def split(self) -> tuple[Array, Array, Array]:
        """Queries, keys and values as [heads, length, head_dim], the latter repeated for the heads that share them."""
        x = self.qkv.reshape(self.length, -1, self.head_dim).transpose(1, 0, 2)
        q, k, v = np.split(x, [self.heads, self.heads + self.kv_heads])
        share = self.heads // self.kv_heads
        return q, k.repeat(share, 0), v.repeat(share, 0)


def heads_of(length: int, head_dim: int, heads: int = 4, kv_heads: int = 2, seed: int = 0) -> Heads:
    """Random heads whose scores spread over about ±8, with a few rows of zeros and of large values."""
    rng = np.random.default_rng((seed, length, head_dim))
    qkv = rng.standard_normal((length, (heads + 2 * kv_heads) * head_dim)).astype(np.float32) * np.float32(1.7)
    qkv[length // 3] = 0
    qkv[:: max(1, length // 4), (heads + kv_heads) * head_dim :] *= 30
    return Heads(qkv, head_dim, heads, kv_heads)


@dataclass
class Attention:
    """What one ISA stores for some heads, ready to attend. ``parts`` are the row blocks in which it is stored."""

    isa: str
    heads: Heads
    int8: bool
    slot: int = 0
    spare: int = 0
    parts: tuple[int, ...] = ()
    rotate: int = 0
    q: Array = field(init=False)
    q_scale: Array = field(init=False)
    cache: tuple[Array, ...] = field(init=False)

    def __post_init__(self) -> None:
        h, stride = self.heads, round_up(self.heads.head_dim, LANES)
        capacity = self.slot + round_up(h.length, LANES) + self.spare
        self.q = fresh((h.length, h.heads, stride), np.int8) if self.int8 else padded(h.qkv)
        self.q_scale = fresh((h.length, h.heads))
        keys, scales = (h.kv_heads, capacity, stride), (h.kv_heads, capacity)
        if self.int8:
            values = (h.kv_heads, capacity // 4, stride, 4)
            floats = fresh(scales, fill=0), fresh(scales, fill=0)
            self.cache = (fresh(keys, np.uint8), floats[0], fresh(values, np.int8), floats[1])
        else:
            self.cache = (fresh(keys, fill=0), fresh(keys, fill=0))
        bounds = [0, *np.cumsum(self.parts), h.length] if self.parts else [0, h.length]
        for begin, end in pairwise(bounds):
            if begin < end:
                self.store(int(begin), int(end))

    def store(self, begin: int, end: int) -> None:
        h, rows, table = self.heads, padded(self.heads.qkv[begin:end]), kernels(self.isa)
        columns = {"k_column": h.heads * h.head_dim, "v_column": (h.heads + h.kv_heads) * h.head_dim}
        where: dict[str, Any] = {"slot": self.slot + begin, **columns}
        if not self.int8:
            table.store_f32(rows, rows, self.cache, h.head_dim, **where)  # type: ignore[arg-type]
            return
        q, scale = aligned(self.q[begin:end]), aligned(self.q_scale[begin:end])
        table.quantize_heads(rows, q, scale, h.head_dim, rotate=self.rotate)
        table.store_i8(rows, rows, self.cache, h.head_dim, rotate=self.rotate, **where)
        self.q[begin:end], self.q_scale[begin:end] = q, scale

    def attend(self, begin: int = 0, end: int | None = None, **options: Any) -> Array:
        """Rows [begin, end) of the result, float32 [rows, heads·head_dim]."""
        h, end = self.heads, self.heads.length if end is None else end
        out = fresh((end - begin, round_up(h.heads * h.head_dim, LANES)))
        scale = h.scale / max(1, self.rotate)
        shared = {"keys": h.length, "scale": scale, "first_position": begin, "slot": self.slot} | options
        q = aligned(self.q[begin:end])
        if self.int8:
            q_scale = aligned(self.q_scale[begin:end])
            kernels(self.isa).attention_i8(q, q_scale, self.cache, out, h.head_dim, **shared)
        else:
            kernels(self.isa).attention_f32(q, self.cache, out, h.heads, h.head_dim, **shared)  # type: ignore[arg-type]
        columns = h.heads * h.head_dim
        assert (out[:, columns:].view(np.uint8) == OLD).all(), "columns beyond the heads belong to the caller"
        return out[:, :columns]

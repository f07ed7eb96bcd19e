"""Calls of ``pocketformer.kernels`` on plain arrays: patterns of attention, caches, packed weights, grids."""

from __future__ import annotations

from typing import Any

import numpy as np
from arguments import ACTIVATIONS, FLOATS, GROUPS, Call

from pocketformer import kernels

LENGTHS = (None, 0, 1, 2, 5, 40)


def attention(c: Call) -> None:
    kv_heads, head_dim, keys = c.upto(1, 3), c.upto(1, 40), c.upto(1, 150)
    heads, queries = kv_heads * c.upto(1, 3), c.pick(1, keys, keys, c.upto(1, keys))
    arguments: dict[str, Any] = {
        "q": c.array(queries, heads, head_dim),
        "k": c.array(keys, kv_heads, head_dim),
        "v": c.array(keys, kv_heads, head_dim),
        "causal": c.pick(True, False),
        "dtype": c.pick("int8", "float32"),
        "scale": c.pick(None, 0.25) if c.upto(0, 7) else c.pick(*FLOATS),
        "softcap": c.pick(None, None, 2.5) if c.upto(0, 7) else c.pick(*FLOATS),
        "threads": c.upto(1, 3),
    }
    way = c.upto(0, 4)
    if way == 0:
        arguments["window"] = (c.pick(*LENGTHS), c.pick(*LENGTHS))
        arguments["bias"] = c.pick(None, c.array(heads, 2 * c.upto(0, 9) + 1))
    elif way == 1 and queries == keys:
        inner = sorted(c.upto(0, keys) for _ in range(c.upto(0, 3)))
        arguments["offsets"] = np.array([0, *inner, keys], np.int64)
    elif way == 2:
        arguments["pattern"] = kernels.Window(
            c.pick(*LENGTHS),
            c.pick(*LENGTHS),
            c.pick(True, False),
            dilation=c.pick(1, 1, 2, 7),
            globals=c.pick(0, 1, 40),
        )
    elif way == 3:
        size = c.pick(1, 16, 64, c.upto(1, 70))
        count = -(-keys // size) + c.pick(0, 0, 0, 1)
        seen = [[c.upto(0, count - c.pick(1, 1, 1, 0)) for _ in range(c.upto(0, 4))] for _ in range(count)]
        arguments["pattern"] = kernels.Blocks(size, seen)
    c(kernels.attention, arguments)


def cache(c: Call) -> None:
    kv_heads, head_dim, heads = c.upto(1, 3), c.upto(1, 40), c.upto(1, 3)
    shape = {"kv_heads": kv_heads, "head_dim": head_dim, "capacity": c.upto(1, 300), "window": c.pick(None, 1, 20, 128)}
    made: list[kernels.KeyValueCache] = []
    c(lambda **a: made.append(kernels.KeyValueCache(**a)), shape)
    for _ in range(c.upto(1, 6)):
        rows, way = c.upto(1, 90), c.upto(0, 5)
        if way == 0:
            c(made[-1].truncate, {"length": c.upto(0, made[-1].length)})
        elif way == 1:
            made.append(made[-1].fork())
        else:
            c(made[-1].append, {name: c.array(rows, kv_heads, head_dim) for name in "kv"})
            c(made[-1].attend, {"q": c.array(c.upto(1, rows), kv_heads * heads, head_dim), "threads": c.upto(1, 3)})


def product(c: Call) -> None:
    m, n, k, dtype = c.upto(0, 40), c.upto(1, 70), c.upto(1, 150), c.pick("int8", "int4", "float32")
    packed: list[kernels.Weight] = []
    options = {"dtype": dtype, "group": c.pick(None, None, *(g for g in GROUPS if k % g == 0))}
    c(lambda **a: packed.append(kernels.pack(**a)), {"weight": c.array(n, k), **options})
    arguments = {
        "x": c.array(m, k),
        "w": packed[0],
        "bias": c.pick(None, c.array(n)),
        "activation": c.pick(None, *ACTIVATIONS),
        "multiply": c.pick(None, None, c.array(m, n)),
        "residual": c.pick(None, c.array(m, n)),
        "threads": c.upto(1, 3),
    }
    c(kernels.matmul, arguments)
    packed[0].dequantize()


def grid(c: Call) -> None:
    images, height, width, channels = c.upto(0, 2), c.upto(1, 9), c.upto(1, 9), c.upto(1, 40)
    x, size = c.array(images, height, width, channels), (c.upto(1, 4), c.upto(1, 4))
    moves = {"stride": c.upto(1, 3), "padding": c.upto(0, 2), "threads": c.upto(1, 3)}
    way = c.upto(0, 2)
    if way == 0:
        c(kernels.unfold, {"x": x, "size": size, **moves})
    elif way == 1:
        bias = c.pick(None, c.array(channels))
        c(kernels.depthwise, {"x": x, "weight": c.array(channels, *size), "bias": bias, **moves})
    else:
        c(kernels.resize, {"x": x, "size": size})


RECIPES = (attention, attention, cache, product, grid)

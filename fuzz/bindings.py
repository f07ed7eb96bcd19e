"""Calls of everything that ``_core`` binds, with arguments made of arbitrary bytes (``arguments.py``)."""

from __future__ import annotations

from typing import Any

import numpy as np
import public_calls
from arguments import ACTIVATIONS, FLOATS, GROUPS, Call, exact

from helpers.hostile_files import LIES, lie
from helpers.programs import encoder, packed
from pocketformer import _core
from pocketformer.graph import Array
from pocketformer.layout import attention_bias_width, fp32_panels, int8_panels, round_up

REFUSALS = (ValueError, TypeError, MemoryError)  # TypeError: pybind11, when no signature fits

GRAPHS = [
    (graph.description(), graph.params)
    for graph in (
        packed(encoder(w, task=t, relative=True, layers=1)) for w in ("fp32", "int8") for t in ("embed", "fill_mask")
    )
]


def call(content: bytes) -> None:
    """One call of one bound function; an exception that is not a refusal escapes."""
    c = Call(content)
    recipe = c.pick(*RECIPES)
    try:
        recipe(c)
    except REFUSALS:
        return


def _kernels(c: Call) -> _core.Kernels:
    return _core.Kernels(c.pick(*_core.isas()))


def quantize_rows(c: Call) -> None:
    rows, k = c.upto(1, 20), c.upto(1, 150)
    arguments = {
        "x": c.array(rows, round_up(k, 16)),
        "q": exact((rows, round_up(k, 64)), np.uint8),
        "scale": exact((rows,), np.float32),
        "k": k,
        "rotate": c.pick(0, 0, 2, 4, 16, 64, 128),
        "is_signed": c.pick(True, False),
    }
    if arguments["is_signed"]:
        arguments["group"] = c.pick(0, *(g for g in GROUPS if k % g == 0))
        arguments["sum"] = c.pick(None, exact((rows, k // (arguments["group"] or k)), np.int32))
    c(_kernels(c).quantize_rows, arguments)


def _epilogue(c: Call, rows: int, panels: int) -> dict[str, Any]:
    n = panels * 16 - c.upto(0, 15)
    columns = c.pick(n, panels * 16, panels * 16 + 16)
    return {
        "n": n,
        "out": exact((rows, columns), np.float32),
        "panel_begin": c.upto(0, panels),
        "panel_end": c.upto(-1, panels),
        "bias": c.pick(None, c.array(panels * 16)),
        "multiply": c.pick(None, None, c.array(rows, columns)),
        "residual": c.pick(None, c.array(rows, columns)),
        "activation": c.pick(*ACTIVATIONS),
        "precise": c.pick(None, True, False),
    }


def gemm_i8(c: Call) -> None:
    rows, k, panels = c.upto(1, 40), c.upto(1, 150), c.upto(1, 5)
    arguments = {
        "x": c.array(rows, round_up(k, 64), dtype=np.uint8),
        "x_scale": c.array(rows),
        "weight": c.array(*int8_panels(panels * 16, k), dtype=np.int8),
        "scale": c.array(panels * 16),
        "colsum": c.array(panels * 16, dtype=np.int32),
        "k": k,
        **_epilogue(c, rows, panels),
    }
    c(_kernels(c).gemm, arguments)


def gemm_i4(c: Call) -> None:
    rows, k, panels = c.upto(1, 40), c.upto(1, 150), c.upto(1, 5)
    group = c.pick(0, *(g for g in GROUPS if k % g == 0))
    scales = (panels, k // group, 16) if group else (panels * 16,)
    arguments = {
        "x": c.array(rows, round_up(k, 64), dtype=np.uint8),
        "x_scale": c.array(rows),
        "x_sum": c.array(rows, k // group if group else 1, dtype=np.int32),
        "weight": c.array(panels, -(-k // 8), 16, 4, dtype=np.uint8),
        "scale": c.array(*scales),
        "minimum": c.pick(None, c.array(*scales)),
        "codebook": c.array(16, dtype=np.int8),
        "group": group,
        "k": k,
        **_epilogue(c, rows, panels),
    }
    c(_kernels(c).gemm, arguments)


def gemm_f32(c: Call) -> None:
    rows, k, panels = c.upto(1, 40), c.upto(1, 70), c.upto(1, 5)
    arguments = {
        "x": c.array(rows, round_up(k, 16)),
        "weight": c.array(*fp32_panels(panels * 16, k), dtype=c.pick(np.float32, np.uint16)),
        "k": k,
        **_epilogue(c, rows, panels),
    }
    c(_kernels(c).gemm, arguments)


def embed(c: Call) -> None:
    rows, width, height, panels, int8 = c.upto(1, 20), c.upto(1, 70), c.upto(1, 6), c.pick(0, 1), c.pick(0, 1)
    dtype, layout = (np.int8, int8_panels) if int8 else (c.pick(np.float32, np.uint16), fp32_panels)
    shape: tuple[int, ...] = layout(height * 16, width) if panels else (height, width)
    entries = height * 16 if panels else height
    arguments = {
        "weight": c.array(*shape, dtype=dtype),
        "scale": c.array(round_up(entries, 16)) if int8 else None,
        "index": c.array(rows, dtype=np.int32, high=entries + c.pick(0, 0, 0, 1)),
        "out": exact((rows, round_up(width, 16)), np.float32),
        "width": width,
        "rotate": c.pick(0, 0, 2, 4, 16, 64, 128) if panels else 0,
        "accumulate": not panels and c.pick(True, False),
    }
    c(_kernels(c).embed, arguments)


def norm(c: Call) -> None:
    rows, width = c.upto(1, 20), c.upto(1, 150)
    arguments = {
        "x": c.array(rows, round_up(width, 16)),
        "weight": c.array(round_up(width, 16)),
        "bias": c.pick(None, c.array(round_up(width, 16))),
        "out": exact((rows, round_up(width, 16)), np.float32),
        "width": width,
        "eps": c.pick(1e-12, 1e-6, *FLOATS),
        "kind": c.pick("layer", "rms"),
    }
    c(_kernels(c).norm, arguments)


def pool(c: Call) -> None:
    rows, width = c.upto(1, 20), c.upto(1, 150)
    arguments = {
        "x": c.array(rows, round_up(width, 16)),
        "out": exact((round_up(width, 16),), np.float32),
        "width": width,
        "kind": c.pick("mean", "cls", "max", "last", "mean_sqrt", "weighted_mean"),
        "first": c.pick(0, 1, c.upto(0, 1 << 30)),
    }
    c(_kernels(c).pool, arguments)


def l2_normalize(c: Call) -> None:
    rows, width = c.upto(1, 20), c.upto(1, 150)
    x = c.array(rows, round_up(width, 16))
    c(_kernels(c).l2_normalize, {"x": x, "out": exact(x.shape, np.float32), "width": width})


def attention(c: Call) -> None:
    """Stores keys and values, then attends to them, each with spoilt arguments of its own."""
    int8, kv_heads, head_dim, keys = c.pick(True, False), c.upto(1, 3), c.upto(1, 40), c.upto(1, 40)
    heads, stride, slot = kv_heads * c.upto(1, 3), round_up(head_dim, 16), 16 * c.upto(0, 2)
    capacity = slot + round_up(keys, 16) + 16 * c.upto(0, 1)
    q, scale = exact((keys, heads, stride), np.int8), c.array(keys, heads)
    floats, shape = (kv_heads, capacity), (kv_heads, capacity, stride)
    cache: tuple[Array, ...] = (c.array(*shape), c.array(*shape))
    if int8:
        values = (kv_heads, capacity // 4, stride, 4)
        cache = (
            *(c.array(*shape, dtype=np.int8), c.array(*floats), c.array(*floats, dtype=np.int32)),
            *(c.array(*values, dtype=np.int8), c.array(*floats)),
        )
    if c.upto(0, 15) == 15:
        at = c.upto(0, len(cache) - 1)
        cache = (*cache[:at], c.spoilt(cache[at]), *cache[at + 1 :])
    if c.upto(0, 31) == 31:
        cache = cache[1:]
    kernels, width = _kernels(c), (heads + 2 * kv_heads) * head_dim
    qkv = c.array(keys, round_up(width, 16))
    rotate = c.pick(0, head_dim & -head_dim, c.upto(0, 130))
    stored: dict[str, Any] = {
        **{"k": qkv, "v": qkv, "cache": cache, "head_dim": head_dim, "slot": slot},
        **{"k_column": heads * head_dim, "v_column": (heads + kv_heads) * head_dim + c.upto(0, 1)},
    }
    if int8:
        c(kernels.quantize_heads, {"x": qkv, "q": q, "scale": scale, "head_dim": head_dim, "rotate": rotate})
        stored["rotate"] = rotate
    c(kernels.store_i8 if int8 else kernels.store_f32, stored)
    queries: dict[str, Any] = {"q": q, "q_scale": scale} if int8 else {"q": qkv, "heads": heads, "column": c.upto(0, 2)}
    center = keys - 1 + c.upto(0, 3)
    attended = {
        **queries,
        "cache": cache,
        "head_dim": head_dim,
        "out": exact((keys, round_up(heads * head_dim, 16)), np.float32),
        "keys": keys,
        "scale": c.pick(0.25, *FLOATS),
        "slot": slot,
        "left": c.upto(-1, keys),
        "right": c.upto(-1, keys),
        "bias": c.pick(None, c.array(heads, attention_bias_width(center + 1))),
        "bias_center": center,
        "head_begin": c.upto(0, heads),
        "head_end": c.upto(-1, heads),
    }
    if int8:
        attended["fine"] = c.pick(True, False)
    c(kernels.attention_i8 if int8 else kernels.attention_f32, attended)


def program(c: Call) -> None:
    """A graph with a few lies in it, run in every way."""
    graph, arrays = c.pick(*GRAPHS)
    if lies := c.upto(0, 2):
        import copy
        import random

        graph, rng = copy.deepcopy(graph), random.Random(c.upto(0, 2**32))
        for _ in range(lies):
            lie(graph, rng)
    if c.upto(0, 7) == 7:
        name = c.pick(*arrays)
        arrays = arrays | {name: c.spoilt(arrays[name].copy())}
    arguments = {"graph": graph, "tensors": arrays, "isa": c.pick("", *_core.isas())}
    compiled: list[_core.Program] = []
    c(lambda **a: compiled.append(_core.Program(**a)), arguments)
    lengths = [c.upto(0, 45) for _ in range(c.upto(0, 4))]
    rows = c.upto(0, 5)
    for function in (compiled[0].arena_bytes,):
        c(function, {"lengths": lengths, "threads": c.upto(1, 4), "selected": rows, "mode": c.pick("auto", "rows")})
    made: list[_core.Session] = []
    options = {"program": compiled[0], "mode": c.pick("auto", "rows", "columns"), "block_rows": c.upto(0, 20)}
    c(lambda **a: made.append(_core.Session(**a)), options)
    session, tokens = made[0], sum(lengths)
    session.profile = c.pick(True, False)
    inputs = {
        "ids": c.array(tokens, dtype=np.int32, high=101 + c.pick(0, 0, 0, 1)),
        "tokens": np.cumsum([0, *lengths], dtype=np.int64),
        "types": c.pick(None, c.array(tokens, dtype=np.int32, high=2)),
    }
    if compiled[0].output_kind == "selected":
        inputs["selected"] = c.array(rows, dtype=np.int64, high=max(1, tokens))
    for trims in (False, False, True):
        if trims:
            session.phases()
            session.trim()
        given: dict[str, Any] = {}
        c(lambda given=given, **a: given.update(a), dict(inputs))
        c(session.run, {"inputs": given, "threads": c.upto(1, 3), "out": None})
    c(compiled[0].work, {"lengths": lengths, "selected": rows})


def probes(c: Call) -> None:
    milliseconds = c.pick(1, 1, 0, -1, 60_001, 2**63, 1.5, None)
    function = c.pick(_core.probe_int8, _core.probe_f32)
    function(c.pick("", "scalar", "none", *_core.isas(), 3), milliseconds)


def others(c: Call) -> None:
    """Everything else that is bound, with whatever comes."""
    names = [name for name in dir(_core) if not name.startswith("_") and not name.startswith("probe")]
    arguments = [c.pick(c.number(), *LIES, "/nowhere", c.array(3)) for _ in range(c.upto(0, 3))]
    getattr(_core, c.pick(*names))(*arguments)


RECIPES = (
    *(quantize_rows, gemm_i8, gemm_i4, gemm_f32, embed, norm, pool, l2_normalize),
    *(attention, attention, program, program, others, probes),
    *public_calls.RECIPES,
)

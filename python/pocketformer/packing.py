"""Packs plain parameters into the tensors of the pocket file, and back (docs/format.md, "Tensors of a weight")."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from .graph import Array, Graph
from .grouped import GROUP_PARTS, widened
from .layout import (
    BITS,
    GROUP,
    LANES,
    MAX_PAIR,
    attention_bias_width,
    codebook_size,
    fp16_panels,
    fp32_panels,
    group_panels,
    high_panels,
    int4_panels,
    int8_panels,
    round_up,
    table_rows,
)


def pad(array: Array, *shape: int) -> Array:
    """``array`` in the leading corner of zeros of ``shape``; its own memory when nothing is to be added."""
    if array.shape == shape:
        return np.ascontiguousarray(array)
    result = np.zeros(shape, array.dtype)
    result[tuple(slice(0, size) for size in array.shape)] = array
    return result


def pack_panels(weight: Array) -> Array:
    """[N, K] int8 → [Np/16, Kp/4, 16, 4]; [N, K] float32 or float16 → [Np/16, K, 16]."""
    n, k = weight.shape
    if weight.dtype == np.int8:
        panels, groups, _, _ = int8_panels(n, k)
        padded = pad(weight, panels * LANES, groups * GROUP)
        return np.ascontiguousarray(padded.reshape(panels, LANES, groups, GROUP).transpose(0, 2, 1, 3))
    panels, _, _ = fp32_panels(n, k)
    padded = pad(weight if weight.dtype == np.float16 else weight.astype(np.float32, copy=False), panels * LANES, k)
    return np.ascontiguousarray(padded.reshape(panels, LANES, k).transpose(0, 2, 1))


def pack_nibbles(codes: Array) -> Array:
    """[N, K] uint8 codes 0…15 → [Np/16, Kp/8, 16, 4]: of two groups of four inputs the first in the low nibbles."""
    n, k = codes.shape
    panels, pairs, _, _ = int4_panels(n, k)
    padded = pad(codes, panels * LANES, pairs * 2 * GROUP).reshape(panels, LANES, pairs, 2, GROUP)
    return np.ascontiguousarray((padded[..., 0, :] | padded[..., 1, :] << 4).transpose(0, 2, 1, 3))


def pack_high(upper: Array, bits: int) -> Array:
    """[N, K] uint8, the bits above the fourth of numbers of ``bits`` → [Np/16, ⌈K/step⌉, 16, 4] uint8.

    A byte holds them for 8 / (bits − 4) groups of four inputs, from the lowest bits on.
    """
    n, k = upper.shape
    panels, steps, _, _ = high_panels(n, k, bits)
    parts = 8 // (bits - 4)
    padded = pad(upper, panels * LANES, steps * parts * GROUP).reshape(panels, LANES, steps, parts, GROUP)
    shifts = (np.arange(parts, dtype=np.uint8) * np.uint8(bits - 4))[:, None]
    return np.ascontiguousarray(np.bitwise_or.reduce(padded << shifts, axis=3).transpose(0, 2, 1, 3))


def unpack_high(packed: Array, bits: int, n: int, k: int) -> Array:
    """The inverse of ``pack_high``: [N, K]."""
    shifts = np.arange(0, 8, bits - 4, dtype=np.uint8)[:, None]
    parts = packed.transpose(0, 2, 1, 3)[:, :, :, None] >> shifts & np.uint8((1 << (bits - 4)) - 1)
    upper: Array = parts.reshape(packed.shape[0] * LANES, -1)
    return upper[:n, :k]


def pack_bits(codes: Array, bits: int) -> Array:
    """[N, K] uint8 codes of ``bits`` bits → [N, 2 · ``bits`` · ⌈K/16⌉]: each ``bits`` bits on, lowest bit first."""
    n, k = codes.shape
    digits = np.unpackbits(pad(codes, n, round_up(k, LANES))[:, :, None], axis=2, count=bits, bitorder="little")
    return np.packbits(digits.reshape(n, -1), axis=1, bitorder="little")


def unpack_bits(packed: Array, bits: int, k: int) -> Array:
    """The inverse of ``pack_bits``: [N, K]."""
    digits = np.unpackbits(packed, axis=1, bitorder="little").reshape(len(packed), -1, bits)
    codes: Array = np.packbits(digits, axis=2, bitorder="little")[:, :k, 0]
    return codes


def unpack_panels(panels: Array, n: int, k: int) -> Array:
    """The inverse of ``pack_panels`` and, for uint8, of ``pack_nibbles``: [N, K]."""
    if panels.dtype == np.uint8:
        panels = np.stack([panels & 15, panels >> 4], axis=2).reshape(len(panels), -1, LANES, GROUP)
    order = (0, 2, 1, 3) if panels.ndim == 4 else (0, 2, 1)
    channels: Array = panels.transpose(order).reshape(panels.shape[0] * LANES, -1)
    return channels[:n, :k]


def pack_scales(scale: Array) -> Array:
    """[N] → [Np]; [N, groups] → [Np/16, groups, 16], of float16 and int8 as many panels as make lines of 64 bytes."""
    if scale.dtype not in (np.float16, np.int8):
        scale = scale.astype(np.float32, copy=False)
    if scale.ndim == 1:
        return pad(scale, round_up(len(scale), LANES))
    n, groups = scale.shape
    padded = pad(scale, group_panels(n, groups, scale.itemsize)[0] * LANES, groups)
    return np.ascontiguousarray(padded.reshape(-1, LANES, groups).swapaxes(1, 2))


def unpack_scales(scale: Array, n: int) -> Array:
    """The inverse of ``pack_scales``."""
    return scale[:n] if scale.ndim == 1 else scale.swapaxes(1, 2).reshape(-1, scale.shape[1])[:n]


def vectors(graph: Graph) -> Iterator[tuple[str, tuple[int, ...], tuple[int, ...]]]:
    """Name, plain and packed shape of every tensor that an operator names itself."""
    widths = graph.widths()
    prepended = {domain["name"]: domain.get("prepended", 0) for domain in graph.domains}
    states = {state["name"]: state for state in graph.states}
    for op in graph.ops:
        if op["op"] == "attention":
            if "bias" in op:
                state = states[op["state"]]
                rows = graph.max_rows(state["domain"])
                shape = (widths[op["q"]] // state["head_dim"], 2 * rows - 1)
                yield op["bias"], shape, (shape[0], attention_bias_width(rows))
                if "summary_bias" in op:
                    yield op["summary_bias"], shape, (shape[0], attention_bias_width(rows))
            if "pair_bias" in op:
                state = states[op["state"]]
                rows, heads = graph.max_rows(state["domain"]), widths[op["q"]] // state["head_dim"]
                yield op["pair_bias"], (heads, rows, rows), (heads, rows, round_up(rows, LANES))
        elif op["op"] == "rope":
            yield op["frequencies"], (op["rotated"] // 2,), (round_up(op["rotated"] // 2, LANES),)
        elif op["op"] == "prepend":
            count, width = prepended[op["domain"]], widths[op["out"]]
            yield op["rows"], (count, width), (count, round_up(width, LANES))
        elif op["op"] == "linear_attention":
            features = (op["count"], widths[op["q"]] // op["heads"])
            yield op["features"], features, features
        elif op["op"] == "fit":
            if "fill" in op:
                yield op["fill"], (widths[op["in"]],), (round_up(widths[op["in"]], LANES),)
        elif op["op"] == "convolve":
            taps, width = op["taps"], widths[op["in"]]
            yield op["weight"], (taps, width), (taps, round_up(width, LANES))
        elif op["op"] == "mix":
            count, rows, columns = (
                op.get("heads", 1),
                graph.max_rows(op["domain"]),
                graph.max_rows(graph.domain_of(op["in"])),
            )
            yield op["weight"], (count, rows, columns), (count, rows, round_up(columns, LANES))
        elif op["op"] == "depthwise":
            taps, width = op["height"] * op["width"], widths[op["out"]]
            yield op["weight"], (taps, width), (taps, round_up(width, LANES))
            if "bias" in op:
                yield op["bias"], (width,), (round_up(width, LANES),)
        elif op["op"] == "summarize":
            yield op["weight"], (widths[op["out"]],), (round_up(widths[op["out"]], LANES),)
        elif op["op"] == "match":
            first = op
            while "after" in first:
                first = next(other for other in graph.ops if other.get("out") == first["after"])
            rows = graph.max_rows(graph.domain_of(first["in"]))
            yield op["logarithms"], (rows,), (round_up(rows, LANES),)
        elif op["op"] in ("norm", "linear", "standardize", "average"):
            width = widths[op["out"]] // op.get("heads", 1)
            for key in ("bias",) if op["op"] == "linear" else ("weight", "bias"):
                if key in op:
                    yield op[key], (width,), (round_up(width, LANES),)


def looked_up(graph: Graph) -> set[str]:
    """Weights that no product reads: tables, which lie by rows."""
    tables = {table["weight"] for op in graph.ops if op["op"] == "embed" for table in op["tables"]}
    return tables - {op["weight"] for op in graph.ops if op["op"] == "linear"}


def stored_weights(graph: Graph) -> dict[str, dict[str, Any]]:
    """The facts of the weights that operators read, as a packed graph holds them."""
    by_rows = looked_up(graph)
    read = {op["weight"] for op in graph.ops if op["op"] == "linear"} | by_rows
    return {
        name: {**facts, **({"layout": "rows"} if name in by_rows and not facts.get("group") else {})}
        for name, facts in graph.weights.items()
        if name in read
    }


def check_pairs(name: str, weight: Array) -> None:
    """Raises ValueError where two inputs 2j and 2j + 1 of a channel of int8 [n, k] are beyond ``MAX_PAIR``."""
    for begin in range(0, len(weight), 1024):
        size = np.abs(weight[begin : begin + 1024].astype(np.int16))
        size[:, : size.shape[1] // 2 * 2 : 2] += size[:, 1::2]
        if size.max(initial=0) > MAX_PAIR:
            channel, i = np.unravel_index(size.argmax(), size.shape)
            raise ValueError(
                f"weight {name!r} has inputs {i} and {i + 1} of channel {begin + channel} whose magnitudes add up to "
                f"{size[channel, i]}, above {MAX_PAIR}; round it with bounded pairs, or leave out 'bounded_pairs'"
            )


def pack_weight(name: str, facts: dict[str, Any], plain: dict[str, Array], by_rows: bool) -> dict[str, Array]:
    """The tensors of the weight ``name``."""
    weight = plain[f"{name}.weight"]
    bits = BITS[facts["format"]]
    rows = len(weight)
    if facts.get("bounded_pairs"):
        check_pairs(name, weight)
    if bits >= 16:
        weight = weight.astype(np.float32 if bits == 32 else np.float16, copy=False)
    if by_rows:
        table = pack_bits(weight, bits) if bits < 8 else weight
        packed = {f"{name}.weight": pad(table, table_rows(rows, table.shape[1], table.itemsize), table.shape[1])}
    else:
        panels = pack_nibbles(weight & np.uint8(15)) if bits < 8 else pack_panels(weight)
        packed = {f"{name}.weight": pad(panels, *fp16_panels(*weight.shape)) if bits == 16 else panels}
    if bits >= 16:
        return packed
    if bits in (5, 6) and not by_rows:
        packed[f"{name}.high"] = pack_high(weight >> np.uint8(4), bits)
    packed[f"{name}.scale"] = pack_scales(plain[f"{name}.scale"])
    for part in GROUP_PARTS[1:]:
        if f"{name}.{part}" in plain:
            packed[f"{name}.{part}"] = pack_scales(plain[f"{name}.{part}"])
    if bits == 8 and not by_rows and not facts.get("group"):
        packed[f"{name}.colsum"] = pad(weight.sum(axis=1, dtype=np.int32), round_up(rows, LANES))
    if bits < 8:
        packed[f"{name}.codebook"] = pad(plain[f"{name}.codebook"], codebook_size(bits))
    return packed


def scales_of(name: str, plain: dict[str, Array]) -> tuple[Array, Array | None]:
    """Scales of the weight ``name`` and minima or None as float32 [n] or [n, groups], whatever they are stored as."""

    def floats(part: str) -> Array | None:
        stored = plain.get(f"{name}.{part}")
        return None if stored is None else widened(stored, plain.get(f"{name}.sub{part}"))

    scale = floats("scale")
    assert scale is not None
    return scale, floats("minimum")


def pack_graph(graph: Graph) -> Graph:
    """The same graph with packed parameters.

    Parameters and weights that no operator names are left out. Raises KeyError when one is missing.
    """
    weights = stored_weights(graph)
    packed: dict[str, Array] = {}
    for name, facts in weights.items():
        packed |= pack_weight(name, facts, graph.params, facts.get("layout") == "rows")
    for name, _, shape in vectors(graph):
        if name not in packed:
            packed[name] = pad(graph.params[name].astype(np.float32, copy=False), *shape)
    return replace(graph, params=packed, weights=weights)


def unpack_graph(graph: Graph) -> Graph:
    """The same graph with plain parameters; a plain graph stays as it is."""
    params = dict(graph.params)
    weights = {name: {k: v for k, v in facts.items() if k != "layout"} for name, facts in graph.weights.items()}
    for name, facts in graph.weights.items():
        n, k, bits = facts["n"], facts["k"], BITS[facts["format"]]
        weight = params[f"{name}.weight"]
        if weight.ndim > 2:
            weight = unpack_panels(weight, n, k)
            if f"{name}.high" in params:
                weight = weight | unpack_high(params.pop(f"{name}.high"), bits, n, k) << np.uint8(4)
        elif facts.get("layout") == "rows" and bits < 8:
            weight = unpack_bits(weight[:n], bits, k)
        params[f"{name}.weight"] = weight[:n]
        params.pop(f"{name}.colsum", None)
        for part in (f"{name}.{part}" for part in GROUP_PARTS):
            if part in params and params[part].ndim != 2:
                params[part] = unpack_scales(params[part], n)
        if f"{name}.codebook" in params:
            params[f"{name}.codebook"] = params[f"{name}.codebook"][: 1 << bits]
    for name, shape, _ in vectors(graph):
        params[name] = params[name][tuple(slice(0, size) for size in shape)]
    return replace(graph, params=params, weights=weights)

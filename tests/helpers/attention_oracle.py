"""Attention in float64, with bounds of what the kernels' roundings may change."""

from __future__ import annotations

import numpy as np

from helpers.kernels import EPS, Heads, padded, quantized
from pocketformer.graph import Array

KEY_TILE = 128
EXP2_ERROR = 1.2e-4  # of the weights that int8 attention rounds to seven bits; fp32 attention's is 2e-7


def visible(length: int, left: int, right: int) -> Array:
    """bool [query, key]."""
    distance = np.arange(length)[None, :] - np.arange(length)[:, None]
    mask: Array = np.ones((length, length), bool)
    if left >= 0:
        mask &= distance >= -left
    if right >= 0:
        mask &= distance <= right
    return mask


def bias_of(heads: Heads) -> tuple[Array, int]:
    """A relative bias for every distance, and the entry of distance zero."""
    rng = np.random.default_rng(heads.length)
    return padded(rng.standard_normal((heads.heads, 2 * heads.length - 1)).astype(np.float32) * 2), heads.length - 1


def relative(bias: Array, center: int, length: int) -> Array:
    """[heads, query, key] from [heads, distance]."""
    distance = np.arange(length)[:, None] - np.arange(length)[None, :]
    return bias[:, distance + center].astype(np.float64)


def joined(x: Array) -> Array:
    """[heads, length, head_dim] → [length, heads·head_dim]."""
    return x.transpose(1, 0, 2).reshape(x.shape[1], -1)


def oracle_f32(heads: Heads, left: int, right: int, bias: Array | None) -> tuple[Array, Array]:
    """The result in float64 and a bound of the error of float32."""
    q, k, v = (x.astype(np.float64) for x in heads.split())
    scores = heads.scale * q @ k.transpose(0, 2, 1)
    magnitude = heads.scale * np.abs(q) @ np.abs(k).transpose(0, 2, 1)
    if bias is not None:
        scores, magnitude = scores + bias, magnitude + np.abs(bias)
    mask = visible(heads.length, left, right)
    scores = np.where(mask, scores, -np.inf)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    # A score is off by a dot product's error and a few roundings; a weight by that, by exp2 and by the sums of a tile.
    off = (heads.head_dim + 8) * EPS * np.where(mask, magnitude, 0).max(-1, keepdims=True)
    error = 2 * off + 1e-6 + 2 * (min(KEY_TILE, heads.length) + 8) * EPS
    return joined(p @ v), joined(error * (p @ np.abs(v))) + 1e-30


def oracle_i8(heads: Heads, left: int, right: int, bias: Array | None, *, fine: bool = False) -> tuple[Array, Array]:
    """The result with docs/format.md's roundings, and a bound from those of P that may go either way."""
    (q, qs), (k, ks), (v, vs) = (quantized(x) for x in heads.split())
    qs, ks, vs = (s.astype(np.float64) for s in (qs, ks, vs))
    log2e = 1 / np.log(2)
    factor = np.maximum(qs * heads.scale * log2e, 1e-20)[..., None]
    scores = (q @ k.transpose(0, 2, 1)) * ks[:, None, :] * factor
    if bias is not None:
        scores = scores + bias * log2e
    mask = visible(heads.length, left, right)
    scores = np.where(mask, scores, -np.inf)
    top = scores.max(-1, keepdims=True)
    steps = (1 << 14) - 1 if fine else 127
    relative_error = 2 * EXP2_ERROR + 16 * EPS * np.abs(np.where(mask, scores, 0)).max()
    out, error = np.zeros(heads.split()[0].shape), np.zeros(heads.split()[0].shape)
    total = np.zeros(top.shape)
    for start in range(0, heads.length, KEY_TILE):
        tile = slice(start, start + KEY_TILE)
        if not mask[:, tile].any():
            continue
        tile_top = scores[..., tile].max(-1, keepdims=True)
        seen = np.isfinite(tile_top)
        p = np.where(mask[:, tile], np.exp2(scores[..., tile] - np.where(seen, tile_top, 0)), 0)
        w = p * vs[:, None, tile]
        largest = np.maximum(w.max(-1, keepdims=True), 1e-30)
        exact = w * steps / largest
        rounded = np.rint(exact)
        undecided = np.abs(np.abs(exact - np.trunc(exact)) - 0.5) <= relative_error * exact + 1e-9
        weight = np.where(seen, np.exp2(np.where(seen, tile_top, 0) - top), 0)
        values, take = v[:, tile], weight * largest / steps
        out += take * (rounded @ values)
        error += take * ((undecided + relative_error * rounded) @ np.abs(values))
        total += weight * p.sum(-1, keepdims=True)
    out, error = out / total, error / total
    return joined(out), joined(error * (1 + relative_error) + 2 * relative_error * np.abs(out)) + 1e-30


def oracle(heads: Heads, int8: bool, left: int, right: int, bias: Array | None = None) -> tuple[Array, Array]:
    return (oracle_i8 if int8 else oracle_f32)(heads, left, right, bias)


def same_bytes(a: Array, b: Array) -> None:
    np.testing.assert_array_equal(np.ascontiguousarray(a).view(np.uint8), np.ascontiguousarray(b).view(np.uint8))

"""What the binding of the kernels refuses, and the probes beside them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from helpers.kernels import aligned, fresh, kernels, padded, panels
from pocketformer import _core

every_isa = pytest.mark.parametrize("isa", _core.isas())


def bad_calls() -> list[tuple[str, Callable[[_core.Kernels], None]]]:
    x, q, s = padded(np.ones((3, 26), np.float32)), fresh((3, 64), np.uint8), fresh((3,))
    w, out = panels(np.ones((20, 26), np.int8)), fresh((3, 32))
    ws, cs = fresh((32,), fill=0), fresh((32,), np.int32, 0)
    i8: dict[str, Any] = {"x_scale": s, "scale": ws, "colsum": cs}
    heads, scale, qkv = fresh((3, 4, 16), np.int8), fresh((3, 4)), fresh((3, 128))
    cache = (fresh((2, 16, 16), fill=0), fresh((2, 16, 16), fill=0))
    misaligned = fresh((97,))[1:].reshape(3, 32)
    index = aligned(np.array([0, 99], np.int32))
    return [
        ("x is", lambda k: k.quantize_rows(x[:, :16], q, s, 26)),
        ("x is float64", lambda k: k.quantize_rows(x.astype(np.float64), q, s, 26)),  # type: ignore[arg-type]
        ("scale is", lambda k: k.quantize_rows(x, q, s[:2], 26)),
        ("q is", lambda k: k.quantize_rows(x, q[:, :32].copy(), s, 26)),
        ("rotate is 3", lambda k: k.quantize_rows(x, q, s, 26, 3)),
        ("rotate is 4", lambda k: k.quantize_rows(x, q, s, 26, 4)),
        ("rotate is 256", lambda k: k.quantize_rows(x, q, s, 26, 256)),
        ("k is 0", lambda k: k.quantize_rows(x, q, s, 0)),
        ("multiple of 64 bytes", lambda k: k.quantize_rows(misaligned, q, s, 26)),
        ("weight is", lambda k: k.gemm(q, w, out, 30, **i8)),
        ("panel_end is 3", lambda k: k.gemm(q, w, out, 26, **i8, panel_end=3)),
        ("panel_begin is 2", lambda k: k.gemm(q, w, out, 26, **i8, panel_begin=2, panel_end=1)),
        ("out is", lambda k: k.gemm(q, w, fresh((3, 16)), 26, **i8)),
        ("out is", lambda k: k.gemm(q, w, fresh((3, 19)), 26, **i8, n=20)),
        ("n is 16", lambda k: k.gemm(q, w, out, 26, **i8, n=16)),
        ("n is 33", lambda k: k.gemm(q, w, out, 26, **i8, n=33)),
        ("group is 2", lambda k: k.gemm(q, w, out, 26, **i8, group=2)),
        ("group is 16", lambda k: k.gemm(q, w, out, 26, **i8, group=16)),
        ("group or minimum", lambda k: k.gemm(q, w, out, 26, **i8, minimum=ws)),
        ("x_scale is a NoneType", lambda k: k.gemm(q, w, out, 26, scale=ws, colsum=cs)),
        ("x is uint8", lambda k: k.gemm(q, fresh((2, 26, 16)), out, 26)),
        ("bias is", lambda k: k.gemm(q, w, out, 26, **i8, bias=fresh((16,)))),
        ("residual is", lambda k: k.gemm(q, w, out, 26, **i8, residual=fresh((2, 32)))),
        ("multiply is", lambda k: k.gemm(q, w, out, 26, **i8, multiply=fresh((3, 20)))),
        ("activation is 'swish'", lambda k: k.gemm(q, w, out, 26, **i8, activation="swish")),
        ("precise is a str; pass True, False or None", lambda k: k.gemm(q, w, out, 26, **i8, precise="yes")),  # type: ignore[arg-type]
        ("only rows with is_signed", lambda k: k.quantize_rows(x, q, s, 26, sum=fresh((3, 1), np.int32))),
        ("group is 16", lambda k: k.quantize_rows(x, q, s, 26, 0, True, 16, fresh((3, 1), np.int32))),
        ("sum is", lambda k: k.quantize_rows(x, q, s, 32, 0, True, 16, fresh((3, 1), np.int32))),
        ("index is 99", lambda k: k.embed(fresh((37, 26)), None, index, fresh((2, 32)), 26)),
        ("rotate is 2", lambda k: k.embed(fresh((37, 26)), None, index, fresh((2, 32)), 26, 2)),
        ("kind is 'batch'", lambda k: k.norm(x, ws, None, x, 26, 1e-5, "batch")),
        ("rows of x", lambda k: k.pool(fresh((0, 32)), out, 26, "mean")),
        ("rotate is 32", lambda k: k.quantize_heads(qkv, heads, scale, 16, rotate=32)),
        ("x is", lambda k: k.quantize_heads(qkv, heads, scale, 16, column=65)),
        ("head_dim is 257", lambda k: k.attention_f32(qkv, cache, out, 4, 257, 3, 1.0)),
        ("keys is 17", lambda k: k.attention_f32(qkv, cache, out, 4, 16, 17, 1.0)),
        ("heads is 3", lambda k: k.attention_f32(qkv, cache, out, 3, 16, 3, 1.0)),
        ("column is -1", lambda k: k.attention_f32(qkv, cache, out, 4, 16, 3, 1.0, column=-1)),
        ("first_position is 1", lambda k: k.attention_f32(qkv, cache, fresh((3, 64)), 4, 16, 3, 1.0, 1)),
        ("slot is 8", lambda k: k.attention_f32(qkv, (fresh((2, 32, 16)),) * 2, out, 4, 16, 3, 1.0, slot=8)),
        ("cache has 2", lambda k: k.attention_i8(heads, scale, cache, out, 16, 3, 1.0)),
        ("bias is", lambda k: k.attention_f32(qkv, cache, out, 4, 16, 3, 1.0, bias=fresh((4, 0)), bias_center=2)),
        ("head_end is 5", lambda k: k.attention_f32(qkv, cache, out, 4, 16, 3, 1.0, head_end=5)),
        ("slot is 14", lambda k: k.store_f32(qkv, qkv, cache, 16, 14)),
        ("v is", lambda k: k.store_f32(qkv, fresh((3, 16)), cache, 16)),
        ("k is", lambda k: k.store_f32(qkv, qkv, cache, 16, k_column=97)),
        ("rotate is 32", lambda k: k.store_i8(qkv, qkv, (*cache, *cache), 16, rotate=32)),
    ]


@pytest.mark.parametrize(("message", "call"), bad_calls())
def test_bad_arguments_are_named(message: str, call: Callable[[_core.Kernels], None]) -> None:
    with pytest.raises(ValueError, match=message):
        call(kernels("scalar"))


def test_an_isa_is_chosen_by_name() -> None:
    with pytest.raises(ValueError, match="name is a int; pass that of an ISA, or None"):
        _core.choose_isa(3)  # type: ignore[arg-type]


def test_read_only_outputs_are_refused() -> None:
    x, out = padded(np.ones((3, 26), np.float32)), fresh((3, 32))
    out.flags.writeable = False
    with pytest.raises(ValueError, match="out is read-only"):
        kernels("scalar").l2_normalize(x, out, 26)


def test_good_arguments_are_not_described() -> None:
    """A message is put together when there is one: a shape as text costs more than a small product."""
    asked: list[str] = []

    class Watched(np.ndarray):
        def __getattribute__(self, name: str) -> Any:
            asked.append(name)
            return super().__getattribute__(name)

    x = fresh((3, 16), fill=0).view(Watched)
    kernels("scalar").l2_normalize(x, fresh((3, 16)), 16)
    assert asked == []
    with pytest.raises(
        ValueError, match=r"x is float32 of shape \(3, 16\); it must have shape \(3, 17 or more by 16s\)"
    ):
        kernels("scalar").l2_normalize(x, fresh((3, 16)), 17)


@every_isa
def test_probes(isa: str) -> None:
    """A peak is positive and below what any core can do: the loops were not optimised away."""
    assert 0.01 < _core.probe_int8(isa, 5) < 1500
    assert 0.01 < _core.probe_int8(isa, 5, bounded_pairs=True) < 1500
    assert 0.01 < _core.probe_f32(isa, 5) < 600
    assert 0.01 < _core.probe_int8(isa, 5, threads=2) < 3000
    assert _core.Kernels(isa).isa == isa


def test_probe_bandwidth() -> None:
    memory, cache = _core.probe_bandwidth(1), _core.probe_bandwidth(20, bytes=8192)
    assert 0.1 < memory < cache < 5000
    assert 0.1 < _core.probe_bandwidth(1, threads=2) < 1000
    with pytest.raises(ValueError, match="bytes is 100; it must be 4096"):
        _core.probe_bandwidth(bytes=100)
    with pytest.raises(ValueError, match="milliseconds is 0; it must be 1"):
        _core.probe_int8(milliseconds=0)

"""A layer built from its specification equals the same layer in torch, whatever it normalises, masks and shares."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from helpers.engines import ENGINES
from helpers.torch_models import deviation
from pocketformer.errors import CheckpointError
from pocketformer.families.rope import Rope, frequencies
from pocketformer.families.transformer import Layer, LayerNames, LayerSpec
from pocketformer.graph import Graph, GraphBuilder, Table
from pocketformer.lazy import lazy

VOCAB, HIDDEN, LENGTHS = 50, 40, (1, 9, 33)
NAMES = LayerNames(("q", "k", "v"), "o", "norm1", "up", "down", "norm2", ffn_gate="gate")
FUSED = replace(NAMES, qkv=("qkv",))
BERT = LayerSpec(hidden=HIDDEN, heads=4, ffn=70, activation="gelu", eps=1e-2)
SPECS = {
    "post-norm (BERT)": BERT,
    "pre-norm (ViT)": replace(BERT, norm="pre"),
    "no first norm, no bias, window (ModernBERT)": replace(
        BERT,
        norm="pre",
        attention_norm=False,
        window=5,
        qkv_bias=False,
        out_bias=False,
        ffn_bias=False,
        norm_bias=False,
    ),
    "rms, shared keys, wide heads, causal (decoders)": replace(
        BERT,
        norm="pre",
        norm_kind="rms",
        norm_bias=False,
        kv_heads=2,
        head_dim=12,
        causal=True,
        out_bias=False,
        ffn_bias=False,
        activation="silu",
    ),
    "gated, a part of the channels turned (Phi)": replace(
        BERT, norm="pre", gated=True, activation="silu", rope=Rope(frequencies(500.0, 6), factor=1.1)
    ),
}


class Arrays(dict[str, np.ndarray]):
    """A checkpoint in memory."""

    def shape(self, name: str) -> tuple[int, ...]:
        return self[name].shape

    def weight(self, name: str, *shape: int) -> Any:
        if self[name].shape != shape:
            raise CheckpointError(f"{name} has shape {self[name].shape}, not {shape}")
        return lazy(shape, lambda begin, end: self[name][begin:end])

    def vector(self, name: str, length: int) -> np.ndarray:
        assert self[name].shape == (length,)
        return self[name]


def random_layer(spec: LayerSpec, prefix: str) -> Arrays:
    rng = np.random.default_rng(3)
    inner, outer = spec.heads * spec.head_width, spec.key_heads * spec.head_width
    heights = {
        "q": (inner, HIDDEN, spec.qkv_bias),
        "k": (outer, HIDDEN, spec.qkv_bias),
        "v": (outer, HIDDEN, spec.qkv_bias),
        "o": (HIDDEN, inner, spec.out_bias),
        "up": (spec.ffn, HIDDEN, spec.ffn_bias),
        "down": (HIDDEN, spec.ffn, spec.ffn_bias),
    }
    if spec.gated:
        heights["gate"] = heights["up"]
    arrays = Arrays()
    for name, (n, k, bias) in heights.items():
        gain = 1.8 if name in "qk" else 0.8
        arrays[f"{prefix}{name}.weight"] = (gain * rng.standard_normal((n, k)) / k**0.5).astype(np.float32)
        if bias:
            arrays[f"{prefix}{name}.bias"] = (0.2 * rng.standard_normal(n)).astype(np.float32)
    for name in ("norm1", "norm2"):
        arrays[f"{prefix}{name}.weight"] = (1 + 0.3 * rng.standard_normal(HIDDEN)).astype(np.float32)
        if spec.norm_bias:
            arrays[f"{prefix}{name}.bias"] = (0.2 * rng.standard_normal(HIDDEN)).astype(np.float32)
    return arrays


def torch_layer(spec: LayerSpec, arrays: Arrays, x: torch.Tensor) -> torch.Tensor:
    def tensor(name: str) -> torch.Tensor | None:
        return torch.tensor(arrays[name]) if name in arrays else None

    def linear(value: torch.Tensor, name: str) -> torch.Tensor:
        return functional.linear(value, torch.tensor(arrays[f"{name}.weight"]), tensor(f"{name}.bias"))

    def norm(value: torch.Tensor, name: str) -> torch.Tensor:
        if spec.norm_kind == "rms":
            return functional.rms_norm(value, (HIDDEN,), tensor(f"{name}.weight"), spec.eps)
        return functional.layer_norm(value, (HIDDEN,), tensor(f"{name}.weight"), tensor(f"{name}.bias"), spec.eps)

    def heads(value: torch.Tensor, count: int) -> torch.Tensor:
        split = value.view(len(value), count, spec.head_width).transpose(0, 1)
        return split.repeat_interleave(spec.heads // count, 0)

    def turned(value: torch.Tensor) -> torch.Tensor:
        if spec.rope is None:
            return value
        half = len(spec.rope.frequencies)
        angle = torch.arange(value.shape[1])[:, None] * torch.tensor(spec.rope.frequencies)
        turns = torch.polar(torch.full_like(angle, spec.rope.factor), angle)  # as complex numbers
        both = torch.complex(value[..., :half], value[..., half : 2 * half]) * turns
        return torch.cat([both.real, both.imag, value[..., 2 * half :]], -1)

    def attention(value: torch.Tensor) -> torch.Tensor:
        q, k, v = (heads(linear(value, n), c) for n, c in zip("qkv", (spec.heads, *2 * [spec.key_heads]), strict=True))
        distance = torch.arange(len(value))[:, None] - torch.arange(len(value))
        seen = torch.ones_like(distance, dtype=torch.bool)
        if spec.causal:
            seen &= distance >= 0
        if spec.window is not None:
            seen &= distance.abs() <= spec.window
        mixed = functional.scaled_dot_product_attention(turned(q), turned(k), v, attn_mask=seen)
        return linear(mixed.transpose(0, 1).reshape(len(value), -1), "o")

    def ffn(value: torch.Tensor) -> torch.Tensor:
        activation, up = getattr(functional, spec.activation), linear(value, "up")
        return linear(activation(linear(value, "gate")) * up if spec.gated else activation(up), "down")

    if spec.norm == "post":
        x = norm(x + attention(x), "norm1")
        return norm(x + ffn(x), "norm2")
    x = x + attention(norm(x, "norm1") if spec.attention_norm else x)
    return x + ffn(norm(x, "norm2"))


def graph_of(spec: LayerSpec, arrays: Arrays, table: np.ndarray, names: LayerNames = NAMES, prefix: str = "") -> Graph:
    b = GraphBuilder.text(VOCAB, 0, 64)
    x = b.embed([Table("words", table, "ids")])
    return b.build(Layer.read("layer", spec, arrays, prefix, names).append_to(b, x))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", SPECS)
def test_parity(kind: str, engine: str) -> None:
    spec, rng = SPECS[kind], np.random.default_rng(0)
    arrays = random_layer(spec, "")
    table = rng.standard_normal((VOCAB, HIDDEN)).astype(np.float32)
    ids = rng.integers(0, VOCAB, sum(LENGTHS))
    expected = torch.cat([torch_layer(spec, arrays, x) for x in torch.split(torch.tensor(table[ids]), LENGTHS)])
    assert deviation(ENGINES[engine](graph_of(spec, arrays, table), ids, LENGTHS), expected.numpy()) <= 1


def test_fused_and_separate_projections_are_one_graph() -> None:
    arrays, table = random_layer(BERT, "x."), np.ones((VOCAB, HIDDEN), np.float32)
    separate = graph_of(BERT, arrays, table, prefix="x.")
    for part in ("weight", "bias"):
        arrays[f"x.qkv.{part}"] = np.concatenate([arrays[f"x.{name}.{part}"] for name in "qkv"])
    fused = graph_of(BERT, arrays, table, FUSED, prefix="x.")
    assert fused.ops == separate.ops
    assert all(np.array_equal(fused.params[name], np.asarray(array)) for name, array in separate.params.items())


def test_one_matrix_of_gate_and_up_is_split() -> None:
    spec = replace(BERT, gated=True)
    arrays, table = random_layer(spec, ""), np.ones((VOCAB, HIDDEN), np.float32)
    separate = graph_of(spec, arrays, table)
    arrays = Arrays(arrays)  # a layer reads its weights when they are used
    for part in ("weight", "bias"):
        arrays[f"up.{part}"] = np.concatenate([arrays.pop(f"gate.{part}"), arrays[f"up.{part}"]])
    fused = graph_of(spec, arrays, table, replace(NAMES, ffn_gate=None))
    assert fused.ops == separate.ops
    assert all(np.array_equal(fused.params[name], np.asarray(array)) for name, array in separate.params.items())


def test_a_layer_run_twice_is_stored_once() -> None:
    b = GraphBuilder.text(VOCAB, 0, 64)
    layer = Layer.read("shared", BERT, random_layer(BERT, ""), "", NAMES)
    x = b.embed([Table("words", np.ones((VOCAB, HIDDEN), np.float32), "ids")])
    graph = b.build(layer.append_to(b, layer.append_to(b, x)))
    assert sum(op["op"] == "linear" for op in graph.ops) == 2 * 4
    assert len(graph.params) == 1 + 4 * 2 + 2 * 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"heads": 7}, "hidden size 40.* 7 heads"),
        ({"kv_heads": 3}, "4 heads.* 3 key-value"),
        ({"rope": Rope((1.0,) * 6)}, "12 channels of a head of 10"),
    ],
)
def test_heads_must_fit(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        replace(BERT, **changes)

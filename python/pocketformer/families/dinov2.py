"""DINOv2: a vision transformer taught without labels (Oquab et al., arXiv 2304.07193), and with registers, tokens that
gather what belongs to no patch (Darcet et al., arXiv 2309.16588)."""

from __future__ import annotations

from dataclasses import replace
from math import isqrt

import numpy as np

from ..errors import CheckpointError, UnsupportedModelError
from ..graph import Array, GraphBuilder
from ..sources.source import Config, Tensors
from .image import ImageFamily, ImageSpec, ScaledTensors, Size, image_spec, patches, tokens
from .positions import resized
from .transformer import Layer, LayerNames, LayerSpec, norm
from .vit import PATCH_TABLE

NAMES = LayerNames(
    qkv=("attention.attention.query", "attention.attention.key", "attention.attention.value"),
    attention_out="attention.output.dense",
    attention_norm="norm1",
    ffn_up="mlp.fc1",
    ffn_down="mlp.fc2",
    ffn_norm="norm2",
)
GATED_NAMES = replace(NAMES, ffn_up="mlp.weights_in", ffn_down="mlp.weights_out")
"""Of the giant one, whose FFN is a SwiGLU (arXiv 2002.05202)."""
_SCALES = {
    "attention.output.dense": "layer_scale1",
    "mlp.fc2": "layer_scale2",
    "mlp.weights_out": "layer_scale2",
}
"""The linears whose outputs LayerScale multiplies (Touvron et al., arXiv 2103.17239)."""
BASE = "dinov2"


def spec(config: Config) -> ImageSpec:
    """A gated FFN has two thirds of the width, a multiple of 8."""
    hidden, gated = config.integer("hidden_size", 768), config.flag("use_swiglu_ffn")
    wide = int(hidden * config.number("mlp_ratio", 4))
    layer = LayerSpec(
        hidden=hidden,
        heads=config.integer("num_attention_heads", 12),
        ffn=(int(wide * 2 / 3) + 7) // 8 * 8 if gated else wide,
        activation="silu" if gated else config.activation("hidden_act"),
        gated=gated,
        eps=config.number("layer_norm_eps", 1e-6),
        norm="pre",
        qkv_bias=config.values.get("qkv_bias", True) is not False,
    )
    return image_spec(config, layer)


def build(config: Config, tensors: Tensors, architecture: str, size: Size) -> tuple[GraphBuilder, str]:
    """From ``pixels`` to the last hidden states [tokens, width], or to logits [images, labels]."""
    s, b = spec(config), GraphBuilder()
    hidden, base = s.layer.hidden, config.text("model_type", BASE)
    registers = config.integer("num_register_tokens", 4) if base != BASE else 0
    x = _embedded(b, s, tensors, config, base, registers, size)
    scaled = ScaledTensors(tensors, lambda name: _scale(tensors, name, hidden))
    names = GATED_NAMES if s.layer.gated else NAMES
    for i in range(s.layers):
        x = Layer.read(f"layers.{i}", s.layer, scaled, f"{base}.encoder.layer.{i}.", names).append_to(b, x)
    x = b.norm(x, *norm(tensors, f"{base}.layernorm", hidden), name="norm", eps=s.layer.eps)
    if not architecture.endswith("ForImageClassification"):
        return b, x
    labels = tensors.shape("classifier.weight")[0]
    weight = np.asarray(tensors.weight("classifier.weight", labels, 2 * hidden))
    logits = b.linear(b.pool(x, "cls"), np.ascontiguousarray(weight[:, :hidden]), name="class")
    mean = b.pool(x, "mean", begin=1 + registers)
    of_patches, bias = np.ascontiguousarray(weight[:, hidden:]), tensors.vector("classifier.bias", labels)
    return b, b.linear(mean, of_patches, bias, name="classifier", residual=logits)


def _embedded(
    b: GraphBuilder, s: ImageSpec, tensors: Tensors, config: Config, base: str, registers: int, size: Size
) -> str:
    if min(size) < s.patch:
        raise UnsupportedModelError(
            f"{config.path}: the preprocessing makes images of {size[0]} × {size[1]}, less than a patch of {s.patch}"
        )
    hidden, prefix = s.layer.hidden, f"{base}.embeddings."
    kernel = tensors.weight(f"{prefix}patch_embeddings.projection.weight", hidden, s.channels, s.patch, s.patch)
    bias = tensors.vector(f"{prefix}patch_embeddings.projection.bias", hidden)
    count = (s.image // s.patch) ** 2
    places = np.asarray(tensors.weight(f"{prefix}position_embeddings", 1, 1 + count, hidden))[0]
    table = _positions(places[1:], s, size, antialias=registers > 0)
    first = np.asarray(tensors.weight(f"{prefix}cls_token", 1, 1, hidden))[0] + places[:1]
    if registers:
        first = np.concatenate([first, np.asarray(tensors.weight(f"{prefix}register_tokens", 1, registers, hidden))[0]])
    return tokens(b, patches(b, s, size, kernel, bias, table), first)


def _positions(table: Array, s: ImageSpec, size: Size, antialias: bool) -> Array:
    side, grid = isqrt(len(table)), s.grid(size)
    if side * side != len(table):
        raise CheckpointError(f"the position table has {len(table)} rows, which are no square")
    if len(table) == grid[0] * grid[1] and size[0] == size[1]:
        return table
    return resized(table.reshape(side, side, -1), grid, antialias).reshape(grid[0] * grid[1], -1)


def _scale(tensors: Tensors, name: str, hidden: int) -> Array | None:
    layer, _, part = name.rpartition(".")
    for linear, scale in _SCALES.items():
        if layer.endswith(f".{linear}") and part in ("weight", "bias"):
            return tensors.vector(f"{layer.removesuffix(linear)}{scale}.lambda1", hidden)
    return None


DINOV2 = ImageFamily(
    "dinov2",
    "dinov2",
    PATCH_TABLE,
    {"Dinov2Model": "embed_image", "Dinov2ForImageClassification": "classify_image"},
    build,
)
DINOV2_WITH_REGISTERS = ImageFamily(
    "dinov2_with_registers",
    "dinov2_with_registers",
    PATCH_TABLE,
    {
        "Dinov2WithRegistersModel": "embed_image",
        "Dinov2WithRegistersForImageClassification": "classify_image",
    },
    build,
)

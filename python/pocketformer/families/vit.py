"""Vision transformer: patches of an image as tokens (Dosovitskiy et al., arXiv 2010.11929)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import UnsupportedModelError
from ..graph import GraphBuilder, Table
from ..sources.source import Config, Tensors
from .transformer import Layer, LayerNames, LayerSpec, linear, norm

NAME, BASE = "vit", "vit"
PATCH_TABLE = "embeddings.patch_embeddings.projection.weight"
"""What tells the encoder, below ``BASE``."""
CLASSES = {"ViTForImageClassification": "classify_image"}
_NAMES = LayerNames(
    qkv=("attention.attention.query", "attention.attention.key", "attention.attention.value"),
    attention_out="attention.output.dense",
    attention_norm="layernorm_before",
    ffn_up="intermediate.dense",
    ffn_down="output.dense",
    ffn_norm="layernorm_after",
)


@dataclass(frozen=True)
class ImageSpec:
    """Images of ``height`` × ``width`` pixels in square patches of ``patch``."""

    height: int
    width: int
    channels: int
    patch: int
    layer: LayerSpec
    layers: int


def spec(config: Config) -> ImageSpec:
    """Raises UnsupportedModelError for sizes that patches do not divide, which the reference would cut."""
    size, patch = config.integer("image_size", 224), config.integer("patch_size", 16)
    if size % patch:
        raise UnsupportedModelError(f"{config.path}: 'image_size' is {size}, no multiple of the patch size {patch}")
    layer = LayerSpec(
        hidden=config.integer("hidden_size", 768),
        heads=config.integer("num_attention_heads", 12),
        ffn=config.integer("intermediate_size", 3072),
        activation=config.activation("hidden_act"),
        eps=config.number("layer_norm_eps", 1e-12),
        norm="pre",
        qkv_bias=config.values.get("qkv_bias", True) is not False,
    )
    layers = config.integer("num_hidden_layers", 12)
    return ImageSpec(size, size, config.integer("num_channels", 3), patch, layer, layers)


def classifier(config: Config, tensors: Tensors) -> tuple[GraphBuilder, str]:
    """The graph from ``pixels``, float32 [height · width, channels] an image, to logits [images, labels]."""
    s = spec(config)
    hidden, prefix = s.layer.hidden, f"{BASE}."
    b = GraphBuilder([{"name": "image", "kind": "grid", "height": s.height, "width": s.width}])
    b.inputs.append({"name": "pixels", "domain": "image", "dtype": "f32", "width": s.channels})
    down, across = s.height // s.patch, s.width // s.patch
    b.domain("patches", "grid", "image", height=down, width=across)
    x = b.unfold("pixels", "patches", height=s.patch, width=s.patch, stride=s.patch)
    patches = f"{prefix}embeddings.patch_embeddings.projection"
    kernel = np.asarray(tensors.weight(f"{patches}.weight", hidden, s.channels, s.patch, s.patch))
    weight = np.ascontiguousarray(kernel.transpose(0, 2, 3, 1).reshape(hidden, -1))  # pixel by pixel, channels last
    x = b.linear(x, weight, tensors.vector(f"{patches}.bias", hidden), name="embed.patches")
    tokens = b.domain("tokens", "ragged", "patches", prepended=1)
    first = np.asarray(tensors.weight(f"{prefix}embeddings.cls_token", 1, 1, hidden)).reshape(1, hidden)
    x = b.prepend(x, first, tokens, name="embed.first")
    places = tensors.weight(f"{prefix}embeddings.position_embeddings", 1, 1 + down * across, hidden)
    x = b.embed([Table("embed.positions", np.asarray(places).reshape(-1, hidden), "positions")], add_to=x)
    for i in range(s.layers):
        x = Layer.read(f"layers.{i}", s.layer, tensors, f"{prefix}encoder.layer.{i}.", _NAMES).append_to(b, x)
    x = b.norm(b.pool(x, "cls"), *norm(tensors, f"{prefix}layernorm", hidden), name="norm", eps=s.layer.eps)
    labels = tensors.shape("classifier.weight")[0]
    return b, b.linear(x, *linear(tensors, "classifier", labels, hidden), name="classifier")

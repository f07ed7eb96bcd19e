"""BEiT: a vision transformer taught to tell hidden patches, whose attention knows how far patches are from each other
(Bao et al., arXiv 2106.08254)."""

from __future__ import annotations

from functools import partial

import numpy as np

from ..graph import Array, GraphBuilder
from ..sources.source import Config, Tensors
from .image import ImageFamily, ImageSpec, ScaledTensors, Size, image_spec, patches, require_size, tokens
from .transformer import Layer, LayerSpec, linear, norm
from .vit import NAMES, PATCH_TABLE

BASE = "beit"
_SCALES = {"attention.output.dense": "lambda_1", "output.dense": "lambda_2"}
"""The linears whose outputs LayerScale multiplies (Touvron et al., arXiv 2103.17239)."""
_KEY = "attention.attention.key.bias"


def spec(config: Config) -> ImageSpec:
    hidden, heads = config.integer("hidden_size", 768), config.integer("num_attention_heads", 12)
    layer = LayerSpec(
        hidden=hidden,
        heads=heads,
        ffn=config.integer("intermediate_size", 3072),
        activation=config.activation("hidden_act"),
        eps=config.number("layer_norm_eps", 1e-12),
        norm="pre",
    )
    config.refuse("head_dim", config.integer("head_dim", hidden // heads) != hidden // heads, "heads share the width")
    return image_spec(config, layer)


def build(config: Config, tensors: Tensors, architecture: str, size: Size) -> tuple[GraphBuilder, str]:
    """From ``pixels``, float32 [height · width, channels] an image, to logits [images, labels], what the pooler gives
    [images, width], or without one the last hidden states [tokens, width]."""
    s, b = spec(config), GraphBuilder()
    require_size(config, s, size)
    hidden, eps, mean = s.layer.hidden, s.layer.eps, config.flag("use_mean_pooling", True)
    x = _embedded(b, s, tensors, size, config.flag("use_absolute_position_embeddings"))
    grid = s.grid(size)
    shared = _biases(tensors, f"{BASE}.encoder", s, grid) if config.flag("use_shared_relative_position_bias") else None
    scaled = _WithoutKeyBias(tensors, partial(_scale, tensors, hidden, config.number("layer_scale_init_value", 0.1)))
    for i in range(s.layers):
        prefix = f"{BASE}.encoder.layer.{i}."
        bias = None if shared is None else ("relative_positions", shared)
        if config.flag("use_relative_position_bias"):
            own = _biases(tensors, f"{prefix}attention.attention", s, grid)
            bias = f"layers.{i}.relative_positions", own if shared is None else own + shared
        attend = partial(b.attention, heads=s.layer.heads, head_dim=s.layer.head_width, pair_bias=bias)
        x = Layer.read(f"layers.{i}", s.layer, scaled, prefix, NAMES).append_to(b, x, attend=attend)
    pooled = f"{BASE}.pooler.layernorm"
    if mean and (architecture.endswith("ForImageClassification") or f"{pooled}.weight" in tensors):
        x = b.norm(b.pool(x, "mean", begin=1), *norm(tensors, pooled, hidden), name="norm", eps=eps)
    elif not mean:
        last = norm(tensors, f"{BASE}.layernorm", hidden)
        if architecture.endswith("ForImageClassification"):
            x = b.pool(x, "cls")
        x = b.norm(x, *last, name="norm", eps=eps)
    if not architecture.endswith("ForImageClassification"):
        return b, x
    labels = tensors.shape("classifier.weight")[0]
    return b, b.linear(x, *linear(tensors, "classifier", labels, hidden), name="classifier")


def _embedded(b: GraphBuilder, s: ImageSpec, tensors: Tensors, size: Size, absolute: bool) -> str:
    hidden, prefix, (down, across) = s.layer.hidden, f"{BASE}.embeddings.", s.grid(size)
    kernel = tensors.weight(f"{prefix}patch_embeddings.projection.weight", hidden, s.channels, s.patch, s.patch)
    bias = tensors.vector(f"{prefix}patch_embeddings.projection.bias", hidden)
    first = np.asarray(tensors.weight(f"{prefix}cls_token", 1, 1, hidden))[0]
    if not absolute:
        return tokens(b, patches(b, s, size, kernel, bias, None), first)
    places = np.asarray(tensors.weight(f"{prefix}position_embeddings", 1, 1 + down * across, hidden))[0]
    return tokens(b, patches(b, s, size, kernel, bias, places[1:]), first + places[:1])


def _biases(tensors: Tensors, prefix: str, s: ImageSpec, grid: Size) -> Array:
    """[heads, keys, queries] of the class token and the patches: a number for each distance down and across from the
    key to the query, and three for pairs with the class token."""
    down, across = grid
    far = (2 * down - 1) * (2 * across - 1)
    name = f"{prefix}.relative_position_bias.relative_position_bias_table"
    table = np.asarray(tensors.weight(name, far + 3, s.layer.heads))
    line, column = np.divmod(np.arange(down * across), across)
    index = np.empty((1 + down * across,) * 2, np.int64)  # [key, query]
    index[1:, 1:] = (line - line[:, None] + down - 1) * (2 * across - 1) + column - column[:, None] + across - 1
    index[:, 0], index[0, :], index[0, 0] = far, far + 1, far + 2
    return np.ascontiguousarray(table[index].transpose(2, 0, 1))


def _scale(tensors: Tensors, hidden: int, starts_at: float, name: str) -> Array | None:
    layer, _, part = name.rpartition(".")
    found = next((linear for linear in _SCALES if layer.endswith(f".{linear}")), None)
    if found is None or part not in ("weight", "bias") or not starts_at:
        return None
    return tensors.vector(f"{layer.removesuffix(found)}{_SCALES[found]}", hidden)


class _WithoutKeyBias(ScaledTensors):
    """Keys have no bias, beside queries and values that do."""

    def vector(self, name: str, length: int) -> Array:
        return np.zeros(length, np.float32) if name.endswith(_KEY) else super().vector(name, length)


BEIT = ImageFamily(
    "beit",
    BASE,
    PATCH_TABLE,
    {
        "BeitForImageClassification": "classify_image",
        "BeitModel": "embed_image",
        "BeitForMaskedImageModeling": "embed_image",
    },
    build,
)

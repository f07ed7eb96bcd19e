"""Vision transformer: patches of an image as tokens (Dosovitskiy et al., arXiv 2010.11929).

DeiT adds a token that was taught by another network (Touvron et al., arXiv 2012.12877).
"""

from __future__ import annotations

import numpy as np

from ..graph import Array, GraphBuilder
from ..sources.source import Config, Tensors
from .image import ImageFamily, ImageSpec, Size, image_spec, patches, require_size, tokens
from .transformer import Layer, LayerNames, LayerSpec, linear, norm

NAMES = LayerNames(
    qkv=("attention.attention.query", "attention.attention.key", "attention.attention.value"),
    attention_out="attention.output.dense",
    attention_norm="layernorm_before",
    ffn_up="intermediate.dense",
    ffn_down="output.dense",
    ffn_norm="layernorm_after",
)
PATCH_TABLE = "embeddings.patch_embeddings.projection.weight"


def spec(config: Config) -> ImageSpec:
    return image_spec(
        config,
        LayerSpec(
            hidden=config.integer("hidden_size", 768),
            heads=config.integer("num_attention_heads", 12),
            ffn=config.integer("intermediate_size", 3072),
            activation=config.activation("hidden_act"),
            eps=config.number("layer_norm_eps", 1e-12),
            norm="pre",
            qkv_bias=config.values.get("qkv_bias", True) is not False,
        ),
    )


def build(config: Config, tensors: Tensors, architecture: str, size: Size) -> tuple[GraphBuilder, str]:
    """From ``pixels``, float32 [height · width, channels] an image, to logits [images, labels], what the pooler gives
    [images, width], or without one the last hidden states [tokens, width]."""
    s, base = spec(config), config.text("model_type", "")
    require_size(config, s, size)
    hidden, eps, b = s.layer.hidden, s.layer.eps, GraphBuilder()
    x = embedded(
        b, s, tensors, f"{base}.embeddings.", size, ("cls_token", "distillation_token")[: 1 + (base == "deit")]
    )
    for i in range(s.layers):
        x = Layer.read(f"layers.{i}", s.layer, tensors, f"{base}.encoder.layer.{i}.", NAMES).append_to(b, x)
    last = norm(tensors, f"{base}.layernorm", hidden)
    pooler = f"{base}.pooler.dense"
    if architecture.endswith("Model") and f"{pooler}.weight" in tensors:
        x = b.norm(b.pool(x, "cls"), *last, name="norm", eps=eps)
        width = tensors.shape(f"{pooler}.weight")[0]
        activation = config.activation("pooler_act", "tanh")
        return b, b.linear(x, *linear(tensors, pooler, width, hidden), name="pooler", activation=activation)
    if architecture.endswith("WithTeacher"):
        return b, _both_heads(b, x, tensors, last, eps)
    if not architecture.endswith("ForImageClassification"):
        return b, b.norm(x, *last, name="norm", eps=eps)
    x = b.norm(b.pool(x, "cls"), *last, name="norm", eps=eps)
    labels = tensors.shape("classifier.weight")[0]
    return b, b.linear(x, *linear(tensors, "classifier", labels, hidden), name="classifier")


def embedded(b: GraphBuilder, s: ImageSpec, tensors: Tensors, prefix: str, size: Size, first: tuple[str, ...]) -> str:
    """Patches behind the tokens ``first``, each with its position."""
    hidden, (down, across) = s.layer.hidden, s.grid(size)
    kernel = tensors.weight(f"{prefix}patch_embeddings.projection.weight", hidden, s.channels, s.patch, s.patch)
    bias = tensors.vector(f"{prefix}patch_embeddings.projection.bias", hidden)
    count = len(first)
    places = np.asarray(tensors.weight(f"{prefix}position_embeddings", 1, count + down * across, hidden))[0]
    rows = np.concatenate([np.asarray(tensors.weight(f"{prefix}{name}", 1, 1, hidden))[0] for name in first])
    return tokens(b, patches(b, s, size, kernel, bias, places[count:]), rows + places[:count])


def _both_heads(b: GraphBuilder, x: str, tensors: Tensors, last: tuple[Array, Array | None], eps: float) -> str:
    """The mean of what the class token and the distilled one say."""
    labels, hidden = tensors.shape("cls_classifier.weight")
    logits: str | None = None
    for i, name in enumerate(("cls_classifier", "distillation_classifier")):
        row = b.norm(b.pool(x, "cls", begin=i), *last, name="norm", eps=eps)
        weight, bias = linear(tensors, name, labels, hidden)
        half = np.float32(0.5)
        where = "classifier" if logits else "class"
        logits = b.linear(row, np.asarray(weight) * half, bias * half, name=where, residual=logits)  # type: ignore[operator]
    assert logits is not None
    return logits


VIT = ImageFamily(
    "vit",
    "vit",
    PATCH_TABLE,
    {
        "ViTForImageClassification": "classify_image",
        "ViTModel": "embed_image",
        "ViTForMaskedImageModeling": "embed_image",
    },
    build,
)
DEIT = ImageFamily(
    "deit",
    "deit",
    PATCH_TABLE,
    {
        "DeiTForImageClassification": "classify_image",
        "DeiTForImageClassificationWithTeacher": "classify_image",
        "DeiTModel": "embed_image",
        "DeiTForMaskedImageModeling": "embed_image",
    },
    build,
)

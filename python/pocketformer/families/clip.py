"""Towers of images and of texts that were taught to agree: CLIP (Radford et al., arXiv 2103.00020) and SigLIP (Zhai et
al., arXiv 2303.15343). A pocket file holds one of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..graph import Array, GraphBuilder, Table
from ..sources.source import Config, Tensors
from .image import ImageFamily, ImageSpec, ScaledTensors, Size, image_spec, patches, require_size, tokens
from .transformer import Layer, LayerNames, LayerSpec, linear, norm

NAMES = LayerNames(
    qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    attention_out="self_attn.out_proj",
    attention_norm="layer_norm1",
    ffn_up="mlp.fc1",
    ffn_down="mlp.fc2",
    ffn_norm="layer_norm2",
)
VISION, TEXT = "vision_model", "text_model"
_PATCHES, _WORDS = "embeddings.patch_embedding.weight", "embeddings.token_embedding.weight"
_QUICK = np.float32(1.702)
_SELF = -1e4
"""Added to the score of the probe's own key, which it must not see."""


@dataclass(frozen=True)
class TextTower:
    """An encoder of texts whose embedding is one token's row.

    ``build(config, tensors)`` returns the graph and its output; ``pooled`` says which row counts: the first of an id,
    of the ``highest`` one, or the ``last``. ``padded`` is the length that every text is filled up to, or None.
    """

    name: str
    classes: tuple[str, ...]
    base: str
    table: str
    build: Callable[[Config, Tensors], tuple[GraphBuilder, str]]
    pooled: Callable[[Config], int | str]
    padded: Callable[[Config], int | None]


def layer_spec(config: Config, *, eps: float, activation: str, causal: bool = False) -> LayerSpec:
    """``activation`` is what the class takes where its config is silent."""
    quick = config.text("hidden_act", activation) == "quick_gelu"
    hidden = config.integer("hidden_size", 768)
    return LayerSpec(
        hidden=hidden,
        heads=config.integer("num_attention_heads", 12),
        ffn=config.integer("intermediate_size", 4 * hidden),
        activation="silu" if quick else config.activation("hidden_act", activation),
        eps=config.number("layer_norm_eps", eps),
        norm="pre",
        causal=causal,
    )


def activated(config: Config, tensors: Tensors, spec: LayerSpec, activation: str) -> Tensors:
    """``tensors`` as the layers need them: x · sigmoid(1.702 x), the quick GELU, is silu(1.702 x) / 1.702."""
    if config.text("hidden_act", activation) != "quick_gelu":
        return tensors
    wide, narrow = np.full(spec.ffn, _QUICK), np.full(spec.hidden, 1 / _QUICK)

    def factors(name: str) -> Array | None:
        if name.endswith(("mlp.fc1.weight", "mlp.fc1.bias")):
            return wide
        return narrow if name.endswith("mlp.fc2.weight") else None

    return ScaledTensors(tensors, factors)


def _layers(b: GraphBuilder, x: str, spec: LayerSpec, layers: int, tensors: Tensors, base: str) -> str:
    for i in range(layers):
        x = Layer.read(f"layers.{i}", spec, tensors, f"{base}.encoder.layers.{i}.", NAMES).append_to(b, x)
    return x


def _projected(b: GraphBuilder, x: str, tensors: Tensors, name: str, width: int) -> str:
    """The shared space, where the checkpoint has a matrix that leads there."""
    if f"{name}.weight" not in tensors:
        return x
    rows = tensors.shape(f"{name}.weight")[0]
    return b.linear(x, *linear(tensors, name, rows, width, bias=False), name="projection")


def clip_vision(config: Config, tensors: Tensors, architecture: str, size: Size) -> tuple[GraphBuilder, str]:
    """From ``pixels`` to embeddings [images, width]."""
    s = image_spec(config, layer_spec(config, eps=1e-5, activation="quick_gelu"))
    require_size(config, s, size)
    tensors = activated(config, tensors, s.layer, "quick_gelu")
    b, hidden, eps = GraphBuilder(), s.layer.hidden, s.layer.eps
    places = np.asarray(_positions(tensors, s, size, 1))
    x = patches(b, s, size, _kernel(tensors, s), None, places[1:])
    x = tokens(b, x, tensors.vector(f"{VISION}.embeddings.class_embedding", hidden)[None] + places[:1])
    x = b.norm(x, *norm(tensors, f"{VISION}.pre_layrnorm", hidden), name="embed.norm", eps=eps)
    x = _layers(b, x, s.layer, s.layers, tensors, VISION)
    x = b.norm(b.pool(x, "cls"), *norm(tensors, f"{VISION}.post_layernorm", hidden), name="norm", eps=eps)
    return b, _projected(b, x, tensors, "visual_projection", hidden)


def siglip_vision(config: Config, tensors: Tensors, architecture: str, size: Size) -> tuple[GraphBuilder, str]:
    """From ``pixels`` to embeddings [images, width], or without a head to hidden states [patches, width]."""
    s = image_spec(config, layer_spec(config, eps=1e-6, activation="gelu_pytorch_tanh"))
    require_size(config, s, size)
    tensors = activated(config, tensors, s.layer, "gelu_pytorch_tanh")
    b, hidden, eps = GraphBuilder(), s.layer.hidden, s.layer.eps
    bias = tensors.vector(f"{VISION}.embeddings.patch_embedding.bias", hidden)
    places = _positions(tensors, s, size, 0)
    x = patches(b, s, size, _kernel(tensors, s), bias, places, domain="tokens")
    x = _layers(b, x, s.layer, s.layers, tensors, VISION)
    x = b.norm(x, *norm(tensors, f"{VISION}.post_layernorm", hidden), name="norm", eps=eps)
    if config.values.get("vision_use_head", True) is False:
        return b, x
    return b, _attention_pool(b, x, s, len(places), tensors)


def _attention_pool(b: GraphBuilder, x: str, s: ImageSpec, count: int, tensors: Tensors) -> str:
    """A trained probe looks at all patches: a row before theirs, which does not see itself."""
    spec, head = s.layer, f"{VISION}.head"
    hidden = spec.hidden
    probe = np.asarray(tensors.weight(f"{head}.probe", 1, 1, hidden))[0]
    x = b.prepend(x, probe, b.domain("head", "ragged", "tokens", prepended=1), name="head.probe")
    inner = tensors.weight(f"{head}.attention.in_proj_weight", 3 * hidden, hidden)
    qkv = b.linear(x, inner, tensors.vector(f"{head}.attention.in_proj_bias", 3 * hidden), name="head.qkv")
    hidden_keys = np.zeros((spec.heads, 2 * (count + 1) - 1), np.float32)
    hidden_keys[:, count] = _SELF
    x = b.attention(qkv, heads=spec.heads, head_dim=spec.head_width, domain="head", bias=("head.bias", hidden_keys))
    out = linear(tensors, f"{head}.attention.out_proj", hidden, hidden)
    x = b.linear(b.pool(x, "cls", of="head"), *out, name="head.out")
    h = b.norm(x, *norm(tensors, f"{head}.layernorm", hidden), name="head.norm", eps=spec.eps)
    up = linear(tensors, f"{head}.mlp.fc1", spec.ffn, hidden)
    h = b.linear(h, *up, name="head.ffn_up", activation=spec.activation)
    return b.linear(h, *linear(tensors, f"{head}.mlp.fc2", hidden, spec.ffn), name="head.ffn_down", residual=x)


def _kernel(tensors: Tensors, s: ImageSpec) -> Array:
    return tensors.weight(f"{VISION}.{_PATCHES}", s.layer.hidden, s.channels, s.patch, s.patch)


def _positions(tensors: Tensors, s: ImageSpec, size: Size, first: int) -> Array:
    down, across = s.grid(size)
    return tensors.weight(f"{VISION}.embeddings.position_embedding.weight", first + down * across, s.layer.hidden)


def _text(
    config: Config, tensors: Tensors, spec: LayerSpec, vocab: int, positions: int, activation: str
) -> tuple[GraphBuilder, str]:
    """From ``ids`` to the normalised rows that the caller chooses, one of each text."""
    tensors = activated(config, tensors, spec, activation)
    b, prefix = GraphBuilder.text(vocab, 0, positions), f"{TEXT}.embeddings."
    tables = [
        Table("embed.words", tensors.weight(f"{prefix}token_embedding.weight", vocab, spec.hidden), "ids"),
        Table(
            "embed.positions", tensors.weight(f"{prefix}position_embedding.weight", positions, spec.hidden), "positions"
        ),
    ]
    x = _layers(b, b.embed(tables), spec, config.integer("num_hidden_layers", 12), tensors, TEXT)
    return b, b.norm(b.select(x), *norm(tensors, f"{TEXT}.final_layer_norm", spec.hidden), name="norm", eps=spec.eps)


def clip_text(config: Config, tensors: Tensors) -> tuple[GraphBuilder, str]:
    spec = layer_spec(config, eps=1e-5, activation="quick_gelu", causal=True)
    vocab, positions = config.integer("vocab_size", 49408), config.integer("max_position_embeddings", 77)
    b, x = _text(config, tensors, spec, vocab, positions, "quick_gelu")
    return b, _projected(b, x, tensors, "text_projection", spec.hidden)


def siglip_text(config: Config, tensors: Tensors) -> tuple[GraphBuilder, str]:
    spec = layer_spec(config, eps=1e-6, activation="gelu_pytorch_tanh")
    vocab, positions = config.integer("vocab_size", 32000), config.integer("max_position_embeddings", 64)
    b, x = _text(config, tensors, spec, vocab, positions, "gelu_pytorch_tanh")
    width = tensors.shape(f"{TEXT}.head.weight")[0]
    return b, b.linear(x, *linear(tensors, f"{TEXT}.head", width, spec.hidden), name="projection")


def _clip_end(config: Config) -> int | str:
    """Early configs name 2, and then the highest id is the end."""
    end = config.integer("eos_token_id", 49407, minimum=0)
    return "highest" if end == 2 else end


def _image_tower(model: str, classes: tuple[str, ...], build: Callable[..., tuple[GraphBuilder, str]]) -> ImageFamily:
    return ImageFamily(model, VISION, _PATCHES, dict.fromkeys(classes, "embed_image"), build)


CLIP_VISION = _image_tower(
    "clip_vision_model", ("CLIPVisionModel", "CLIPVisionModelWithProjection", "CLIPModel"), clip_vision
)
SIGLIP_VISION = _image_tower("siglip_vision_model", ("SiglipVisionModel", "SiglipModel"), siglip_vision)
CLIP_TEXT = TextTower(
    "clip_text_model",
    ("CLIPTextModel", "CLIPTextModelWithProjection", "CLIPModel"),
    TEXT,
    _WORDS,
    clip_text,
    _clip_end,
    lambda config: None,
)
SIGLIP_TEXT = TextTower(
    "siglip_text_model",
    ("SiglipTextModel", "SiglipModel"),
    TEXT,
    _WORDS,
    siglip_text,
    lambda config: "last",
    lambda config: config.integer("max_position_embeddings", 64),
)

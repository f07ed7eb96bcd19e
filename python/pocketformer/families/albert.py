"""ALBERT: narrow embeddings and layers shared across the depth, stored once (arXiv 1909.11942)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..graph import GraphBuilder
from ..sources.source import Config, Tensors
from . import bert
from .encoder import EncoderSpec, embeddings
from .family import ClassifyHead, Family, MaskHead
from .transformer import Layer, LayerNames, linear

_NAMES = LayerNames(
    qkv=("attention.query", "attention.key", "attention.value"),
    attention_out="attention.dense",
    attention_norm="attention.LayerNorm",
    ffn_up="ffn",
    ffn_down="ffn_output",
    ffn_norm="full_layer_layer_norm",
)


@dataclass(frozen=True)
class AlbertSpec(EncoderSpec):
    """``groups`` of ``inner`` layers serve the whole depth."""

    groups: int = 1
    inner: int = 1


def spec(config: Config) -> AlbertSpec:
    values = {"hidden_act": "gelu_new", **config.values}
    common = bert.spec(replace(config, values=values))
    return AlbertSpec(
        **{**vars(common), "embedding": config.integer("embedding_size", 128)},
        groups=config.integer("num_hidden_groups", 1),
        inner=config.integer("inner_group_num", 1),
    )


def encode(b: GraphBuilder, spec: EncoderSpec, tensors: Tensors, prefix: str) -> str:
    assert isinstance(spec, AlbertSpec)
    scope = f"{prefix}encoder."

    def layer(g: int, i: int) -> Layer:
        where = f"{scope}albert_layer_groups.{g}.albert_layers.{i}."
        return Layer.read(f"groups.{g}.{i}", spec.layer, tensors, where, _NAMES)

    shared = [[layer(g, i) for i in range(spec.inner)] for g in range(spec.groups)]
    x = embeddings(b, spec, tensors, prefix)
    projection = linear(tensors, f"{scope}embedding_hidden_mapping_in", spec.hidden, spec.embedding)
    x = b.linear(x, *projection, name="embed.projection")
    for depth in range(spec.layers):
        for each in shared[int(depth / (spec.layers / spec.groups))]:
            x = each.append_to(b, x)
    return x


ALBERT = Family(
    name="albert",
    classes="Albert",
    base="albert",
    spec=spec,
    encode=encode,
    classify=ClassifyHead("albert.pooler", "classifier"),
    mask=MaskHead("predictions.dense", "predictions.LayerNorm", "predictions.decoder", "predictions.bias"),
)

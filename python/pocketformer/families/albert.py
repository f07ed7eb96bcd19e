"""ALBERT: narrow embeddings and layers shared across the depth, stored once (arXiv 1909.11942)."""

from __future__ import annotations

from dataclasses import replace

from ..graph import GraphBuilder
from ..sources.config import Config
from ..sources.weights import Weights
from . import bert
from .encoder import EncoderSpec, Layer, LayerNames, embeddings
from .family import ClassifyHead, Family, MaskHead

_NAMES = LayerNames(
    query="attention.query",
    key="attention.key",
    value="attention.value",
    attention_out="attention.dense",
    attention_norm="attention.LayerNorm",
    ffn_up="ffn",
    ffn_down="ffn_output",
    ffn_norm="full_layer_layer_norm",
)


def spec(config: Config) -> EncoderSpec:
    values = {"hidden_act": "gelu_new", **config.values}
    return replace(bert.spec(replace(config, values=values)), embedding=config.integer("embedding_size", 128))


def encode(b: GraphBuilder, config: Config, spec: EncoderSpec, weights: Weights) -> str:
    groups = config.integer("num_hidden_groups", 1)
    inner = config.integer("inner_group_num", 1)
    scope = weights.under("encoder.")
    shared = [
        [
            Layer.read(f"groups.{g}.{i}", spec, scope.under(f"albert_layer_groups.{g}.albert_layers.{i}."), _NAMES)
            for i in range(inner)
        ]
        for g in range(groups)
    ]
    x = embeddings(b, spec, weights)
    projection = scope.linear("embedding_hidden_mapping_in", spec.hidden, spec.embedding)
    x = b.linear(x, *projection, name="embed.projection")
    for depth in range(spec.layers):
        for layer in shared[int(depth / (spec.layers / groups))]:
            x = layer.apply(b, x, spec)
    return x


ALBERT = Family(
    name="albert",
    base="albert",
    pad_token_id=0,
    spec=spec,
    encode=encode,
    classify=ClassifyHead("albert.pooler", "classifier"),
    mask=MaskHead("predictions.dense", "predictions.LayerNorm", "predictions.decoder", "predictions.bias"),
)

"""BERT and its distilled relatives of the same layout (MiniLM, TinyBERT)."""

from __future__ import annotations

from ..graph import GraphBuilder
from ..sources.source import Config, Tensors
from .encoder import EncoderSpec, encoder
from .family import ClassifyHead, Family, MaskHead
from .transformer import LayerNames, LayerSpec

NAMES = LayerNames(
    qkv=("attention.self.query", "attention.self.key", "attention.self.value"),
    attention_out="attention.output.dense",
    attention_norm="attention.output.LayerNorm",
    ffn_up="intermediate.dense",
    ffn_down="output.dense",
    ffn_norm="output.LayerNorm",
)


def layer_spec(config: Config) -> LayerSpec:
    """A layer of the sizes that BERT's config names."""
    return LayerSpec(
        hidden=config.integer("hidden_size"),
        heads=config.integer("num_attention_heads"),
        ffn=config.integer("intermediate_size"),
        activation=config.activation("hidden_act"),
        eps=config.number("layer_norm_eps", 1e-12),
    )


def spec(config: Config) -> EncoderSpec:
    refuse_variants(config)
    layer = layer_spec(config)
    return EncoderSpec(
        vocab=config.integer("vocab_size"),
        types=config.integer("type_vocab_size", 2, minimum=0),
        positions=config.integer("max_position_embeddings"),
        layer=layer,
        layers=config.integer("num_hidden_layers"),
        embedding=layer.hidden,
        tied=config.flag("tie_word_embeddings", True),
    )


def refuse_variants(config: Config) -> None:
    """Raises for options that change the computation of BERT, or of a release of transformers that knew them."""
    position = config.text("position_embedding_type", "absolute")
    config.refuse("position_embedding_type", position != "absolute", "only 'absolute' positions are supported")
    config.refuse("is_decoder", config.flag("is_decoder"), "only encoders are supported")
    config.refuse("add_cross_attention", config.flag("add_cross_attention"), "only encoders are supported")


def encode(b: GraphBuilder, spec: EncoderSpec, tensors: Tensors, prefix: str) -> str:
    return encoder(b, spec, tensors, prefix, NAMES)


BERT = Family(
    name="bert",
    classes="Bert",
    base="bert",
    spec=spec,
    encode=encode,
    classify=ClassifyHead("bert.pooler.dense", "classifier"),
    mask=MaskHead(
        "cls.predictions.transform.dense",
        "cls.predictions.transform.LayerNorm",
        "cls.predictions.decoder",
        "cls.predictions.bias",
    ),
)

"""BERT and its distilled relatives of the same layout (MiniLM, TinyBERT)."""

from __future__ import annotations

from ..graph import GraphBuilder
from ..sources.config import Config
from ..sources.weights import Weights
from .encoder import EncoderSpec, encoder
from .family import ClassifyHead, Family, MaskHead


def refuse_variants(config: Config) -> None:
    """Raises for options of the BERT config that change the computation."""
    position = config.text("position_embedding_type", "absolute")
    config.refuse("position_embedding_type", position != "absolute", "only 'absolute' positions are supported")
    config.refuse("is_decoder", config.flag("is_decoder"), "only encoders are supported")
    config.refuse("add_cross_attention", config.flag("add_cross_attention"), "only encoders are supported")


def spec(config: Config) -> EncoderSpec:
    refuse_variants(config)
    hidden = config.integer("hidden_size")
    return EncoderSpec(
        vocab=config.integer("vocab_size"),
        types=config.integer("type_vocab_size", 2, minimum=0),
        positions=config.integer("max_position_embeddings"),
        hidden=hidden,
        heads=config.integer("num_attention_heads"),
        layers=config.integer("num_hidden_layers"),
        ffn=config.integer("intermediate_size"),
        activation=config.activation("hidden_act"),
        eps=config.number("layer_norm_eps", 1e-12),
        embedding=hidden,
    )


def encode(b: GraphBuilder, config: Config, spec: EncoderSpec, weights: Weights) -> str:
    return encoder(b, spec, weights)


BERT = Family(
    name="bert",
    base="bert",
    pad_token_id=0,
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

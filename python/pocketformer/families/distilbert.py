"""DistilBERT: BERT's encoder under other names, without token types or pooler (arXiv 1910.01108)."""

from __future__ import annotations

from dataclasses import replace

from ..graph import GraphBuilder
from ..sources.source import Config, Tensors
from .encoder import EncoderSpec, encoder
from .family import ClassifyHead, Family, MaskHead
from .transformer import LayerNames, LayerSpec

_EPS = 1e-12  # fixed by the architecture: its config has no such field
_ALIASES = {"dim": "hidden_size", "n_heads": "num_attention_heads", "n_layers": "num_hidden_layers"}
_NAMES = LayerNames(
    qkv=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
    attention_out="attention.out_lin",
    attention_norm="sa_layer_norm",
    ffn_up="ffn.lin1",
    ffn_down="ffn.lin2",
    ffn_norm="output_layer_norm",
)


def spec(config: Config) -> EncoderSpec:
    aliased = {key: config.values.get(alias) for key, alias in _ALIASES.items()}
    config = replace(config, values={**aliased, **config.values})
    hidden = config.integer("dim")
    layer = LayerSpec(
        hidden=hidden,
        heads=config.integer("n_heads"),
        ffn=config.integer("hidden_dim"),
        activation=config.activation("activation"),
        eps=_EPS,
    )
    return EncoderSpec(
        vocab=config.integer("vocab_size"),
        types=0,
        positions=config.integer("max_position_embeddings"),
        layer=layer,
        layers=config.integer("n_layers"),
        embedding=hidden,
        tied=config.flag("tie_word_embeddings", True),
    )


def encode(b: GraphBuilder, spec: EncoderSpec, tensors: Tensors, prefix: str) -> str:
    return encoder(b, spec, tensors, prefix, _NAMES, layers="transformer.layer.")


DISTILBERT = Family(
    name="distilbert",
    classes="DistilBert",
    base="distilbert",
    spec=spec,
    encode=encode,
    classify=ClassifyHead("pre_classifier", "classifier", activation="relu"),
    mask=MaskHead("vocab_transform", "vocab_layer_norm", "vocab_projector", "vocab_projector.bias"),
)

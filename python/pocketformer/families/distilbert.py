"""DistilBERT: BERT's encoder under other names, without token types or pooler (arXiv 1910.01108)."""

from __future__ import annotations

from ..graph import GraphBuilder
from ..sources.config import Config
from ..sources.weights import Weights
from .encoder import EncoderSpec, LayerNames, encoder
from .family import ClassifyHead, Family, MaskHead

_EPS = 1e-12  # fixed by the architecture: its config has no such field
_NAMES = LayerNames(
    query="attention.q_lin",
    key="attention.k_lin",
    value="attention.v_lin",
    attention_out="attention.out_lin",
    attention_norm="sa_layer_norm",
    ffn_up="ffn.lin1",
    ffn_down="ffn.lin2",
    ffn_norm="output_layer_norm",
)


def spec(config: Config) -> EncoderSpec:
    hidden = config.integer("dim")
    return EncoderSpec(
        vocab=config.integer("vocab_size"),
        types=0,
        positions=config.integer("max_position_embeddings"),
        hidden=hidden,
        heads=config.integer("n_heads"),
        layers=config.integer("n_layers"),
        ffn=config.integer("hidden_dim"),
        activation=config.activation("activation"),
        eps=_EPS,
        embedding=hidden,
    )


def encode(b: GraphBuilder, config: Config, spec: EncoderSpec, weights: Weights) -> str:
    return encoder(b, spec, weights, layers="transformer.layer.", names=_NAMES)


DISTILBERT = Family(
    name="distilbert",
    base="distilbert",
    pad_token_id=0,
    spec=spec,
    encode=encode,
    classify=ClassifyHead("pre_classifier", "classifier", activation="relu"),
    mask=MaskHead("vocab_transform", "vocab_layer_norm", "vocab_projector", "vocab_projector.bias"),
)

"""LongT5's encoder: T5's over windows of keys, and over sums of blocks or not (Guo et al., arXiv 2112.07916)."""

from __future__ import annotations

from dataclasses import replace

from ..graph import GraphBuilder
from ..sources.source import Config, Tensors
from . import t5
from .encoder import EncoderSpec
from .family import Family

_ATTENTIONS = {"local": "LocalSelfAttention", "transient-global": "TransientGlobalSelfAttention"}
_RADIUS, _BLOCK, _POSITIONS = 127, 16, 4096


def spec(config: Config) -> EncoderSpec:
    kind = config.text("encoder_attention_type", "local")
    config.refuse("encoder_attention_type", kind not in _ATTENTIONS, f"supported: {', '.join(_ATTENTIONS)}")
    known = t5.spec(config)
    radius = config.integer("local_radius", _RADIUS)  # on each side, inclusive
    block = config.integer("global_block_size", _BLOCK) if kind == "transient-global" else 0
    layer = replace(known.layer, window=radius, summaries=block)
    return replace(known, layer=layer, positions=config.integer("n_positions", _POSITIONS))


def encode(b: GraphBuilder, spec: EncoderSpec, tensors: Tensors, prefix: str) -> str:
    attention = _ATTENTIONS["transient-global" if spec.layer.summaries else "local"]
    return t5.encode(b, spec, tensors, prefix, attention)


LONGT5 = Family(
    name="longt5",
    classes="LongT5Encoder",
    base="transformer",
    spec=spec,
    encode=encode,
    table="encoder.final_layer_norm.weight",
)

"""GTE's encoders of 2024 (``model_type`` "new"): BERT with rotary positions and a gated FFN (arXiv 2407.19669).

Their code ships with Alibaba-NLP/new-impl. Long contexts scale the rotation by the "fixed NTK" rule: θ times the
factor, and all frequencies divided by factor^(2/channels of a head).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ..graph import GraphBuilder, Table
from ..lazy import row_slice
from ..sources.source import Config, Tensors
from .bert import layer_spec
from .encoder import EncoderSpec
from .family import ClassifyHead, Family, MaskHead
from .rope import Rope, frequencies
from .transformer import Layer, LayerSpec, linear, norm


def spec(config: Config) -> EncoderSpec:
    _refuse_variants(config)
    layer = layer_spec(config)
    return EncoderSpec(
        vocab=config.integer("vocab_size"),
        types=config.integer("type_vocab_size", 1, minimum=0),
        positions=config.integer("max_position_embeddings", 2048),
        layer=replace(layer, gated=True, rope=_rope(config, layer.head_width)),
        layers=config.integer("num_hidden_layers"),
        embedding=layer.hidden,
        tied=config.flag("tie_word_embeddings", True),
    )


def _refuse_variants(config: Config) -> None:
    position = config.text("position_embedding_type", "rope")
    config.refuse("position_embedding_type", position != "rope", "only 'rope' is supported")
    kind = config.text("layer_norm_type", "layer_norm")
    config.refuse("layer_norm_type", kind != "layer_norm", "only 'layer_norm' is supported")
    for key in ("logn_attention_scale", "logn_attention_clip1"):
        config.refuse(key, config.flag(key), "queries scaled by the length of a text are not supported")
    config.refuse(
        "pack_qkv", not config.flag("pack_qkv", True), "only one matrix of queries, keys and values is supported"
    )
    config.refuse(
        "embedding_size", config.values.get("embedding_size"), "tables narrower than layers are not supported"
    )


def _rope(config: Config, head_dim: int) -> Rope:
    theta = config.number("rope_theta", 10000.0)
    config.refuse("rope_theta", theta < 1, "it must be at least 1")
    scaling: Any = config.values.get("rope_scaling")
    if not scaling:
        return Rope(frequencies(theta, head_dim))
    known = isinstance(scaling, dict) and scaling.get("type") == "ntk" and not scaling.get("mixed_b")
    config.refuse("rope_scaling", not known, "of scalings, the one of type 'ntk' without 'mixed_b' is supported")
    factor = replace(config, values=scaling).number("factor", 1.0)
    if factor <= 1:  # as the reference: no position lies beyond those it was trained with
        return Rope(frequencies(theta, head_dim))
    turns = np.array(frequencies(theta * factor, head_dim), np.float32) / np.float32(factor ** (2 / head_dim))
    return Rope(tuple(turns.tolist()))


def encode(b: GraphBuilder, spec: EncoderSpec, tensors: Tensors, prefix: str) -> str:
    words = tensors.weight(f"{prefix}embeddings.word_embeddings.weight", spec.vocab, spec.hidden)
    tables = [Table("embed.words", words, "ids")]
    if spec.types:
        types = tensors.weight(f"{prefix}embeddings.token_type_embeddings.weight", spec.types, spec.hidden)
        tables.append(Table("embed.types", types, "types"))
    x = b.norm(
        b.embed(tables),
        *norm(tensors, f"{prefix}embeddings.LayerNorm", spec.hidden),
        name="embed.norm",
        eps=spec.layer.eps,
    )
    for i in range(spec.layers):
        x = _layer(f"layers.{i}", spec.layer, tensors, f"{prefix}encoder.layer.{i}.").append_to(b, x)
    return x


def _layer(name: str, spec: LayerSpec, tensors: Tensors, prefix: str) -> Layer:
    """Its ``up_gate_proj`` holds the linear that is multiplied above the one that is activated."""
    hidden, ffn = spec.hidden, spec.ffn
    both = tensors.weight(f"{prefix}mlp.up_gate_proj.weight", 2 * ffn, hidden)
    return Layer(
        name,
        spec,
        qkv=linear(tensors, f"{prefix}attention.qkv_proj", 3 * hidden, hidden),
        attention_out=linear(tensors, f"{prefix}attention.o_proj", hidden, hidden),
        attention_norm=norm(tensors, f"{prefix}attn_ln", hidden),
        ffn_up=(row_slice(both, 0, ffn), None),
        ffn_gate=(row_slice(both, ffn, 2 * ffn), None),
        ffn_down=linear(tensors, f"{prefix}mlp.down_proj", hidden, ffn),
        ffn_norm=norm(tensors, f"{prefix}mlp_ln", hidden),
    )


GTE = Family(
    name="new",
    classes="New",
    base="new",
    spec=spec,
    encode=encode,
    classify=ClassifyHead("new.pooler.dense", "classifier"),
    mask=MaskHead("lm_head.dense", "lm_head.norm", "lm_head.decoder", "lm_head.decoder.bias"),
)

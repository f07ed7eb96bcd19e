"""T5's encoder: positions are a bias of attention alone, shared by all layers (Raffel et al., arXiv 1910.10683)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..graph import Array, GraphBuilder, Table
from ..sources.source import Config, Tensors
from .encoder import EncoderSpec
from .family import Family
from .mpnet import relative_bucket
from .transformer import Layer, LayerNames, LayerSpec, norm

_BUCKETS, _MAX_DISTANCE = 32, 128
_FFN = "layer.1.DenseReluDense"
ATTENTION = "SelfAttention"
"""What checkpoints call the attention of a layer."""


def bias_table(attention: str = ATTENTION, kind: str = "relative") -> str:
    """The tensor of the values by distance, which the first layer has for all."""
    return f"encoder.block.0.layer.0.{attention}.{kind}_attention_bias.weight"


def _names(attention: str, gated: bool) -> LayerNames:
    names = LayerNames(
        qkv=(f"layer.0.{attention}.q", f"layer.0.{attention}.k", f"layer.0.{attention}.v"),
        attention_out=f"layer.0.{attention}.o",
        attention_norm="layer.0.layer_norm",
        ffn_up=f"{_FFN}.wi",
        ffn_down=f"{_FFN}.wo",
        ffn_norm="layer.1.layer_norm",
        summary_norm=f"layer.0.{attention}.global_input_layer_norm",
    )
    return replace(names, ffn_gate=f"{_FFN}.wi_0", ffn_up=f"{_FFN}.wi_1") if gated else names


def spec(config: Config) -> EncoderSpec:
    buckets = config.integer("relative_attention_num_buckets", _BUCKETS)
    config.refuse("relative_attention_num_buckets", buckets != _BUCKETS, f"only {_BUCKETS} are supported")
    distance = config.integer("relative_attention_max_distance", _MAX_DISTANCE)
    config.refuse("relative_attention_max_distance", distance != _MAX_DISTANCE, f"only {_MAX_DISTANCE} is supported")
    kind, _, act = config.text("feed_forward_proj", "relu").rpartition("-")
    config.refuse("feed_forward_proj", kind not in ("", "gated"), "supported: an activation, or gated- and one")
    # 'gated-gelu' has always meant the tanh approximation.
    activation = "gelu_new" if (kind, act) == ("gated", "gelu") else act
    layer = LayerSpec(
        hidden=config.integer("d_model", 512),
        heads=config.integer("num_heads", 8),
        head_dim=config.integer("d_kv", 64),
        ffn=config.integer("d_ff", 2048),
        activation=replace(config, values={"feed_forward_proj": activation}).activation("feed_forward_proj"),
        eps=config.number("layer_norm_epsilon", 1e-6),
        norm="pre",
        norm_kind="rms",
        scale=1.0,
        gated=kind == "gated",
        qkv_bias=False,
        out_bias=False,
        ffn_bias=False,
        norm_bias=False,
    )
    return EncoderSpec(
        vocab=config.integer("vocab_size", 32128),
        types=0,
        positions=config.integer("n_positions", 512),
        layer=layer,
        layers=config.integer("num_layers", 6),
        embedding=layer.hidden,
    )


def encode(b: GraphBuilder, spec: EncoderSpec, tensors: Tensors, prefix: str, attention: str = ATTENTION) -> str:
    table = f"{prefix}shared.weight"
    if table not in tensors:  # the encoder's own name for it
        table = f"{prefix}encoder.embed_tokens.weight"
    size = spec.layer.summaries
    keys = spec.max_length + (spec.max_length // size if size else 0)
    distance = np.arange(1 - keys, keys)

    def bias_by(distance: NDArray[np.int64], kind: str) -> tuple[str, Array]:
        buckets = np.asarray(tensors.weight(f"{prefix}{bias_table(attention, kind)}", _BUCKETS, spec.layer.heads))
        return f"encoder.{kind}_bias", np.ascontiguousarray(buckets[relative_bucket(distance)].T)

    bias = bias_by(distance, "relative")
    summary_bias = bias_by(distance // size, "global_relative") if size else None
    x = b.embed([Table("embed.words", tensors.weight(table, spec.vocab, spec.hidden), "ids")])
    names = _names(attention, spec.layer.gated)
    for i in range(spec.layers):
        layer = Layer.read(f"layers.{i}", spec.layer, tensors, f"{prefix}encoder.block.{i}.", names)
        x = layer.append_to(b, x, bias, summary_bias=summary_bias)
    parameters = norm(tensors, f"{prefix}encoder.final_layer_norm", spec.hidden, bias=False)
    return b.norm(x, *parameters, name="final_norm", eps=spec.layer.eps, kind="rms")


T5 = Family(name="t5", classes="T5Encoder", base="transformer", spec=spec, encode=encode, table=bias_table())

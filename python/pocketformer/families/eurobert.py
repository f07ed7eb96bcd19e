"""EuroBERT: the layers of Llama without its mask (arXiv 2503.05500)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..graph import GraphBuilder, Table
from ..sources.source import Config, Tensors
from . import heads
from .encoder import EncoderSpec
from .family import Family
from .rope import read_rope
from .transformer import Layer, LayerNames, LayerSpec, linear, norm

_TABLE = "embed_tokens.weight"
_NAMES = LayerNames(
    qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    attention_out="self_attn.o_proj",
    attention_norm="input_layernorm",
    ffn_gate="mlp.gate_proj",
    ffn_up="mlp.up_proj",
    ffn_down="mlp.down_proj",
    ffn_norm="post_attention_layernorm",
)


@dataclass(frozen=True)
class EuroBertSpec(EncoderSpec):
    """``pooling`` is the classifier's: ``bos``, ``mean``, or ``late``, the mean of every token's logits."""

    pooling: str = "late"


def spec(config: Config) -> EuroBertSpec:
    hidden, count = config.integer("hidden_size", 768), config.integer("num_attention_heads", 12)
    biased = config.flag("attention_bias")
    layer = LayerSpec(
        hidden=hidden,
        heads=count,
        kv_heads=config.integer("num_key_value_heads", count),
        head_dim=config.integer("head_dim", max(hidden // count, 1)),
        ffn=config.integer("intermediate_size", 3072),
        activation=config.activation("hidden_act", "silu"),
        eps=config.number("rms_norm_eps", 1e-5),
        norm="pre",
        norm_kind="rms",
        gated=True,
        qkv_bias=biased,
        out_bias=biased,
        ffn_bias=config.flag("mlp_bias"),
        norm_bias=False,
    )
    pooling = config.text("classifier_pooling", "late")
    config.refuse("classifier_pooling", pooling not in ("bos", "mean", "late"), "supported: 'bos', 'mean' and 'late'")
    return EuroBertSpec(
        vocab=config.integer("vocab_size", 128256),
        types=0,
        positions=config.integer("max_position_embeddings", 8192),
        layer=replace(layer, rope=read_rope(config, 10_000.0, layer.head_width)),
        layers=config.integer("num_hidden_layers", 12),
        embedding=hidden,
        tied=config.flag("tie_word_embeddings", False),
        pooling=pooling,
    )


def encode(b: GraphBuilder, spec: EncoderSpec, tensors: Tensors, prefix: str) -> str:
    x = b.embed([Table("embed.words", tensors.weight(f"{prefix}{_TABLE}", spec.vocab, spec.hidden), "ids")])
    for i in range(spec.layers):
        x = Layer.read(f"layers.{i}", spec.layer, tensors, f"{prefix}layers.{i}.", _NAMES).append_to(b, x)
    return b.norm(
        x, *norm(tensors, f"{prefix}norm", spec.hidden, bias=False), name="final_norm", eps=spec.layer.eps, kind="rms"
    )


def _classify(b: GraphBuilder, x: str, family: Family, spec: EncoderSpec, tensors: Tensors) -> str:
    """The mean of logits is the logits of the mean, so that tokens are pooled before the last linear."""
    assert isinstance(spec, EuroBertSpec)
    if spec.pooling != "late":
        x = b.pool(x, "cls" if spec.pooling == "bos" else "mean")
    x = b.linear(x, *linear(tensors, "dense", spec.hidden, spec.hidden), name="head.dense", activation="gelu")
    return heads.output(b, b.pool(x, "mean") if spec.pooling == "late" else x, "classifier", spec, tensors)


def _fill_mask(b: GraphBuilder, x: str, family: Family, spec: EncoderSpec, tensors: Tensors) -> str:
    return heads.decode(b, b.select(x), "lm_head", None, spec, tensors)


EUROBERT = Family(
    name="eurobert",
    classes="EuroBert",
    base="model",
    spec=spec,
    encode=encode,
    heads={"classify": _classify, "fill_mask": _fill_mask},
    table=_TABLE,
)

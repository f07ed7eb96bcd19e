"""ModernBERT: rotary positions, gated FFN, and most layers looking at their neighbours only (arXiv 2412.13663)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ..errors import CheckpointError
from ..graph import GraphBuilder, Table
from ..sources.source import Config, Tensors
from . import heads
from .encoder import EncoderSpec
from .family import Family
from .rope import Rope, read_rope
from .transformer import Layer, LayerNames, LayerSpec, linear, norm

_TABLE = "embeddings.tok_embeddings.weight"
_NAMES = LayerNames(
    qkv=("attn.Wqkv",),
    attention_out="attn.Wo",
    attention_norm="attn_norm",
    ffn_up="mlp.Wi",
    ffn_down="mlp.Wo",
    ffn_norm="mlp_norm",
)
_GLOBAL, _LOCAL = "full_attention", "sliding_attention"
_OLD_THETA = {_GLOBAL: ("global_rope_theta", 160_000.0), _LOCAL: ("local_rope_theta", 10_000.0)}


@dataclass(frozen=True)
class ModernBertSpec(EncoderSpec):
    """``kinds`` names each layer's attention: that of ``layer``, or of ``local``. The rest concerns heads."""

    local: LayerSpec | None = None
    kinds: tuple[str, ...] = ()
    pooling: str = "cls"
    head_activation: str = "gelu"
    head_bias: bool = False
    decoder_bias: bool = True


def spec(config: Config) -> ModernBertSpec:
    hidden, biased = config.integer("hidden_size", 768), config.flag("attention_bias")
    layer = LayerSpec(
        hidden=hidden,
        heads=config.integer("num_attention_heads", 12),
        ffn=config.integer("intermediate_size", 1152),
        activation=config.activation("hidden_activation"),
        eps=config.number("norm_eps", 1e-5),
        norm="pre",
        gated=True,
        qkv_bias=biased,
        out_bias=biased,
        ffn_bias=config.flag("mlp_bias"),
        norm_bias=config.flag("norm_bias"),
    )
    window = config.integer("local_attention", 128) // 2
    pooling = config.text("classifier_pooling", "cls")
    config.refuse("classifier_pooling", pooling not in ("cls", "mean"), "supported: 'cls' and 'mean'")
    layers = config.integer("num_hidden_layers", 22)
    whole, near = (_rope(config, kind, layer.head_width) for kind in (_GLOBAL, _LOCAL))
    longest = [rope.longest for rope in (whole, near) if rope.longest is not None]
    return ModernBertSpec(
        vocab=config.integer("vocab_size", 50368),
        types=0,
        positions=min([config.integer("max_position_embeddings", 8192), *longest]),
        layer=replace(layer, rope=whole),
        layers=layers,
        embedding=hidden,
        tied=config.flag("tie_word_embeddings", True),
        local=replace(layer, rope=near, window=window),
        kinds=_kinds(config, layers),
        pooling=pooling,
        head_activation=config.activation("classifier_activation"),
        head_bias=config.flag("classifier_bias"),
        decoder_bias=config.flag("decoder_bias", True),
    )


def _kinds(config: Config, layers: int) -> tuple[str, ...]:
    """The attention of every layer: as listed, or global in every nth layer from the first on."""
    listed = config.values.get("layer_types")
    if listed is None:
        every = config.integer("global_attn_every_n_layers", 3)
        return tuple(_LOCAL if i % every else _GLOBAL for i in range(layers))
    if not isinstance(listed, list) or len(listed) != layers or not all(kind in _OLD_THETA for kind in listed):
        raise CheckpointError(
            f"{config.path}: 'layer_types' is {listed!r:.80}; it must name {_GLOBAL} or {_LOCAL} for each of the "
            f"{layers} layers"
        )
    return tuple(listed)


def _rope(config: Config, kind: str, head_dim: int) -> Rope:
    """The rotation of one kind of layers; configs of transformers 4 have a key for the θ of each."""
    config.refuse("rope_scaling", config.values.get("rope_scaling"), "name the scaling of each kind in rope_parameters")
    every: Any = config.values.get("rope_parameters") or {}
    if not isinstance(every, dict) or not set(every) <= set(_OLD_THETA):
        raise CheckpointError(f"{config.path}: 'rope_parameters' is {every!r:.80}; it must hold {_GLOBAL} and {_LOCAL}")
    key, default = _OLD_THETA[kind]
    return read_rope(config, config.number(key, default), head_dim, kind=kind, name=f"rope.{kind}")


def encode(b: GraphBuilder, spec: EncoderSpec, tensors: Tensors, prefix: str) -> str:
    own = _own(spec)
    assert own.local is not None
    x = b.embed([Table("embed.words", tensors.weight(f"{prefix}{_TABLE}", spec.vocab, spec.hidden), "ids")])
    x = _norm(b, x, spec, tensors, f"{prefix}embeddings.norm", "embed.norm")
    for i, kind in enumerate(own.kinds):
        # The first layer's input is normalised already.
        layer = replace(spec.layer if kind == _GLOBAL else own.local, attention_norm=i > 0)
        x = Layer.read(f"layers.{i}", layer, tensors, f"{prefix}layers.{i}.", _NAMES).append_to(b, x)
    return _norm(b, x, spec, tensors, f"{prefix}final_norm", "final_norm")


def _norm(b: GraphBuilder, x: str, spec: EncoderSpec, tensors: Tensors, where: str, name: str) -> str:
    parameters = norm(tensors, where, spec.hidden, bias=spec.layer.norm_bias)
    return b.norm(x, *parameters, name=name, eps=spec.layer.eps)


def _own(spec: EncoderSpec) -> ModernBertSpec:
    assert isinstance(spec, ModernBertSpec)
    return spec


def _predict(b: GraphBuilder, x: str, spec: EncoderSpec, tensors: Tensors) -> str:
    """What stands between the encoder, pooled or not, and the last linear of every task."""
    own = _own(spec)
    dense = linear(tensors, "head.dense", spec.hidden, spec.hidden, bias=own.head_bias)
    x = b.linear(x, *dense, name="head.dense", activation=own.head_activation)
    return _norm(b, x, spec, tensors, "head.norm", "head.norm")


def _classify(b: GraphBuilder, x: str, family: Family, spec: EncoderSpec, tensors: Tensors) -> str:
    x = _predict(b, b.pool(x, _own(spec).pooling), spec, tensors)
    return heads.output(b, x, "classifier", spec, tensors)


def _tag(b: GraphBuilder, x: str, family: Family, spec: EncoderSpec, tensors: Tensors) -> str:
    return heads.output(b, _predict(b, x, spec, tensors), "classifier", spec, tensors)


def _answer(b: GraphBuilder, x: str, family: Family, spec: EncoderSpec, tensors: Tensors) -> str:
    return heads.span_output(b, _predict(b, x, spec, tensors), "classifier", spec, tensors)


def _fill_mask(b: GraphBuilder, x: str, family: Family, spec: EncoderSpec, tensors: Tensors) -> str:
    return _vocabulary(b, b.select(x), spec, tensors)


def _embed_sparse(b: GraphBuilder, x: str, family: Family, spec: EncoderSpec, tensors: Tensors) -> str:
    return b.pool(_vocabulary(b, x, spec, tensors), "max")


def _vocabulary(b: GraphBuilder, x: str, spec: EncoderSpec, tensors: Tensors) -> str:
    x = _predict(b, x, spec, tensors)
    return heads.decode(b, x, "decoder", "decoder.bias" if _own(spec).decoder_bias else None, spec, tensors)


MODERNBERT = Family(
    name="modernbert",
    classes="ModernBert",
    base="model",
    spec=spec,
    encode=encode,
    heads={
        "classify": _classify,
        "tag": _tag,
        "answer": _answer,
        "fill_mask": _fill_mask,
        "embed_sparse": _embed_sparse,
    },
    table=_TABLE,
)

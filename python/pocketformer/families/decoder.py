"""Decoders that predict the next token: a table, layers that look back, a norm and the vocabulary.

Families differ in their config's words and defaults, which make a :class:`DecoderSpec`; tensors have the names of
Hugging Face's Llama (:data:`NAMES`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from ..errors import CheckpointError
from ..graph import GraphBuilder, Table
from ..lazy import Float32, lazy
from ..sources.source import Config, Tensors
from .transformer import Layer, LayerNames, LayerSpec, norm

HEAD = "lm_head.weight"
MOST_POSITIONS = 1 << 17
"""What angles are exact for; a config that promises more is cut to it."""
NAMES = LayerNames(
    qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    attention_out="self_attn.o_proj",
    attention_norm="input_layernorm",
    ffn_up="mlp.up_proj",
    ffn_gate="mlp.gate_proj",
    ffn_down="mlp.down_proj",
    ffn_norm="post_attention_layernorm",
    qk_norms=("self_attn.q_norm", "self_attn.k_norm"),
)


@dataclass(frozen=True)
class DecoderSpec:
    """``layers`` one by one; ``tied`` says that the word table is the head; ``scale`` multiplies its rows.

    ``cap`` c makes c·tanh(x/c) of every logit x, unless it is 0.
    """

    vocab: int
    positions: int
    layers: tuple[LayerSpec, ...]
    tied: bool
    scale: float = 1.0
    cap: float = 0.0


@dataclass(frozen=True)
class DecoderFamily:
    """``name`` is the ``model_type``, ``architecture`` the class of transformers that predicts tokens.

    ``classes`` is what the names of its embedding and classifying classes begin with. ``base`` prefixes all tensors but
    those of heads: the ``words``, the table of ``positions`` where there is one, the ``layers``, whose linears are
    ``transposed`` where they are stored as [k, n], and ``last_norm``.
    """

    name: str
    architecture: str
    classes: str
    spec: Callable[[Config], DecoderSpec]
    names: LayerNames = NAMES
    base: str = "model"
    words: str = "embed_tokens.weight"
    positions: str | None = None
    layers: str = "layers."
    last_norm: str = "norm"
    transposed: bool = False


def layer_spec(config: Config, *, theta: float = 10_000.0) -> LayerSpec:
    """What all of these families' configs say alike."""
    hidden, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    layer = LayerSpec(
        hidden=hidden,
        heads=heads,
        kv_heads=config.integer("num_key_value_heads", heads),
        head_dim=config.integer("head_dim", max(hidden // heads, 1)),
        ffn=config.integer("intermediate_size"),
        activation=config.activation("hidden_act", "silu"),
        eps=config.number("rms_norm_eps", 1e-6),
        norm="pre",
        norm_kind="rms",
        norm_bias=False,
        causal=True,
        kept=True,
        gated=True,
        qkv_bias=False,
        out_bias=False,
        ffn_bias=False,
    )
    return layer


def decoder_spec(
    config: Config, layers: tuple[LayerSpec, ...], *, tied: bool, scale: float = 1.0, cap: float = 0.0
) -> DecoderSpec:
    longest = [layer.rope.longest for layer in layers if layer.rope is not None and layer.rope.longest is not None]
    positions = min(config.integer("max_position_embeddings"), MOST_POSITIONS, *longest)
    tied = config.flag("tie_word_embeddings", tied)
    return DecoderSpec(config.integer("vocab_size"), positions, layers, tied, scale, cap)


def with_windows(config: Config, layer: LayerSpec, window: int | None, kinds: tuple[str, ...]) -> tuple[LayerSpec, ...]:
    """A layer for each of ``kinds``; ``sliding_attention`` sees ``window`` tokens, its own among them."""
    if window is not None and window < 1:
        raise CheckpointError(f"{config.path}: 'sliding_window' is {window}; it must be at least 1")
    local = layer if window is None else replace(layer, window=window - 1)
    return tuple(local if kind == SLIDING else layer for kind in kinds)


FULL, SLIDING = "full_attention", "sliding_attention"


def layer_kinds(config: Config, default: tuple[str, ...]) -> tuple[str, ...]:
    listed = config.values.get("layer_types")
    if listed is None:
        return default
    if not isinstance(listed, list) or len(listed) != len(default) or any(k not in (FULL, SLIDING) for k in listed):
        raise CheckpointError(
            f"{config.path}: 'layer_types' is {listed!r:.80}; it must name {FULL} or {SLIDING} for each of the "
            f"{len(default)} layers"
        )
    return tuple(listed)


def generator(family: DecoderFamily, config: Config, tensors: Tensors) -> tuple[GraphBuilder, str]:
    """The graph from ``ids`` to logits [selected tokens, vocabulary] of the token after each."""
    spec = family.spec(config)
    first = spec.layers[0]
    config.refuse("use_bidirectional_attention", not first.causal, "a model that sees later tokens predicts none")
    b = GraphBuilder.text(spec.vocab, 0, spec.positions)
    x = final_norm(b, b.select(layers(b, family, spec, tensors)), family, spec, tensors)
    if spec.tied:
        logits = b.linear(x, b.params["embed.words.weight"], name="embed.words")
    elif HEAD in tensors:
        logits = b.linear(x, tensors.weight(HEAD, spec.vocab, first.hidden), name="head")
    else:
        raise CheckpointError(
            f"tensor '{HEAD}' is missing, and config.json says 'tie_word_embeddings': false, so that the word table "
            "does not stand for it; save the complete model with save_pretrained"
        )
    return b, b.softcap(logits, spec.cap) if spec.cap else logits


def layers(b: GraphBuilder, family: DecoderFamily, spec: DecoderSpec, tensors: Tensors) -> str:
    """Appends the tables and the layers; returns the last one's rows, one a token."""
    hidden = spec.layers[0].hidden
    tables = [Table("embed.words", tensors.weight(f"{family.base}.{family.words}", spec.vocab, hidden), "ids")]
    if family.positions is not None:
        rows = tensors.weight(f"{family.base}.{family.positions}", spec.positions, hidden)
        tables.append(Table("embed.positions", rows, "positions"))
    x = b.embed(tables, scale=spec.scale)
    read = Transposed(tensors) if family.transposed else tensors
    for i, layer in enumerate(spec.layers):
        prefix = f"{family.base}.{family.layers}{i}."
        x = Layer.read(f"layers.{i}", layer, read, prefix, family.names).append_to(b, x)
    return x


def final_norm(b: GraphBuilder, x: str, family: DecoderFamily, spec: DecoderSpec, tensors: Tensors) -> str:
    first = spec.layers[0]
    where = f"{family.base}.{family.last_norm}"
    weight, bias = norm(tensors, where, first.hidden, bias=first.norm_bias, offset=first.norm_offset)
    return b.norm(x, weight, bias, name="norm", eps=first.eps, kind=first.norm_kind)


@dataclass(frozen=True)
class Transposed:
    """Tensors whose matrices are stored as [k, n]."""

    stored: Tensors

    def __contains__(self, name: str) -> bool:
        return name in self.stored

    def shape(self, name: str) -> tuple[int, ...]:
        return self.stored.shape(name)[::-1]

    def weight(self, name: str, *shape: int) -> Float32:
        stored = self.stored.weight(name, *shape[::-1])
        return lazy(shape, lambda begin, end: np.ascontiguousarray(np.asarray(stored)[:, begin:end].T))

    def vector(self, name: str, length: int) -> Float32:
        return self.stored.vector(name, length)

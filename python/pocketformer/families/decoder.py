"""Decoders that predict the next token: a table, layers that look back, a norm and the vocabulary.

Families differ in their config's words and defaults, which make a :class:`DecoderSpec`; tensors have the names of
Hugging Face's Llama (:data:`NAMES`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from ..errors import CheckpointError
from ..graph import GraphBuilder, Table
from ..sources.source import Config, Tensors
from .transformer import Layer, LayerNames, LayerSpec, norm

BASE, WORD_TABLE, HEAD = "model", "embed_tokens.weight", "lm_head.weight"
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
    """``layers`` one by one; ``tied`` says that the word table is the head; ``scale`` multiplies its rows."""

    vocab: int
    positions: int
    layers: tuple[LayerSpec, ...]
    tied: bool
    scale: float = 1.0


@dataclass(frozen=True)
class DecoderFamily:
    """``name`` is the ``model_type``, ``architecture`` the class of transformers that predicts tokens.

    ``classes`` is what the names of its embedding and classifying classes begin with.
    """

    name: str
    architecture: str
    classes: str
    spec: Callable[[Config], DecoderSpec]
    names: LayerNames = NAMES


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


def decoder_spec(config: Config, layers: tuple[LayerSpec, ...], *, tied: bool, scale: float = 1.0) -> DecoderSpec:
    positions = min(config.integer("max_position_embeddings"), MOST_POSITIONS)
    tied = config.flag("tie_word_embeddings", tied)
    return DecoderSpec(config.integer("vocab_size"), positions, layers, tied, scale)


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
    x = final_norm(b, b.select(layers(b, family, spec, tensors)), spec, tensors)
    words = b.params["embed.words.weight"]
    if spec.tied:
        return b, b.linear(x, words, name="embed.words")
    if HEAD not in tensors:
        raise CheckpointError(
            f"tensor '{HEAD}' is missing, and config.json says 'tie_word_embeddings': false, so that the word table "
            "does not stand for it; save the complete model with save_pretrained"
        )
    return b, b.linear(x, tensors.weight(HEAD, spec.vocab, first.hidden), name="head")


def layers(b: GraphBuilder, family: DecoderFamily, spec: DecoderSpec, tensors: Tensors) -> str:
    """Appends the table and the layers; returns the last one's rows, one a token."""
    words = tensors.weight(f"{BASE}.{WORD_TABLE}", spec.vocab, spec.layers[0].hidden)
    x = b.embed([Table("embed.words", words, "ids")], scale=spec.scale)
    for i, layer in enumerate(spec.layers):
        x = Layer.read(f"layers.{i}", layer, tensors, f"{BASE}.layers.{i}.", family.names).append_to(b, x)
    return x


def final_norm(b: GraphBuilder, x: str, spec: DecoderSpec, tensors: Tensors) -> str:
    first = spec.layers[0]
    scale, _ = norm(tensors, f"{BASE}.norm", first.hidden, bias=False, offset=first.norm_offset)
    return b.norm(x, scale, name="norm", eps=first.eps, kind="rms")

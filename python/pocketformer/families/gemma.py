"""Gemma 3, text (arXiv 2503.19786): norms on both sides of a sublayer, most layers with a window and their own θ."""

from __future__ import annotations

from dataclasses import replace

from ..sources.source import Config
from .decoder import FULL, NAMES, SLIDING, DecoderFamily, DecoderSpec, decoder_spec, layer_kinds, layer_spec
from .rope import Rope, frequencies, read_rope

_NAMES = replace(
    NAMES,
    ffn_norm="pre_feedforward_layernorm",
    after=("post_attention_layernorm", "post_feedforward_layernorm"),
)


def _gemma3(config: Config) -> DecoderSpec:
    values = {"head_dim": 256, "hidden_act": config.values.get("hidden_activation") or "gelu_pytorch_tanh"}
    config = replace(config, values={**values, **config.values})
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        config.refuse(key, config.values.get(key) is not None, "capped logits are not supported")
    biased = config.flag("attention_bias")
    # EmbeddingGemma's layers see all tokens, or half of the window to each side.
    both_sides = config.flag("use_bidirectional_attention")
    window = config.integer("sliding_window", 4096)
    reach = window // 2 if both_sides else window - 1
    layer = replace(
        layer_spec(config),
        norm="sandwich",
        norm_offset=1.0,
        qk_norm=True,
        scale=config.number("query_pre_attn_scalar", 256.0) ** -0.5,
        qkv_bias=biased,
        out_bias=biased,
        causal=not both_sides,
        kept=not both_sides,
    )
    whole = replace(layer, rope=read_rope(config, 1e6, layer.head_width, kind=FULL, name="rope.full"))
    local = replace(layer, rope=_local(config, layer.head_width), window=reach)
    count, every = config.integer("num_hidden_layers"), config.integer("sliding_window_pattern", 6)
    kinds = layer_kinds(config, tuple(SLIDING if (i + 1) % every else FULL for i in range(count)))
    layers = tuple(local if kind == SLIDING else whole for kind in kinds)
    return decoder_spec(config, layers, tied=True, scale=config.integer("hidden_size") ** 0.5)


def _local(config: Config, head_dim: int) -> Rope:
    """That of the layers with a window, which older configs never scale."""
    name = "rope.local"
    if config.values.get("rope_parameters") is None:
        return Rope(frequencies(config.number("rope_local_base_freq", 1e4), head_dim), name)
    return read_rope(config, 1e4, head_dim, kind=SLIDING, name=name)


GEMMA3 = DecoderFamily("gemma3_text", "Gemma3ForCausalLM", "Gemma3Text", _gemma3, _NAMES)

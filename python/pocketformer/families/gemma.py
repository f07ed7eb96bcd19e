"""Gemma 2 (arXiv 2408.00118) and the text of Gemma 3 (arXiv 2503.19786): norms on both sides of a sublayer, many layers
with a window; scores and logits with a cap in the one, a θ for each kind of layers in the other.
"""

from __future__ import annotations

from dataclasses import replace

from ..errors import CheckpointError
from ..sources.source import Config
from .decoder import (
    FULL,
    NAMES,
    SLIDING,
    DecoderFamily,
    DecoderSpec,
    decoder_spec,
    layer_kinds,
    layer_spec,
    with_windows,
)
from .rope import Rope, frequencies, read_rope
from .transformer import LayerSpec

_NAMES = replace(
    NAMES,
    ffn_norm="pre_feedforward_layernorm",
    after=("post_attention_layernorm", "post_feedforward_layernorm"),
)


def _with_defaults(config: Config) -> Config:
    values = {"head_dim": 256, "hidden_act": config.values.get("hidden_activation") or "gelu_pytorch_tanh"}
    return replace(config, values={**values, **config.values})


def _cap(config: Config, key: str, default: float) -> float:
    """0 where the config says that there is none."""
    if key in config.values and config.values[key] is None:
        return 0.0
    cap = config.number(key, default)
    if cap == 0 and config.values.get(key) is not None:
        raise CheckpointError(f"{config.path}: {key!r} is 0; it must be above 0, or null for no cap")
    return cap


def _gemma2(config: Config) -> DecoderSpec:
    config = _with_defaults(config)
    config.refuse("use_bidirectional_attention", config.flag("use_bidirectional_attention"), "only decoders are")
    layer = _sandwich(config)
    layer = replace(layer, softcap=_cap(config, "attn_logit_softcapping", 50.0))
    layer = replace(layer, rope=read_rope(config, 1e4, layer.head_width))
    said = config.values.get("sliding_window", 4096)
    window = None if said is None else config.integer("sliding_window", 4096)
    count = config.integer("num_hidden_layers")
    kinds = layer_kinds(config, tuple(FULL if i % 2 else SLIDING for i in range(count)))
    return decoder_spec(
        config,
        with_windows(config, layer, window, kinds),
        tied=True,
        scale=config.integer("hidden_size") ** 0.5,
        cap=_cap(config, "final_logit_softcapping", 30.0),
    )


def _sandwich(config: Config) -> LayerSpec:
    """What both generations share."""
    biased = config.flag("attention_bias")
    return replace(
        layer_spec(config),
        norm="sandwich",
        norm_offset=1.0,
        scale=config.number("query_pre_attn_scalar", 256.0) ** -0.5,
        qkv_bias=biased,
        out_bias=biased,
    )


def _gemma3(config: Config) -> DecoderSpec:
    config = _with_defaults(config)
    capped = config.values.get("attn_logit_softcapping")
    config.refuse("attn_logit_softcapping", capped is not None, "the scores of Gemma 3 have no cap in transformers")
    # EmbeddingGemma's layers see all tokens, or half of the window to each side.
    both_sides = config.flag("use_bidirectional_attention")
    window = config.integer("sliding_window", 4096)
    reach = window // 2 if both_sides else window - 1
    layer = replace(
        _sandwich(config),
        qk_norm=True,
        causal=not both_sides,
        kept=not both_sides,
    )
    whole = replace(layer, rope=read_rope(config, 1e6, layer.head_width, kind=FULL, name="rope.full"))
    local = replace(layer, rope=_local(config, layer.head_width), window=reach)
    count, every = config.integer("num_hidden_layers"), config.integer("sliding_window_pattern", 6)
    kinds = layer_kinds(config, tuple(SLIDING if (i + 1) % every else FULL for i in range(count)))
    layers = tuple(local if kind == SLIDING else whole for kind in kinds)
    scale, cap = config.integer("hidden_size") ** 0.5, _cap(config, "final_logit_softcapping", 0.0)
    return decoder_spec(config, layers, tied=True, scale=scale, cap=cap)


def _local(config: Config, head_dim: int) -> Rope:
    """That of the layers with a window, which older configs never scale."""
    name = "rope.local"
    if config.values.get("rope_parameters") is None:
        return Rope(frequencies(config.number("rope_local_base_freq", 1e4), head_dim), name)
    return read_rope(config, 1e4, head_dim, kind=SLIDING, name=name)


GEMMA2 = DecoderFamily("gemma2", "Gemma2ForCausalLM", "Gemma2", _gemma2, _NAMES)
GEMMA3 = DecoderFamily("gemma3_text", "Gemma3ForCausalLM", "Gemma3Text", _gemma3, _NAMES)

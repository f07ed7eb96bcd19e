"""GPT-2 (Radford et al., 2019): learned positions, layer norms with biases, linears that are stored as [k, n]."""

from __future__ import annotations

from dataclasses import replace

from ..sources.source import Config
from .decoder import DecoderFamily, DecoderSpec, decoder_spec
from .transformer import LayerNames, LayerSpec

_NAMES = LayerNames(
    qkv=("attn.c_attn",),
    attention_out="attn.c_proj",
    attention_norm="ln_1",
    ffn_up="mlp.c_fc",
    ffn_down="mlp.c_proj",
    ffn_norm="ln_2",
)
_OWN_KEYS = {
    "hidden_size": "n_embd",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
    "max_position_embeddings": "n_positions",
}


def _gpt2(config: Config) -> DecoderSpec:
    own = config.renamed(_OWN_KEYS)
    config.refuse("add_cross_attention", config.flag("add_cross_attention"), "only decoders alone are")
    hidden = own.integer("hidden_size", 768)
    layer = LayerSpec(
        hidden=hidden,
        heads=own.integer("num_attention_heads", 12),
        ffn=own.integer("n_inner", 4 * hidden),
        activation=own.activation("activation_function", "gelu_new"),
        eps=own.number("layer_norm_epsilon", 1e-5),
        norm="pre",
        causal=True,
        kept=True,
    )
    scale = layer.head_width**-0.5 if config.flag("scale_attn_weights", True) else 1.0
    by_depth = config.flag("scale_attn_by_inverse_layer_idx")
    layers = (
        replace(layer, scale=scale / (i + 1 if by_depth else 1)) for i in range(own.integer("num_hidden_layers", 12))
    )
    own = replace(own, values={**own.values, "max_position_embeddings": own.integer("max_position_embeddings", 1024)})
    return decoder_spec(own, tuple(layers), tied=True)


GPT2 = DecoderFamily(
    "gpt2",
    "GPT2LMHeadModel",
    "GPT2",
    _gpt2,
    _NAMES,
    base="transformer",
    words="wte.weight",
    positions="wpe.weight",
    layers="h.",
    last_norm="ln_f",
    transposed=True,
)

"""Llama 2 and 3, SmolLM and SmolLM2, and Mistral: RMS norms, rotary positions, gated FFN, grouped queries.

Touvron et al. (arXiv 2307.09288), Jiang et al. (arXiv 2310.06825).
"""

from __future__ import annotations

from dataclasses import replace

from ..sources.source import Config
from .decoder import SLIDING, DecoderFamily, DecoderSpec, decoder_spec, layer_spec, with_windows
from .rope import read_rope


def _llama(config: Config) -> DecoderSpec:
    layer, biased = layer_spec(config), config.flag("attention_bias")
    rope = read_rope(config, 10_000.0, layer.head_width)
    layer = replace(layer, rope=rope, qkv_bias=biased, out_bias=biased, ffn_bias=config.flag("mlp_bias"))
    return decoder_spec(config, (layer,) * config.integer("num_hidden_layers"), tied=False)


def _mistral(config: Config) -> DecoderSpec:
    layer = layer_spec(config)
    layer = replace(layer, rope=read_rope(config, 10_000.0, layer.head_width))
    # A config without the key has the window of the first Mistral; null says that there is none.
    said = config.values.get("sliding_window", 4096)
    window = None if said is None else config.integer("sliding_window", 4096)
    kinds = (SLIDING,) * config.integer("num_hidden_layers")
    return decoder_spec(config, with_windows(config, layer, window, kinds), tied=False)


LLAMA = DecoderFamily("llama", "LlamaForCausalLM", "Llama", _llama)
MISTRAL = DecoderFamily("mistral", "MistralForCausalLM", "Mistral", _mistral)

"""Qwen 2 (arXiv 2407.10671), whose queries, keys and values have biases, and 3 (arXiv 2505.09388), with QK norm."""

from __future__ import annotations

from dataclasses import replace

from ..sources.source import Config
from .decoder import FULL, SLIDING, DecoderFamily, DecoderSpec, decoder_spec, layer_kinds, layer_spec, with_windows
from .rope import read_rope
from .transformer import LayerSpec


def _qwen2(config: Config) -> DecoderSpec:
    return _spec(config, replace(layer_spec(config), qkv_bias=True))


def _qwen3(config: Config) -> DecoderSpec:
    config = replace(config, values={"head_dim": 128, **config.values})
    biased = config.flag("attention_bias")
    return _spec(config, replace(layer_spec(config), qk_norm=True, qkv_bias=biased, out_bias=biased))


def _spec(config: Config, layer: LayerSpec) -> DecoderSpec:
    layer = replace(layer, rope=read_rope(config, 10_000.0, layer.head_width))
    sliding = config.flag("use_sliding_window")
    window = config.integer("sliding_window", 4096) if sliding else None
    count, whole = config.integer("num_hidden_layers"), config.integer("max_window_layers", 28, minimum=0)
    kinds = layer_kinds(config, tuple(SLIDING if sliding and i >= whole else FULL for i in range(count)))
    return decoder_spec(config, with_windows(config, layer, window, kinds), tied=False)


QWEN2 = DecoderFamily("qwen2", "Qwen2ForCausalLM", "Qwen2", _qwen2)
QWEN3 = DecoderFamily("qwen3", "Qwen3ForCausalLM", "Qwen3", _qwen3)

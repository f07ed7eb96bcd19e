"""Phi-3 and Phi-4 mini (arXiv 2404.14219): Llama's layers, whose matrices lie below each other in fewer tensors."""

from __future__ import annotations

from dataclasses import replace

from ..sources.source import Config
from .decoder import NAMES, SLIDING, DecoderFamily, DecoderSpec, decoder_spec, layer_spec, with_windows
from .rope import read_rope

_NAMES = replace(NAMES, qkv=("self_attn.qkv_proj",), ffn_gate=None, ffn_up="mlp.gate_up_proj")


def _phi3(config: Config) -> DecoderSpec:
    config = replace(config, values={"original_max_position_embeddings": 4096, **config.values})
    layer = replace(layer_spec(config), eps=config.number("rms_norm_eps", 1e-5))
    scaling = config.values.get("rope_parameters") or config.values.get("rope_scaling") or {}
    if isinstance(scaling, dict) and (scaling.get("rope_type") or scaling.get("type")) in ("su", "yarn"):
        # What transformers calls longrope today.
        renamed = {**scaling, "rope_type": "longrope"}
        key = "rope_parameters" if config.values.get("rope_parameters") else "rope_scaling"
        config = replace(config, values={**config.values, key: renamed})
    layer = replace(layer, rope=read_rope(config, 10_000.0, layer.head_width, partial=True))
    said = config.values.get("sliding_window")
    window = None if said is None else config.integer("sliding_window")
    kinds = (SLIDING,) * config.integer("num_hidden_layers")
    return decoder_spec(config, with_windows(config, layer, window, kinds), tied=False)


PHI3 = DecoderFamily("phi3", "Phi3ForCausalLM", "Phi3", _phi3, _NAMES)

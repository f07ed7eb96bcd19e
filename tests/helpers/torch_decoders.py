"""Small random decoders of every family, with weights that make mistakes visible, saved as Hugging Face folders."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

VOCAB = 97
_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 72,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_SLIDING = ["sliding_attention", "full_attention", "sliding_attention"]


def _rope(kind: str, **values: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 1000.0, **values}}


_LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {**_rope("llama3", **_LLAMA3), "head_dim": 8}),
    "llama-biased": (
        "Llama",
        {
            **_rope("linear", factor=4.0),
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": True,
            "num_key_value_heads": 1,
        },
    ),
    "llama-yarn": ("Llama", {**_rope("yarn", factor=4.0, original_max_position_embeddings=64), "head_dim": 32}),
    "mistral": ("Mistral", {"sliding_window": 9, "head_dim": 16, **_rope("default")}),
    "qwen2": (
        "Qwen2",
        {
            "use_sliding_window": True,
            "sliding_window": 7,
            "max_window_layers": 1,
            "num_key_value_heads": 3,
            **_rope("default"),
        },
    ),
    "qwen3": ("Qwen3", {"head_dim": 16, "tie_word_embeddings": True, **_rope("default")}),
    "gemma3_text": (
        "Gemma3",
        {
            "head_dim": 16,
            "query_pre_attn_scalar": 24,
            "sliding_window": 11,
            "layer_types": _SLIDING,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            },
        },
    ),
}


_GPT2 = {"n_inner": 72, "layer_norm_epsilon": 1e-2, "eos_token_id": 2}
_LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.3, 1.2, 1.7, 2.5],
    "long_factor": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
    "rope_theta": 1000.0,
    "partial_rotary_factor": 0.75,
}
LONGROPE = {
    "original_max_position_embeddings": 64,
    "rope_parameters": _LONGROPE,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
}
"""Of Phi-3: longer texts than 64 tokens turn otherwise."""
CASES |= {
    "llama-dynamic": ("Llama", {**_rope("dynamic", factor=2.0), "max_position_embeddings": 90}),
    "gpt2": ("GPT2", _GPT2),
    "gpt2-by-depth": ("GPT2", {**_GPT2, "scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True}),
    "phi3": ("Phi3", {"sliding_window": 9, "num_attention_heads": 3, "num_key_value_heads": 1, **_rope("default")}),
    "phi3-partial": ("Phi3", {**_rope("default", partial_rotary_factor=0.5), "num_key_value_heads": 3}),
    "gemma2": (
        "Gemma2",
        {
            "head_dim": 16,
            "query_pre_attn_scalar": 24,
            "sliding_window": 11,
            "attn_logit_softcapping": 3.0,
            "final_logit_softcapping": 2.0,
            **_rope("default"),
        },
    ),
    "gemma3_text-capped": (
        "Gemma3",
        {
            "head_dim": 16,
            "sliding_window": 11,
            "layer_types": _SLIDING,
            "final_logit_softcapping": 3.0,
        },
    ),
}


def fill(model: torch.nn.Module, seed: int) -> None:
    """As ``torch_models.make_adversarial`` does for encoders: logits of attention vary by about 2.5 here too."""
    generator = torch.Generator().manual_seed(seed)
    gemma, config = "Gemma" in type(model).__name__, model.config
    normed = any("q_norm" in name for name, _ in model.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name or ".ln_" in name:
                centre = 1.6 if ".q_norm" in name or ".k_norm" in name else 1.0
                parameter.copy_((centre - 1 if gemma else centre) + 0.3 * noise.clamp(-2, 2))
                if name.endswith("bias"):
                    parameter.copy_(0.3 * noise)
            elif name.endswith("bias"):
                parameter.copy_(0.3 * noise)
            elif "embed" in name or ".wte" in name or ".wpe" in name:
                parameter.copy_(noise / (config.hidden_size**0.5 if gemma else 1))
            else:
                sharp, transposed = 1.5, ".h." in name  # queries and keys; GPT-2 stores its linears as [k, n]
                gain = sharp if not normed and ("q_proj" in name or "k_proj" in name) else 0.8
                value = gain * noise / parameter.shape[0 if transposed else -1] ** 0.5
                if "qkv_proj" in name:
                    value[: -config.num_key_value_heads * (config.hidden_size // config.num_attention_heads)] *= (
                        sharp / 0.8
                    )
                if "c_attn" in name:
                    value[:, : 2 * config.hidden_size] *= sharp / 0.8
                parameter.copy_(value)


def build(case: str, folder: Path, seed: int = 0, suffix: str = "ForCausalLM", **options: Any) -> Any:
    """A random model, saved to ``folder``; ``suffix`` is that of its class."""
    prefix, sizes = CASES[case]
    if prefix == "Gemma3" and suffix != "ForCausalLM":
        prefix = "Gemma3Text"
    if prefix == "GPT2" and suffix == "ForCausalLM":
        suffix = "LMHeadModel"
    model_class = getattr(transformers, prefix + suffix)
    config_class = model_class.config_class
    config = config_class(**{**_SIZES, **sizes, **options})
    config._attn_implementation = "eager"
    model = model_class(config).eval()
    fill(model, seed)
    model.save_pretrained(folder)
    return model


def change_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@torch.no_grad()
def torch_logits(model: Any, ids: Sequence[int] | np.ndarray) -> np.ndarray:
    return np.asarray(model(input_ids=torch.tensor(np.asarray(ids)[None])).logits[0])


def add_tokenizer(folder: Path) -> Any:
    """A byte-level tokenizer with a beginning token, an end token and one token for each byte: 260 in all."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    special = ["<pad>", "<s>", "</s>", "<end>"]
    pieces = special + sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    return tokenizer


BYTES = 260
"""Tokens of :func:`add_tokenizer`."""

"""generation_config.json: what changes a text is honoured or refused by its name; nothing is passed over in silence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig

from pocketformer.errors import UnsupportedModelError
from pocketformer.sources import generation
from pocketformer.sources.config import Config
from pocketformer.sources.generation import generation_settings

HONOURED = {"do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "eos_token_id"}
WITHOUT_EFFECT = {
    # The caller says how long a text may be.
    *("max_length", "max_new_tokens", "max_time"),
    # Of beams, and of several texts at once, which nothing asks for without num_beams.
    *("early_stopping", "length_penalty", "num_return_sequences", "low_memory"),
    # How it is computed, and what beside the text is returned.
    *("use_mtp", "use_cache", "cache_implementation", "cache_config", "max_cache_len", "prefill_chunk_size"),
    *("compile_config", "disable_compile", "continuous_batching_config", "remove_invalid_values"),
    *("output_attentions", "output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate"),
    "renormalize_logits",
    # Speculation, which changes no text.
    *("is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold"),
    *("prompt_lookup_num_tokens", "max_matching_ngram_size", "assistant_early_exit", "assistant_lookbehind"),
    *("target_lookbehind", "assistant_ensemble_weight", "speculation_type"),
    # The tokenizer's post-processor begins texts; nothing is padded; decoders have no start token of their own.
    *("bos_token_id", "pad_token_id", "decoder_start_token_id"),
    *("_from_model_config", "transformers_version"),
}


def settings(folder: Path, **values: Any) -> dict[str, Any]:
    (folder / "generation_config.json").write_text(json.dumps(values))
    sampling: dict[str, Any] = generation_settings(folder, Config({}, folder / "config.json"), 100)["sampling"]
    return sampling


def test_every_setting_of_transformers_is_known() -> None:
    refused = {*generation._REFUSED, *generation._DRAWN}
    assert set(vars(GenerationConfig())) - HONOURED - WITHOUT_EFFECT == refused & set(vars(GenerationConfig()))
    assert not refused & (HONOURED | WITHOUT_EFFECT)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("no_repeat_ngram_size", 3),
        ("bad_words_ids", [[5]]),
        ("suppress_tokens", [5, 6]),
        ("begin_suppress_tokens", [5]),
        ("forced_eos_token_id", 0),
        ("min_new_tokens", 4),
        ("stop_strings", ["."]),
        ("sequence_bias", [[[5], -1.0]]),
        ("guidance_scale", 1.5),
        ("num_beams", 4),
        ("penalty_alpha", 0.6),
        ("encoder_repetition_penalty", 1.2),
        ("exponential_decay_length_penalty", [5, 1.1]),
        ("token_healing", True),
    ],
)
@pytest.mark.parametrize("do_sample", [False, True])
def test_what_would_change_a_text_is_refused(tmp_path: Path, key: str, value: Any, do_sample: bool) -> None:
    with pytest.raises(UnsupportedModelError, match=f"'{key}' is .*; it would change texts and is not honoured: remov"):
        settings(tmp_path, do_sample=do_sample, **{key: value})


@pytest.mark.parametrize(("key", "value"), [("typical_p", 0.9), ("epsilon_cutoff", 3e-4), ("eta_cutoff", 3e-4)])
def test_what_changes_drawn_texts_is_refused_where_they_are_drawn(tmp_path: Path, key: str, value: float) -> None:
    with pytest.raises(UnsupportedModelError, match=f"'{key}' is {value}"):
        settings(tmp_path, do_sample=True, **{key: value})
    assert settings(tmp_path, **{key: value}) == {}


def test_what_changes_nothing_is_not(tmp_path: Path) -> None:
    neutral = {**generation._REFUSED, **generation._DRAWN, "bad_words_ids": [], "token_healing": False}
    assert settings(tmp_path, do_sample=True, **neutral, max_length=20) == {"temperature": 1.0, "top_k": 50}


def test_a_penalty_holds_for_the_likeliest_token_too(tmp_path: Path) -> None:
    """As in transformers; the other settings are of drawing alone."""
    assert settings(tmp_path, repetition_penalty=1.1, temperature=0.6, top_k=5) == {"repetition_penalty": 1.1}
    assert settings(tmp_path, do_sample=True, repetition_penalty=1.1, top_k=5) == {
        "repetition_penalty": 1.1,
        "temperature": 1.0,
        "top_k": 5,
    }

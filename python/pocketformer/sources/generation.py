"""How a decoder is meant to be used: where it stops, how it samples, and what a conversation looks like."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from .config import Config, read_json

_NEUTRAL = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
_DRAWN = {"typical_p": 1, "epsilon_cutoff": 0, "eta_cutoff": 0, "top_h": None}
"""Settings of drawing that would change texts here and are not honoured, with what changes nothing."""
_REFUSED = {
    **dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "min_length", "min_new_tokens"), 0),
    **dict.fromkeys(("encoder_repetition_penalty", "guidance_scale", "num_beams", "num_beam_groups"), 1),
    **dict.fromkeys(("penalty_alpha", "diversity_penalty"), 0),
    **dict.fromkeys(("bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "sequence_bias", "stop_strings")),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id", "exponential_decay_length_penalty", "dola_layers")),
    **dict.fromkeys(("watermarking_config", "constraints", "force_words_ids", "token_healing")),
}
"""The same, of settings that apply to the likeliest token too. What is in neither changes no text."""


def generation_settings(root: Path, config: Config, vocab: int) -> dict[str, Any]:
    """``end_token_ids``, ``sampling``, ``chat_template`` and ``special_tokens`` of a folder: docs/format.md.

    ``generation_config.json`` goes before ``config.json``. Sampling has no temperature where ``do_sample`` is not set:
    the likeliest token is meant.

    Raises:
        CheckpointError: a file is damaged, or names a token that the vocabulary lacks.
        UnsupportedModelError: a setting would change texts and is not honoured.
    """
    path = root / "generation_config.json"
    own = Config(read_json(path), path) if path.is_file() else Config({}, path)
    ends = own if own.values.get("eos_token_id") is not None else config
    _refuse(own)
    sampling: dict[str, Any] = {}
    if own.values.get("repetition_penalty") is not None:
        sampling["repetition_penalty"] = own.number("repetition_penalty", 1.0)
    if own.flag("do_sample"):
        sampling |= {
            key: own.number(key, neutral) for key, neutral in _NEUTRAL.items() if own.values.get(key) is not None
        }
        sampling.setdefault("temperature", 1.0)
        sampling.setdefault("top_k", 50)  # the default of transformers
        sampling["top_k"] = int(sampling["top_k"])
    return {
        "end_token_ids": _tokens(ends, "eos_token_id", vocab),
        "sampling": sampling,
        "chat_template": _chat_template(root),
        "special_tokens": _special_tokens(root),
    }


def _refuse(config: Config) -> None:
    for key, neutral in {**_REFUSED, **(_DRAWN if config.flag("do_sample") else {})}.items():
        value = config.values.get(key)
        unset = value is None or value is False or value in ([], {}) or (neutral is not None and value == neutral)
        config.refuse(key, not unset, "it would change texts and is not honoured: remove it to go without")


def _tokens(config: Config, key: str, vocab: int) -> list[int]:
    value = config.values.get(key)
    listed = value if isinstance(value, list) else [] if value is None else [value]
    for token in listed:
        if type(token) is not int or not 0 <= token < vocab:
            raise CheckpointError(f"{config.path}: {key!r} is {value!r}; it must name tokens in 0…{vocab - 1}")
    return list(dict.fromkeys(listed))


def _special_tokens(root: Path) -> dict[str, str]:
    """The texts of those that a template may name."""
    path = root / "tokenizer_config.json"
    values = read_json(path) if path.is_file() else {}
    found = {}
    for key in ("bos_token", "eos_token", "unk_token", "pad_token"):
        value = values.get(key)
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            found[key] = text
    return found


def _chat_template(root: Path) -> str | None:
    """The default template, from its own file or ``tokenizer_config.json``, or None."""
    own = root / "chat_template.jinja"
    if own.is_file():
        try:
            return own.read_text("utf-8")
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{own} is not UTF-8 ({error}); download it again") from None
    path = root / "tokenizer_config.json"
    value = read_json(path).get("chat_template") if path.is_file() else None
    if isinstance(value, list):  # several by name
        value = next((entry.get("template") for entry in value if entry.get("name") == "default"), None)
    if value is not None and not isinstance(value, str):
        raise CheckpointError(f"{path}: 'chat_template' is {value!r:.80}; it must be a string")
    return value

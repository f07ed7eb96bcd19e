"""Tokenizers of GGUF files give the ids that transformers' loader of the same file gives, on odd texts."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from helpers.gguf_files import write_gguf
from helpers.odd_texts import odd_texts
from helpers.tokenizer_folders import byte_pairs
from pocketformer.errors import CheckpointError, UnsupportedModelError
from pocketformer.sources.gguf_reader import read_gguf
from pocketformer.sources.gguf_tokenizer import (
    BYTE,
    CONTROL,
    NORMAL,
    SPLITTINGS,
    UNKNOWN,
    USER_DEFINED,
    GgufTokenizer,
    merges_of,
    read_gguf_tokenizer,
)

TURNS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")


@cache
def texts() -> list[str]:
    turn = "<|im_start|>user\nWhat's  12345 + 6,789?<|im_end|>\n<start_of_turn>model\n\n\n  I'LL<end_of_turn>"
    return [*odd_texts(), turn, f" {turn}", "a\t\tb\r\n\r\nc", "    indented", "ﬁ e\u0301 \u1100\u1161"]


@cache
def byte_level() -> dict[str, Any]:
    """Metadata of a byte-level vocabulary, with control tokens and one that a user defined at its end."""
    vocabulary, merges = byte_pairs()
    tokens = sorted(vocabulary, key=lambda text: vocabulary[text])
    types = [CONTROL if text.startswith("<") and len(text) > 2 and text.endswith(">") else NORMAL for text in tokens]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": [*tokens, *TURNS, "<tool>"],
        "tokenizer.ggml.token_type": [*types, *[CONTROL] * len(TURNS), USER_DEFINED],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in merges],
        "tokenizer.ggml.bos_token_id": len(tokens),
        "tokenizer.ggml.eos_token_id": len(tokens) + 1,
        "tokenizer.chat_template": "{{ messages }}",
    }


@cache
def sentence_pieces(*first: str) -> dict[str, Any]:
    """Metadata of a SentencePiece vocabulary: special tokens, bytes, merged pieces by rank, single characters."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", behavior="merged_with_next")
    trainer = trainers.BpeTrainer(vocab_size=2500, limit_alphabet=600, show_progress=False)
    tokenizer.train_from_iterator([text for text in odd_texts() if len(text) < 100], trainer)
    vocabulary = tokenizer.get_vocab()
    pieces = sorted(vocabulary, key=lambda text: (len(text) == 1, vocabulary[text]))
    named = [*first, "<start_of_turn>", "<end_of_turn>"]
    pieces = [piece for piece in pieces if piece not in named]
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    scores = [*[0.0] * (len(named) + 256), *(-float(i) for i in range(len(pieces)))]
    types = [UNKNOWN if text == "<unk>" else CONTROL for text in named]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [*named, *bytes_, *pieces],
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": [*types, *[BYTE] * 256, *[NORMAL] * len(pieces)],
        **{f"tokenizer.ggml.{key}_token_id": named.index(text) for key, text in _NAMED.items() if text in named},
    }


_NAMED = {"bos": "<s>", "eos": "</s>", "unknown": "<unk>"}
LLAMA, GEMMA = ("<unk>", "<s>", "</s>"), ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
IDS = {"tokenizer.ggml.eos_token_id": 1, "tokenizer.ggml.bos_token_id": 2, "tokenizer.ggml.unknown_token_id": 3}


def ours(path: Path) -> GgufTokenizer:
    header = read_gguf(path)
    result = read_gguf_tokenizer(header, len(header.metadata["tokenizer.ggml.tokens"]), 1 << 20)
    assert result is not None
    return result


def theirs(path: Path) -> Tokenizer:
    return transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).backend_tokenizer


def check_same(actual: Tokenizer, expected: Tokenizer) -> None:
    for a, b in zip(actual.encode_batch(texts()), expected.encode_batch(texts()), strict=True):
        assert a.ids == b.ids
        assert actual.decode(a.ids) == expected.decode(a.ids)


@pytest.mark.slow
@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "qwen2", "tekken", "deepseek-r1-qwen"])
def test_byte_level(pre: str, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "t.gguf", {**byte_level(), "tokenizer.ggml.pre": pre}, {}, "llama")
    result, expected = ours(path), theirs(path)
    if SPLITTINGS[pre].digits:  # which transformers leaves out, but the repositories of these models have
        expected.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(True), expected.pre_tokenizer])
    if SPLITTINGS[pre].nfc:
        expected.normalizer = normalizers.NFC()
    actual = Tokenizer.from_str(result.json.decode())
    if SPLITTINGS[pre].begins:  # as llama.cpp and Llama's repositories do it; transformers waits for the file to say so
        assert {encoding.ids[0] for encoding in actual.encode_batch(["", "a"])} == {actual.token_to_id(TURNS[0])}
        actual.post_processor = expected.post_processor
    check_same(actual, expected)
    assert result.end_token_ids == [actual.token_to_id(text) for text in TURNS[1:]]
    assert result.chat_template == "{{ messages }}"
    assert result.special_tokens == {"bos_token": TURNS[0], "eos_token": TURNS[1]}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "more"),
    [
        ("llama", {}),
        ("llama", {"tokenizer.ggml.add_bos_token": False, "tokenizer.ggml.add_eos_token": True}),
        ("gemma3", {**IDS, "tokenizer.ggml.add_space_prefix": False}),
    ],
)
def test_sentence_pieces(architecture: str, more: dict[str, Any], tmp_path: Path) -> None:
    metadata = {**sentence_pieces(*(GEMMA if architecture == "gemma3" else LLAMA)), **more}
    path = write_gguf(tmp_path / "t.gguf", metadata, {}, architecture)
    result = ours(path)
    actual = Tokenizer.from_str(result.json.decode())
    check_same(actual, theirs(path))
    eos = actual.token_to_id("<eos>" if architecture == "gemma3" else "</s>")
    assert result.end_token_ids == [eos, actual.token_to_id("<end_of_turn>")]
    assert actual.truncation == {"max_length": 1 << 20, "stride": 0, "strategy": "longest_first", "direction": "right"}


def test_merges_follow_the_scores() -> None:
    """SentencePiece joins the pair whose piece has the highest score, wherever it stands in the vocabulary."""
    tokens = ["a", "b", "c", "ab", "bc", "abc"]
    index = {token: i for i, token in enumerate(tokens)}

    scores = [0.0, 0.0, 0.0, -2.0, -1.0, -3.0]
    assert merges_of(tokens, index, scores) == [("b", "c"), ("a", "b"), ("ab", "c"), ("a", "bc")]


def test_no_prefix_for_other_sentence_pieces(tmp_path: Path) -> None:
    metadata = {**sentence_pieces(*LLAMA), "tokenizer.ggml.add_space_prefix": False}
    tokenizer = Tokenizer.from_str(ours(write_gguf(tmp_path / "t.gguf", metadata, {}, "llama")).json.decode())
    assert tokenizer.encode("ab c").tokens[0] == "<s>"
    assert not tokenizer.encode("ab c").tokens[1].startswith("▁")
    assert tokenizer.decode(tokenizer.encode("ab  c").ids) == "ab  c"


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "model": ({"model": "t5"}, "tokenizer.ggml.model is 't5'; supported are gpt2, llama"),
    "pre": ({"pre": "default"}, "tokenizer.ggml.pre is 'default': how its words are split is not known"),
    "tokens": ({"tokens": [1, 2]}, "tokenizer.ggml.tokens must be a list of texts"),
    "twice": ({"tokens": ["a", "b", "ab", "a"]}, "tokenizer.ggml.tokens holds 'a' twice"),
    "types": ({"token_type": [1]}, "tokenizer.ggml.token_type must be a list of 4 numbers, one a token"),
    "type": ({"token_type": [1, 1, 1, 9]}, "tokenizer.ggml.token_type must hold types of 0…6"),
    "merges": ({"merges": ["a c"]}, "tokenizer.ggml.merges holds 'a c', which is no pair of tokens that make a third"),
    "no pair": ({"merges": ["ab"]}, "tokenizer.ggml.merges holds 'ab', which is no pair"),
    "no scores": ({"model": "llama"}, "tokenizer.ggml.scores must be a list of 4 numbers"),
    "scores": ({"model": "llama", "scores": [0.0, 0.0, 0.0, float("nan")]}, "scores holds NaN or infinity"),
    "bos": ({"bos_token_id": 4}, "tokenizer.ggml.bos_token_id is 4; there are 4 tokens"),
    "no bos": ({"add_bos_token": True}, "bos_token_id is missing, but add_bos_token asks for it"),
    "flag": ({"add_bos_token": 1}, "add_bos_token is 1; it must be true or false"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_broken_vocabularies_are_refused(case: str, tmp_path: Path) -> None:
    changed, message = REFUSED[case]
    plain = {"model": "gpt2", "pre": "gpt-2", "tokens": ["a", "b", "ab", "<e>"], "merges": ["a b"]}
    metadata = {f"tokenizer.ggml.{key}": value for key, value in {**plain, **changed}.items()}
    path = write_gguf(tmp_path / "t.gguf", metadata, {}, "llama")
    with pytest.raises((CheckpointError, UnsupportedModelError), match=message):
        read_gguf_tokenizer(read_gguf(path), 4, 100)
    if case == "pre":
        with pytest.raises(CheckpointError, match="4 tokens, but the token table has 3 rows"):
            read_gguf_tokenizer(read_gguf(path), 3, 100)


def test_a_file_without_vocabulary_has_no_tokenizer(tmp_path: Path) -> None:
    assert read_gguf_tokenizer(read_gguf(write_gguf(tmp_path / "t.gguf", {}, {}, "llama")), 4, 100) is None

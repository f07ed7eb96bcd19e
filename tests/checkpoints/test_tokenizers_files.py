"""Where tokenizers come from: SentencePiece models, classes, special tokens, and what is refused by name."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from helpers import sentencepiece_data
from helpers.tokenizer_folders import BERT_TOKENS, ROWS, tokenizer_json, vocab_txt, write
from pocketformer.errors import CheckpointError, UnsupportedModelError
from pocketformer.sources import tokenizer_kinds
from pocketformer.sources.config import Config
from pocketformer.sources.sentencepiece import CONTROL, USER_DEFINED, read_sentencepiece
from pocketformer.sources.tokenizer import ImportedTokenizer, read_tokenizer
from pocketformer.sources.tokenizer_files import Settings

LENGTH = sentencepiece_data.LENGTH
WORDS = {text: i for i, text in enumerate([*BERT_TOKENS, "hello", "world", "Hello", "##s"])}


def read(folder: Path, rows: int = ROWS, lowercase: bool = False, **overrides: Any) -> ImportedTokenizer | None:
    config = Config.read(folder / "config.json")
    return read_tokenizer(Settings(folder, overrides), config, rows, LENGTH, lowercase)


def opened(folder: Path, **arguments: Any) -> Tokenizer:
    result = read(folder, **arguments)
    assert result is not None
    return Tokenizer.from_str(result.json.decode())


def small_json(**normalizer: Any) -> dict[str, Any]:
    model = {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##"}
    steps = {"clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": False}
    return tokenizer_json(
        {**model, "max_input_chars_per_word": 100, "vocab": WORDS},
        BERT_TOKENS,
        normalizer={"type": "BertNormalizer", **steps, **normalizer},
        pre_tokenizer={"type": "BertPreTokenizer"},
    )


@pytest.mark.parametrize("settings", sentencepiece_data.SETTINGS)
@pytest.mark.parametrize("model_type", sentencepiece_data.FILES)
def test_sentencepiece_models(tmp_path: Path, model_type: str, settings: str) -> None:
    """The ids that AutoTokenizer gives with the sentencepiece package, which made the two models."""
    if settings not in sentencepiece_data.settings_of(model_type):
        return
    expected = json.loads((sentencepiece_data.FOLDER / "ids.json").read_text())
    values = sentencepiece_data.SETTINGS[settings]
    tokenizer = opened(sentencepiece_data.folder(tmp_path / "folder", model_type, values))
    ids = [encoding.ids for encoding in tokenizer.encode_batch(sentencepiece_data.texts_of(model_type))]
    assert sentencepiece_data.digest(ids) == expected[f"{model_type} {settings}"]


@pytest.mark.parametrize("value", [-1, "100", 10**9])
def test_wrong_numbers_of_sentinels_are_explained(tmp_path: Path, value: Any) -> None:
    folder = sentencepiece_data.folder(tmp_path / "folder", "t5", {"extra_ids": value})
    with pytest.raises(CheckpointError, match=r"'extra_ids' is .*; it must be a number from 0 to 1000"):
        read(folder)


def test_fields_of_a_sentencepiece_model() -> None:
    model = read_sentencepiece(sentencepiece_data.FOLDER / "spiece.model")
    assert [text for text, _, _ in model.pieces[:5]] == ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]
    assert {text for text, _, kind in model.pieces if kind == USER_DEFINED} == {"<USER>"}
    assert {text for text, _, kind in model.pieces if kind == CONTROL} == {"<pad>", "[CLS]", "[SEP]", "[MASK]"}
    assert model.charsmap is not None
    assert len(model.pieces) == 900
    assert min(score for _, score, _ in model.pieces) < -5


def test_damaged_sentencepiece_models(tmp_path: Path) -> None:
    """Cut, flipped and grown: an explained error or a model, never anything else."""
    good = (sentencepiece_data.FOLDER / "spiece.model").read_bytes()
    path, rng, messages = tmp_path / "spiece.model", random.Random(0), []
    for case in range(600):
        data = bytearray(good[: rng.choice((200, 2000, len(good)))])
        for _ in range(rng.randint(1, 5)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(data[: rng.randrange(len(data))] if case % 3 == 0 else data)
        try:
            assert read_sentencepiece(path).pieces
        except (CheckpointError, UnsupportedModelError) as error:
            messages.append(str(error))
    assert len(messages) > 200
    assert all(str(path) in message for message in messages)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "no pieces"),
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "more than ten bytes"),
        (b"\x0a\x02\x0a\x7f", "a field of 127 bytes"),
        (b"\x0a\x05\x0a\x01a", "a field of 5 bytes at byte 2 of 5"),
        (b"\x08\x01", "an integer where bytes belong"),
        (b"\x0b", "wire type 3"),
        (b"\x0a\x03\x0a\x01\xff", "utf-8"),
        (b"\x0a\x05\x15\x00\x00\x00", "a field of"),
        (b"\x0a\x04\x12\x02\x00\x00", "2 bytes where a float belongs"),
    ],
)
def test_lies_in_a_sentencepiece_model(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "spiece.model").write_bytes(data)
    with pytest.raises(CheckpointError, match=words):
        read_sentencepiece(tmp_path / "spiece.model")


def test_other_algorithms_are_named(tmp_path: Path) -> None:
    (tmp_path / "spiece.model").write_bytes(b"\x0a\x03\x0a\x01a" + b"\x12\x02\x18\x02")
    with pytest.raises(UnsupportedModelError, match=r"spiece\.model: its algorithm is BPE"):
        read_sentencepiece(tmp_path / "spiece.model")


@pytest.mark.parametrize("model_type", ["bert", "mpnet", "roberta", "xlm-roberta", "camembert", "albert", "other"])
def test_a_folder_without_a_tokenizer(tmp_path: Path, model_type: str) -> None:
    assert read(write(tmp_path, model_type)) is None


@pytest.mark.parametrize(
    ("model_type", "files", "words"),
    [
        ("roberta", {"vocab__txt": "a\n"}, ["vocab.txt", "vocab.json and merges.txt", "save_pretrained"]),
        ("roberta", {"vocab__json": {"a": 0}}, ["vocab.json", "merges.txt"]),
        ("bert", {"spiece__model": "x"}, ["spiece.model", "vocab.txt"]),
        ("bert", {"tokenizer_config__json": {"tokenizer_class": "BertJapaneseTokenizer"}}, ["BertJapaneseTokenizer"]),
        ("roberta", {"tokenizer_config__json": {"tokenizer_class": "BertweetTokenizer"}}, ["BertweetTokenizer"]),
        (
            "bert",
            {"vocab__txt": "a\n", "tokenizer_config__json": {"tokenizer_class": "X"}},
            ["read from tokenizer.json"],
        ),
        ("bert", {"tokenizer_config__json": {"split_special_tokens": True}}, ["split_special_tokens"]),
        ("bert", {"tokenizer_config__json": {"auto_map": {"AutoTokenizer": ["a.B", None]}}}, ["auto_map"]),
        (
            "bert",
            {"tokenizer_config__json": {"fast_tokenizer_files": ["tokenizer.4.0.0.json"]}},
            ["fast_tokenizer_files"],
        ),
    ],
)
def test_what_cannot_be_built_is_named(
    tmp_path: Path, model_type: str, files: dict[str, Any], words: list[str]
) -> None:
    write(tmp_path, model_type, **files)
    with pytest.raises(UnsupportedModelError) as info:
        read(tmp_path)
    assert all(word in str(info.value) for word in words)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"do_lower_case": "yes"}, "'do_lower_case' is 'yes'; it must be true or false"),
        ({"strip_accents": 1}, "'strip_accents' is 1"),
        ({"truncation_side": "middle"}, "'truncation_side' is 'middle'"),
        ({"tokenizer_class": 3}, "'tokenizer_class' is 3"),
        ({"added_tokens_decoder": ["a"]}, "'added_tokens_decoder' is"),
        ({"added_tokens_decoder": {"7": {"content": 3}}}, "token '7' of 'added_tokens_decoder'"),
        ({"added_tokens_decoder": {"seven": {"content": "x"}}}, "token 'seven'"),
        ({"added_tokens_decoder": {"7": {"content": "x", "lstrip": "no"}}}, "a token has the fields content, lstrip"),
        ({"extra_special_tokens": "x"}, "'extra_special_tokens' is 'x'"),
        ({"mask_token": 7}, "'mask_token' is 7"),
        ({"cls_token": None}, "the tokenizer has no cls_token"),
        ({"sep_token": "two words"}, "does not make a BertTokenizer"),
        ({"tokenizer_class": "XLMRobertaTokenizer"}, "of another kind than tokenizer_class"),
    ],
)
def test_wrong_settings_are_explained(tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    write(tmp_path, "bert", tokenizer__json=small_json(), tokenizer_config__json=settings)
    with pytest.raises(CheckpointError) as info:
        read(tmp_path)
    assert words in str(info.value)


@pytest.mark.parametrize(
    "content", [{"added_tokens": []}, {"model": 3}, {"model": {"vocab": 3}}, {"model": {"vocab": {"a": "b"}}}]
)
def test_damaged_tokenizer_files(tmp_path: Path, content: dict[str, Any]) -> None:
    write(tmp_path, "bert", tokenizer__json=content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        read(tmp_path)


@pytest.mark.parametrize("value", [0, -5, "512", True])
def test_wrong_lengths_are_explained(tmp_path: Path, value: Any) -> None:
    write(tmp_path, "bert", tokenizer_config__json={"model_max_length": value})
    with pytest.raises(CheckpointError, match="model_max_length"):
        _ = Settings(tmp_path).max_length


def test_lengths(tmp_path: Path) -> None:
    assert Settings(tmp_path).max_length is None
    assert Settings(write(tmp_path, "bert", tokenizer_config__json={"max_len": 77})).max_length == 77
    write(tmp_path, "bert", tokenizer_config__json={"max_len": 77, "model_max_length": 1e30})
    assert Settings(tmp_path).max_length == 2**31 - 1
    assert Settings(tmp_path, {"model_max_length": 12}).max_length == 12


@pytest.mark.parametrize("rows", [len(WORDS) - 1, len(WORDS)])
def test_a_vocabulary_larger_than_the_table(tmp_path: Path, rows: int) -> None:
    write(tmp_path, "bert", tokenizer__json=small_json())
    if rows == len(WORDS):
        assert read(tmp_path, rows) is not None
        return
    with pytest.raises(CheckpointError, match=f"'##s' the id {rows}, but the model's token table has {rows} rows"):
        read(tmp_path, rows)


def test_added_tokens_need_rows(tmp_path: Path) -> None:
    write(tmp_path, "bert", tokenizer__json=small_json(), added_tokens__json={"<EMAIL>": len(WORDS)})
    assert opened(tmp_path, rows=len(WORDS) + 1).encode("hello <EMAIL>").ids == [2, 5, len(WORDS), 3]
    with pytest.raises(CheckpointError, match="'<EMAIL>' the id 9"):
        read(tmp_path, len(WORDS))


def test_tokens_that_only_a_class_names_are_left_out(tmp_path: Path) -> None:
    """A vocabulary without a mask works; transformers would give the mask a row that the table does not have."""
    words = {text: i for i, text in enumerate(text for text in WORDS if text != "[MASK]")}
    write(tmp_path, "bert", vocab__txt=vocab_txt(words))
    assert opened(tmp_path, rows=len(words)).token_to_id("[MASK]") is None
    assert opened(tmp_path, rows=len(words) + 1).token_to_id("[MASK]") == len(words)
    write(tmp_path, "bert", tokenizer_config__json={"mask_token": "[MASK]"})
    with pytest.raises(CheckpointError, match=r"'\[MASK\]' the id 8"):
        read(tmp_path, len(words))


@pytest.mark.parametrize(
    ("model_type", "files", "token"),
    [
        ("bert", {"tokenizer_config__json": {"do_lower_case": True, "model_max_length": 512}}, "[MASK]"),
        ("bert", {}, "[MASK]"),
        ("bert", {"special_tokens_map__json": {"mask_token": "hello"}}, "hello"),
        ("bert", {"tokenizer_config__json": {"mask_token": {"__type": "AddedToken", "content": "world"}}}, "world"),
    ],
)
def test_the_mask_token(tmp_path: Path, model_type: str, files: dict[str, Any], token: str) -> None:
    for source in ({"tokenizer__json": small_json()}, {"vocab__txt": vocab_txt(WORDS)}):
        result = read(write(tmp_path / next(iter(source)), model_type, **source, **files))
        assert result is not None
        assert result.mask_token_id == WORDS[token]


def test_classes_that_are_not_known_must_agree_with_their_file(tmp_path: Path) -> None:
    settings = {"tokenizer_class": "Qwen2Tokenizer", "do_lower_case": False, "strip_accents": None}
    write(tmp_path, "qwen2", tokenizer__json=small_json(), tokenizer_config__json=settings)
    assert opened(tmp_path).encode("Hello hello", add_special_tokens=False).ids == [7, 5]
    for change in ({"do_lower_case": True}, {"strip_accents": False}, {"tokenize_chinese_chars": False}):
        saved = small_json(strip_accents=True)
        write(tmp_path, "qwen2", tokenizer__json=saved, tokenizer_config__json={**settings, **change})
        with pytest.raises(UnsupportedModelError, match=f"'{next(iter(change))}' is"):
            read(tmp_path)


@pytest.mark.parametrize("prefix", [True, False])
def test_prefix_spaces_of_classes_that_are_not_known(tmp_path: Path, prefix: bool) -> None:
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    saved = {**small_json(), "pre_tokenizer": {"type": "Sequence", "pretokenizers": [level]}}
    settings = {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": prefix}
    write(tmp_path, "gpt2", tokenizer__json=saved, tokenizer_config__json=settings)
    if not prefix:
        assert read(tmp_path) is not None
        return
    with pytest.raises(UnsupportedModelError, match="add_prefix_space"):
        read(tmp_path)


def test_lower_case_of_sentence_transformers(tmp_path: Path) -> None:
    """It comes before everything else; special tokens in a text stay what they are."""
    write(tmp_path, "bert", tokenizer__json=small_json(), tokenizer_config__json={"do_lower_case": False})
    assert opened(tmp_path).encode("Hello [MASK] HELLO").ids == [2, 7, 4, 1, 3]
    assert opened(tmp_path, lowercase=True).encode("Hello [MASK] HELLO").ids == [2, 5, 4, 5, 3]
    sentence = sentencepiece_data.folder(tmp_path / "albert", "albert", {"do_lower_case": True})
    assert read(sentence, lowercase=True) == read(sentence)


def test_cutting_is_written_into_the_file(tmp_path: Path) -> None:
    write(tmp_path, "bert", tokenizer__json=small_json(), tokenizer_config__json={"truncation_side": "left"})
    cut = opened(tmp_path).truncation
    assert cut is not None
    assert (cut["direction"], cut["max_length"]) == ("left", LENGTH)
    assert opened(tmp_path).padding is None
    saved = {
        **small_json(),
        "truncation": {"direction": "Left", "max_length": 9, "strategy": "LongestFirst", "stride": 0},
    }
    write(tmp_path, "bert", tokenizer__json=saved, tokenizer_config__json={})
    assert opened(tmp_path).truncation["direction"] == "left"  # type: ignore[index]


def test_documentation_lists_the_classes() -> None:
    page = (Path(__file__).parents[2] / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    names = {"PreTrainedTokenizerFast" if name == "PreTrainedTokenizer" else name for name in tokenizer_kinds._BY_CLASS}
    assert all(f"`{name}`" in page for name in names)

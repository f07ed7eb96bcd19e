"""Ids, types and cuts of imported tokenizers beside those of AutoTokenizer, on two thousand odd texts."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from helpers.odd_texts import odd_texts
from helpers.tokenizer_folders import (
    BERT_TOKENS,
    FAIRSEQ_TOKENS,
    ROWS,
    byte_pairs,
    merges_txt,
    tokenizer_json,
    unigram,
    vocab_txt,
    word_pieces,
    write,
)
from pocketformer.sources.config import Config
from pocketformer.sources.tokenizer import ImportedTokenizer, read_tokenizer
from pocketformer.sources.tokenizer_files import Settings

LENGTH = 48


def imported(folder: Path, rows: int = ROWS, **overrides: Any) -> ImportedTokenizer:
    result = read_tokenizer(Settings(folder, overrides), Config.read(folder / "config.json"), rows, LENGTH)
    assert result is not None
    return result


def reference(folder: Path, **overrides: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return AutoTokenizer.from_pretrained(folder, **overrides)


def same_ids(folder: Path, texts: Iterable[str] = (), typed: bool = True, **overrides: Any) -> None:
    """Single texts and pairs, cut at ``LENGTH``: ids and, where models of the kind take any, token types."""
    ours, theirs = Tokenizer.from_str(imported(folder, **overrides).json.decode()), reference(folder, **overrides)
    listed = [*odd_texts(), *texts]
    expected = theirs(listed, truncation=True, max_length=LENGTH)["input_ids"]
    for text, encoding, ids in zip(listed, ours.encode_batch(listed), expected, strict=True):
        assert encoding.ids == ids, repr(text)
    pairs = list(zip(listed[:200], listed[200:400], strict=True))
    encoded = theirs([a for a, _ in pairs], [b for _, b in pairs], truncation=True, max_length=LENGTH)
    types = encoded.get("token_type_ids") or [[0] * len(ids) for ids in encoded["input_ids"]]
    for pair, ids, kinds in zip(pairs, encoded["input_ids"], types, strict=True):
        encoding = ours.encode(*pair)
        assert (encoding.ids, encoding.type_ids if typed else kinds) == (ids, kinds), repr(pair)


def bert_json(**normalizer: Any) -> dict[str, Any]:
    steps = {"clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": True, **normalizer}
    model = {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##"}
    return tokenizer_json(
        {**model, "max_input_chars_per_word": 100, "vocab": word_pieces()},
        BERT_TOKENS,
        normalizer={"type": "BertNormalizer", **steps},
        pre_tokenizer={"type": "BertPreTokenizer"},
        post_processor={"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]},
    )


def roberta_json(prefix: bool = False) -> dict[str, Any]:
    vocabulary, merges = byte_pairs()
    level = {"add_prefix_space": prefix, "trim_offsets": True}
    return tokenizer_json(
        {"type": "BPE", "vocab": vocabulary, "merges": [list(pair) for pair in merges]},
        FAIRSEQ_TOKENS,
        pre_tokenizer={"type": "ByteLevel", "use_regex": True, **level},
        post_processor={"type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 0], **level},
    )


def unigram_json(first: list[str], last: list[str], unknown: int, special: list[str], **parts: Any) -> dict[str, Any]:
    pieces = [*((text, 0.0) for text in first), *unigram(), *((text, 0.0) for text in last)]
    model = {"type": "Unigram", "unk_id": unknown, "vocab": [list(piece) for piece in pieces]}
    space = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    splits = {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, space]}
    return tokenizer_json(model, special, pre_tokenizer=splits, **parts)


def xlm_roberta_json() -> dict[str, Any]:
    return unigram_json(["<s>", "<pad>", "</s>", "<unk>"], ["<mask>"], 3, FAIRSEQ_TOKENS)


def camembert_json() -> dict[str, Any]:
    first = ["<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED", "<s>", "</s>"]
    return unigram_json(first, ["<mask>"], 3, FAIRSEQ_TOKENS)


def albert_json() -> dict[str, Any]:
    return unigram_json(["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"], [], 1, ["<pad>", "<unk>", *BERT_TOKENS[2:]])


def t5_json() -> dict[str, Any]:
    first, last = ["<pad>", "</s>", "<unk>"], [f"<extra_id_{i}>" for i in reversed(range(100))]
    return unigram_json(first, last, 2, [*first, *last])


def big_bird_json() -> dict[str, Any]:
    special = ["<pad>", "</s>", "<s>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]
    return unigram_json(special, [], 3, special)


BERT_SETTINGS: list[dict[str, Any]] = [
    {},
    {"do_lower_case": False},
    {"do_lower_case": True, "strip_accents": False},
    {"do_lower_case": False, "strip_accents": True},
    {"do_lower_case": True, "strip_accents": True},
    {"do_lower_case": False, "strip_accents": None, "tokenize_chinese_chars": False},
    {"truncation_side": "left", "model_max_length": 16},
    {"tokenizer_class": "DistilBertTokenizer"},
    {"tokenizer_class": "ElectraTokenizerFast"},
    {"tokenizer_class": "PreTrainedTokenizerFast", "do_lower_case": False},
    {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": ["input_ids", "token_type_ids"]},
    {"model_input_names": ["input_ids", "attention_mask"]},
    {"cls_token": "<s>", "sep_token": "</s>", "unk_token": "<unk>"},
]


@pytest.mark.parametrize("settings", BERT_SETTINGS, ids=str)
def test_word_pieces_of_bert(tmp_path: Path, settings: dict[str, Any]) -> None:
    write(tmp_path / "json", "bert", tokenizer__json=bert_json(lowercase=False), tokenizer_config__json=settings)
    same_ids(tmp_path / "json")
    if settings.get("tokenizer_class") != "PreTrainedTokenizerFast":
        write(tmp_path / "txt", "bert", vocab__txt=vocab_txt(word_pieces()), tokenizer_config__json=settings)
        same_ids(tmp_path / "txt")


@pytest.mark.parametrize("model_type", ["bert", "distilbert"])
def test_without_any_settings(tmp_path: Path, model_type: str) -> None:
    same_ids(write(tmp_path / "json", model_type, tokenizer__json=bert_json(lowercase=False, strip_accents=True)))
    same_ids(write(tmp_path / "txt", model_type, vocab__txt=vocab_txt(word_pieces())))


@pytest.mark.parametrize("settings", [{}, {"do_lower_case": False}, {"strip_accents": False}], ids=str)
def test_word_pieces_of_mpnet(tmp_path: Path, settings: dict[str, Any]) -> None:
    listed = vocab_txt(word_pieces())
    same_ids(write(tmp_path / "txt", "mpnet", vocab__txt=listed, tokenizer_config__json=settings))
    same_ids(write(tmp_path / "json", "mpnet", tokenizer__json=bert_json(), tokenizer_config__json=settings))


@pytest.mark.parametrize(
    "settings",
    [{}, {"add_prefix_space": True}, {"trim_offsets": False}, {"truncation_side": "left"}, {"cls_token": "</s>"}],
    ids=str,
)
def test_byte_pairs(tmp_path: Path, settings: dict[str, Any]) -> None:
    vocabulary, merges = byte_pairs()
    saved = roberta_json(prefix=not settings.get("add_prefix_space", False))
    same_ids(write(tmp_path / "json", "roberta", tokenizer__json=saved, tokenizer_config__json=settings))
    lists = {"vocab__json": vocabulary, "merges__txt": merges_txt(merges)}
    same_ids(write(tmp_path / "lists", "roberta", **lists, tokenizer_config__json=settings))


@pytest.mark.parametrize("model_type", ["longformer", "gpt2", "qwen2", "qwen3"])
@pytest.mark.parametrize("settings", [{}, {"add_prefix_space": True, "truncation_side": "left"}], ids=str)
def test_byte_pairs_of_other_models(tmp_path: Path, model_type: str, settings: dict[str, Any]) -> None:
    vocabulary, merges = byte_pairs()
    lists = {"vocab__json": vocabulary, "merges__txt": merges_txt(merges)}
    same_ids(write(tmp_path / "lists", model_type, **lists, tokenizer_config__json=settings), typed=False)
    if model_type in ("longformer", "gpt2"):  # the class overrules the file's blank before a text
        saved = roberta_json(prefix=not settings)
        same_ids(write(tmp_path / "json", model_type, tokenizer__json=saved, tokenizer_config__json=settings))


def test_a_beginning_that_gpt2_is_asked_for(tmp_path: Path) -> None:
    vocabulary, merges = byte_pairs()
    settings = {"add_bos_token": True, "bos_token": "<s>"}
    lists = {"vocab__json": vocabulary, "merges__txt": merges_txt(merges)}
    same_ids(write(tmp_path, "gpt2", **lists, tokenizer_config__json=settings), typed=False)


UNIGRAM_KINDS = {
    "xlm-roberta": xlm_roberta_json,
    "camembert": camembert_json,
    "albert": albert_json,
    "t5": t5_json,
    "big_bird": big_bird_json,
}


@pytest.mark.parametrize("model_type", UNIGRAM_KINDS)
@pytest.mark.parametrize(
    "settings",
    [{}, {"add_prefix_space": False}, {"do_lower_case": False, "keep_accents": True}, {"do_lower_case": True}],
    ids=str,
)
def test_sentence_pieces(tmp_path: Path, model_type: str, settings: dict[str, Any]) -> None:
    saved = UNIGRAM_KINDS[model_type]()
    same_ids(write(tmp_path, model_type, tokenizer__json=saved, tokenizer_config__json=settings))


def test_sentence_pieces_on_a_bert(tmp_path: Path) -> None:
    """multilingual-e5-small and the multilingual MiniLM: a BERT whose tokenizer is XLM-RoBERTa's."""
    settings = {"tokenizer_class": "XLMRobertaTokenizer", "model_max_length": 512}
    same_ids(write(tmp_path, "bert", tokenizer__json=xlm_roberta_json(), tokenizer_config__json=settings))


def test_albert_keeps_the_template_of_its_file(tmp_path: Path) -> None:
    saved = albert_json() | {"post_processor": {"type": "BertProcessing", "sep": ["[MASK]", 4], "cls": ["[CLS]", 2]}}
    same_ids(write(tmp_path, "albert", tokenizer__json=saved))
    same_ids(tmp_path, model_input_names=["input_ids", "token_type_ids", "attention_mask"])


def token(text: str, **flags: bool) -> dict[str, Any]:
    return {"content": text, "lstrip": False, "rstrip": False, "normalized": True, "single_word": False} | flags


ADDED: list[dict[str, Any]] = [
    {
        "tokenizer_config__json": {
            "added_tokens_decoder": {"5990": token("<EMAIL>"), "5991": token("naïve", special=True)}
        }
    },
    {"tokenizer_config__json": {"added_tokens_decoder": {"4": token("[MASK]", lstrip=True, special=True)}}},
    {"tokenizer_config__json": {"additional_special_tokens": ["<EMAIL>", "house"]}},
    {"tokenizer_config__json": {"extra_special_tokens": {"query_token": "<EMAIL>"}, "passage_token": "[P]"}},
    {"added_tokens__json": {"<EMAIL>": 5990, "sold": 5991}},
    {"special_tokens_map__json": {"mask_token": {**token("<MASK>"), "lstrip": True}, "unk_token": "[UNK]"}},
    {
        "added_tokens__json": {"[Q]": 5990},
        "special_tokens_map__json": {"additional_special_tokens": ["[Q]"], "mask_token": "[Q]"},
        "tokenizer_config__json": {"mask_token": "[SEP]"},
    },
]
MORE = ["hello <EMAIL> world", "hello<email>", "naïve naive NAÏVE", "[P] [Q] a[Q]b", "the house was sold", "a <MASK> b"]


@pytest.mark.parametrize("files", ADDED, ids=lambda files: " ".join(files))
@pytest.mark.parametrize("model_type", ["bert", "roberta", "albert", "mpnet"])
def test_added_tokens(tmp_path: Path, model_type: str, files: dict[str, Any]) -> None:
    saved = {"bert": bert_json, "roberta": roberta_json, "albert": albert_json, "mpnet": bert_json}[model_type]()
    same_ids(write(tmp_path, model_type, tokenizer__json=saved, **files), MORE)


def test_overrides_of_sentence_transformers(tmp_path: Path) -> None:
    write(tmp_path, "bert", tokenizer__json=bert_json(), tokenizer_config__json={"do_lower_case": True})
    same_ids(tmp_path, do_lower_case=False, truncation_side="left")
    same_ids(tmp_path, additional_special_tokens=["house"])


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield

"""A long text in pieces has the tokens of the whole, with every kind of tokenizer of which that is claimed."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from helpers.task_models import make
from helpers.tokenizers import (
    albert_pieces,
    byte_pairs,
    clip_pairs,
    sentence_pieces,
    untrimmed_byte_pairs,
    word_pieces,
)
from pocketformer.pocketfile import read_pocket
from pocketformer.sources.gguf_tokenizer import SPLITTINGS
from pocketformer.tasks import text as reading
from pocketformer.tasks.pieces import cut, pieces, separable

TEXT = (
    "Ada lives in London, and wrote the first program.  It's   Mr Babbage's 12345 letters of 1843!\n\n"
    "  Где живёт Ада? Ἀδά ἐν Λονδίνῳ ΟΔΟΣ ΣΟΦΟΣ. Zu\u0308rich e\u0301te\u0301 ﬁne Ａda ǅ x\u00a0y a\tb <mask> in <s>"
    " </s>é\n"
    "张伟住在北京东 とうです กรุงเทพ \u0301 a b c\u0301 d The Paris. a\u200bb [MASK] of of of is\r\nwhere who"
)


def splitting(pattern: str | None) -> Tokenizer:
    tokenizer = byte_pairs()
    tokenizer.normalizer = normalizers.NFC()
    if pattern is not None:
        split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.add_tokens(["  ", "   ", "<|a|>"])
    return tokenizer


def clip() -> Tokenizer:
    tokenizer = clip_pairs()
    steps = [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    tokenizer.normalizer = normalizers.Sequence(steps)
    words = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    split = pre_tokenizers.Split(Regex(words), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False)])
    return tokenizer


def t5(scheme: str) -> Tokenizer:
    tokenizer = sentence_pieces()
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    parts = [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme=scheme)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts)
    return tokenizer


def accents() -> Tokenizer:
    tokenizer = word_pieces()
    tokenizer.normalizer = normalizers.BertNormalizer(strip_accents=True)
    return tokenizer


def with_prefix() -> Tokenizer:
    tokenizer = byte_pairs()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(True)])
    return tokenizer


KINDS: dict[str, Callable[[], Tokenizer]] = {
    **{make.__name__: make for make in (word_pieces, sentence_pieces, albert_pieces, byte_pairs, untrimmed_byte_pairs)},
    **{make.__name__: make for make in (clip, accents, with_prefix)},
    **{f"t5 {scheme}": lambda scheme=scheme: t5(scheme) for scheme in ("always", "first", "never")},
    **{name: lambda name=name: splitting(SPLITTINGS[name].pattern) for name in ("gpt-2", "llama3", "qwen2")},
}


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_have_the_tokens_of_the_whole(kind: str) -> None:
    tokenizer = KINDS[kind]()
    assert separable(tokenizer)
    for text in (TEXT, TEXT.upper(), TEXT.replace("a", "  ").replace("i", " ")):
        whole = tokenizer.encode(text, add_special_tokens=False)
        for size in (1, 30):
            spans = list(pieces(text, size))
            assert [0, *(end for _, end in spans)] == [*(begin for begin, _ in spans), len(text)]
            assert len(spans) > 3
            parts = [tokenizer.encode(text[slice(*span)], add_special_tokens=False) for span in spans]
            assert list(itertools.chain.from_iterable(part.ids for part in parts)) == whole.ids
            offsets = [(b + at, e + at) for (at, _), part in zip(spans, parts, strict=True) for b, e in part.offsets]
            assert offsets == whole.offsets


@pytest.mark.parametrize("at", [6, 7, 8])
def test_a_cut_elsewhere_is_noticed(at: int) -> None:
    """Only before the blank, which belongs to the word behind it."""
    tokenizer, text = byte_pairs(), "ada in london"
    parts = (tokenizer.encode(part, add_special_tokens=False).ids for part in (text[:at], text[at:]))
    joined = list(itertools.chain.from_iterable(parts))
    assert (joined == tokenizer.encode(text, add_special_tokens=False).ids) == (at == cut(text, 4) == 6)


def changed(**parts: object) -> Tokenizer:
    tokenizer = sentence_pieces()
    for name, value in parts.items():
        setattr(tokenizer, name, value)
    return tokenizer


def with_added(content: str) -> Tokenizer:
    tokenizer = word_pieces()
    tokenizer.add_tokens([content])
    return tokenizer


@pytest.mark.parametrize(
    "tokenizer",
    [
        clip_pairs(),  # splits nothing
        changed(pre_tokenizer=pre_tokenizers.Split(" ", behavior="merged_with_previous")),
        changed(pre_tokenizer=pre_tokenizers.Split(Regex(r"\w+ \w+|\s+|\p{L}+"), behavior="isolated")),
        changed(pre_tokenizer=pre_tokenizers.Metaspace(split=False)),
        changed(normalizer=normalizers.Strip()),
        changed(normalizer=normalizers.Prepend("▁")),
        changed(normalizer=normalizers.Replace(" ", "▁")),
        changed(normalizer=normalizers.Replace(Regex("[a ]+"), " ")),
        changed(model=models.BPE({"a": 0}, [], dropout=0.1)),
        with_added("New York"),
        with_added("York "),
    ],
    ids=str,
)
def test_of_others_nothing_is_claimed(tokenizer: Tokenizer) -> None:
    assert not separable(tokenizer)


def test_a_text_without_blanks_is_one_piece() -> None:
    assert list(pieces("张伟住在北京东" * 50, 7)) == [(0, 350)]
    assert list(pieces("", 7)) == []


def made(folder: Path) -> reading.TextReader:
    path = folder / "embed.pocket"
    if not path.exists():
        make("embed", folder)
    return reading.TextReader(read_pocket(path), 1)


LONG = "Ada lives in London, and who wrote the first letter to Mr Babbage is the program of Paris. " * 300


@pytest.mark.parametrize("length", [9, 300])
def test_of_a_long_text_the_first_tokens_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int) -> None:
    """With the warning that all of it would give, once; what follows is neither read again nor counted."""
    results, words, read = [], [], []
    for size in (1 << 16, 64):
        monkeypatch.setattr(reading, "PIECE", size)
        reader = made(tmp_path)
        with pytest.warns(UserWarning, match="texts are longer") as said:
            results.append(reader.inputs([LONG, "a letter"], max_length=length)[0])
        words.append([str(warning.message) for warning in said])
        read.append(len(reader._beginning(LONG, reader.tokenizer(max_length=length))))
    np.testing.assert_array_equal(results[0][0], results[1][0])
    np.testing.assert_array_equal(results[0][1], results[1][1])
    assert words[0] == words[1]
    assert read[0] == len(LONG)
    assert read[1] < max(200, 16 * length)


def test_windows_of_a_document_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for size in (1 << 16, 64):
        monkeypatch.setattr(reading, "PIECE", size)
        for length in (40, 41, 64):
            for end in (len(LONG), len(LONG) - 13, len(LONG) - 50):
                with pytest.warns(UserWarning, match="windows"):
                    found.append(made(tmp_path).document(LONG[:end], length))
    for (one, shared), (other, same) in zip(found[:9], found[9:], strict=True):
        assert (len(one), shared) == (len(other), same)
        for a, b in zip(one, other, strict=True):
            assert (a.begin, a.end) == (b.begin, b.end)
            np.testing.assert_array_equal(a.ids, b.ids)
            np.testing.assert_array_equal(a.starts, b.starts)


def test_what_no_encoding_carries_is_refused_wherever_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "PIECE", 64)
    with pytest.raises(ValueError, match=r"texts\[0\] holds '\\ud800', half of a surrogate pair"):
        made(tmp_path).inputs([LONG + "\ud800"], max_length=9)

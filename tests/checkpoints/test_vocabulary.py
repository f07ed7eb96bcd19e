"""A trimmed vocabulary: texts that were meant to stay keep their tokens, rows and outputs; other rows are gone."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from helpers.engines import native
from helpers.graphs import MODEL, TEXT, tiny_graph
from helpers.tokenizers import SPECIAL, clip_pairs
from helpers.torch_models import build
from pocketformer import compress, load
from pocketformer.cli import main
from pocketformer.compression.pieces import Pieces, script_filter
from pocketformer.compression.vocabulary import keep_rows, trim_vocabulary
from pocketformer.pocketfile import read_pocket
from pocketformer.sources.huggingface import Checkpoint

INDIC = [
    "वह क्या कर रही है? हिन्दी में लिखिए।",
    "मराठी भाषा खूप सुंदर आहे, नाही का! ज्ञानेश्वरांनी लिहिले॥",
    "क्‍ष और क्‌ष में अंतर; ॐ, १२३ और 123 — ५०% 😀 ₹५००",
    "श्री कृष्ण ने अर्जुन से कहा था कि कर्म करो।",
]
LATIN = ["The weather is fine today, isn't it?", "naïve café coöperation; Łódź, İstanbul", "a b c 1 2 3 (x) [y] {z}"]
OTHERS = [
    "ఇది తెలుగు భాష. చాలా బాగుంది.",
    "ಕನ್ನಡ ಭಾಷೆ ಬಹಳ ಸುಂದರ.",
    "Москва — столица России, большой город.",
    "今天天气很好，我们去公园。",
    "ここは東京です。カレーを食べた。",
    "مرحبا بالعالم، كيف حالك؟",
    "สวัสดีชาวโลก",
]
CORPUS = [*INDIC, *LATIN, *OTHERS]
SCRIPTS = "Deva,Latn"


def _trained(model: Any, trainer: Any, pre: Any, normalizer: Any = None) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    if isinstance(model, models.WordPiece):  # BERT's vocabularies hold words that no text becomes
        content = json.loads(tokenizer.to_str())
        pieces = content["model"]["vocab"]
        pieces |= {f"[unused{i}]": len(pieces) + i for i in range(4)}
        tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    tokenizer.add_tokens([AddedToken("<extra>", special=False)])  # its id is beyond those of the model
    return tokenizer


@cache
def tokenizers() -> dict[str, Tokenizer]:
    common: dict[str, Any] = {"special_tokens": list(SPECIAL), "show_progress": False}
    return {
        "WordPiece": _trained(
            models.WordPiece(unk_token="[UNK]"),
            trainers.WordPieceTrainer(vocab_size=420, **common),
            pre_tokenizers.BertPreTokenizer(),
            normalizers.BertNormalizer(lowercase=False, strip_accents=False),
        ),
        "byte-level BPE": _trained(
            models.BPE(),
            trainers.BpeTrainer(vocab_size=700, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **common),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ),
        "BPE of characters": _trained(
            models.BPE(unk_token="[UNK]", fuse_unk=True),
            trainers.BpeTrainer(vocab_size=500, **common),
            pre_tokenizers.Metaspace(),
        ),
        "BPE with suffix": _trained(
            models.BPE(unk_token="[UNK]", end_of_word_suffix="</w>"),
            trainers.BpeTrainer(vocab_size=500, end_of_word_suffix="</w>", **common),
            pre_tokenizers.Whitespace(),
        ),
        "Unigram": _trained(
            models.Unigram(),
            trainers.UnigramTrainer(vocab_size=420, unk_token="[UNK]", **common),
            pre_tokenizers.Metaspace(),
            normalizers.NFKC(),
        ),
    }


KINDS = ("WordPiece", "byte-level BPE", "BPE of characters", "BPE with suffix", "Unigram")


def checkpoint(kind: str, **graph: Any) -> Checkpoint:
    tokenizer = Tokenizer.from_str(tokenizers()[kind].to_str())
    tokenizer.enable_truncation(40)
    rows = tokenizer.get_vocab_size(with_added_tokens=True) + 3  # a table is often higher than its vocabulary
    return Checkpoint(tiny_graph(vocab=rows, **graph), MODEL, TEXT, tokenizer.to_str().encode())


def both(before: Checkpoint, after: Checkpoint, text: Any) -> tuple[Any, Any]:
    encodings = []
    for loaded in (before, after):
        tokenizer = Tokenizer.from_buffer(loaded.tokenizer_json)
        tokenizer.no_truncation()
        encodings.append(tokenizer.encode(*([text] if isinstance(text, str) else text)))
    return encodings[0], encodings[1]


def rows_of(loaded: Checkpoint, ids: list[int]) -> np.ndarray:
    return np.asarray(loaded.graph.params["words.weight"])[ids]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["scripts", "corpus", "both"])
def test_what_was_to_stay_keeps_its_tokens_and_rows(kind: str, how: str) -> None:
    before = checkpoint(kind)
    scripts = SCRIPTS if how != "corpus" else None
    corpus = {"scripts": None, "corpus": [*INDIC, *LATIN], "both": OTHERS[:2]}[how]
    after, report = trim_vocabulary(before, scripts, corpus, calibration=CORPUS)
    kept = [*INDIC, *LATIN, *(OTHERS[:2] if how == "both" else [])]
    assert report is not None
    assert report.before == before.graph.vocab_size > report.after == after.graph.vocab_size
    assert len(after.graph.params["words.weight"]) == report.after
    changed = 0
    for text in [*CORPUS, ("वह <extra> है", "and [MASK] <extra>")]:
        x, y = both(before, after, text)
        if text in kept or not isinstance(text, str):
            assert x.tokens == y.tokens, text
            np.testing.assert_array_equal(rows_of(before, x.ids), rows_of(after, y.ids))
        changed += isinstance(text, str) and x.tokens != y.tokens
    assert (report.texts, report.changed) == (len(CORPUS), changed)
    assert 0 < changed <= len(CORPUS) - len(kept)
    # Ids are those of the rows, without holes.
    vocabulary = Tokenizer.from_buffer(after.tokenizer_json).get_vocab(with_added_tokens=True)
    assert sorted(vocabulary.values()) == list(range(report.after))
    assert not any("Москва"[i : i + 2] in piece for piece in vocabulary for i in range(5))
    assert not any(piece.startswith("[unused") for piece in vocabulary)


@pytest.mark.parametrize("kind", KINDS)
def test_other_words_of_the_scripts_keep_their_tokens_too(kind: str) -> None:
    """Random words of kept letters, those of a text in no order: no piece or merge that they need is gone."""
    before = checkpoint(kind)
    after, _ = trim_vocabulary(before, ["Deva"])
    rng = np.random.default_rng(3)
    letters = sorted(set("".join(INDIC[:1] + INDIC[3:])) | set("0123 .,?!😀"))
    for _ in range(200):
        text = "".join(rng.choice(letters, 12))
        x, y = both(before, after, text)
        assert x.tokens == y.tokens, text


def test_marks_and_digits_of_any_script_stay() -> None:
    keeps = script_filter(["Deva"])
    assert all(map(keeps, "कािीुूेैोौंःँ्ऽ।॥०९\u0951\u200c\u200d0,.?!₹😀▁#\u0301"))
    assert not any(map(keeps, "aéжతక"[:3]))
    assert all(map(script_filter(["Jpan"]), "東あア々ー"))
    assert all(map(script_filter(["telugu"]), "తెలుగు"))


@pytest.mark.parametrize("task", ["fill_mask", "embed"])
def test_the_graph_gives_the_same_for_what_is_left(task: str) -> None:
    graph = tiny_graph(vocab=101, task=task)
    rows = np.array([0, 1, 2, 5, 40, 41, 77, 99])
    smaller = keep_rows(graph, rows, task)
    new = np.array([3, 0, 7, 4, 4, 5, 1])
    chosen = np.array([1, 4]) if task == "fill_mask" else None
    expected = native(graph, rows[new], [4, 3], rows=chosen)
    actual = native(smaller, new, [4, 3], rows=chosen)
    np.testing.assert_array_equal(actual, expected[:, rows] if task == "fill_mask" else expected)
    assert smaller.weights["words"]["n"] == smaller.vocab_size == len(rows)


def tokenizer_of(path: Path) -> Tokenizer:
    content = read_pocket(path).tokenizer()
    assert content is not None
    return Tokenizer.from_buffer(content)


def twin(folder: Path) -> Path:
    """DistilBERT multilingual with a few hundred of its 119,547 words."""
    tokenizer = tokenizers()["WordPiece"]
    build("distilbert", "fill_mask", folder, vocab_size=tokenizer.get_vocab_size())
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {f"{name.lower()[1:-1]}_token": name for name in SPECIAL}
    settings = {"tokenizer_class": "DistilBertTokenizerFast", "do_lower_case": False, **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.slow
def test_the_command_trims_a_multilingual_distilbert(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = twin(tmp_path / "model")
    texts, calibration = tmp_path / "texts.txt", tmp_path / "calibration.txt"
    texts.write_text("\n".join(OTHERS[:2]), "utf-8")
    calibration.write_text("\n".join(INDIC * 30 + OTHERS[2:]), "utf-8")
    whole, small, plan = (tmp_path / name for name in ("whole.pocket", "small.pocket", "plan.json"))
    compress(folder, whole, weights="fp32")
    trim = ["--keep-script", "Deva", "--keep-vocab", str(texts), "--calibration", str(calibration)]
    assert main(["compress", str(folder), "-o", str(small), "--weights", "fp32", *trim[:4]]) == 0
    printed = capsys.readouterr().out
    assert "vocabulary: " in printed
    assert "0.0% of 2 texts change (keep_vocabulary)" in printed
    assert small.stat().st_size < whole.stat().st_size
    files = load(whole), load(small)
    before, after = (tokenizer_of(path) for path in (whole, small))
    left = [before.token_to_id(piece) for piece, _ in sorted(after.get_vocab().items(), key=lambda item: item[1])]
    for text in (f"{INDIC[0][:-1]} [MASK]", f"{OTHERS[0]} [MASK]", f"{OTHERS[1]} [MASK]"):
        x, y = before.encode(text), after.encode(text)
        assert x.tokens == y.tokens
        logits = [
            model._engine.run([np.array(e.ids, np.int32)], None, np.array([e.tokens.index("[MASK]")]))
            for model, e in zip(files, (x, y), strict=True)
        ]
        np.testing.assert_array_equal(logits[0][:, left], logits[1])
    # The same trimming in a plan; without it the plan is refused.
    command = ["compress", str(folder), "-o", str(small), "--prune-ffn", "0.2", "--plan", str(plan), "--json"]
    assert main([*command, "--dry-run", *trim]) == 0
    vocabulary = json.loads(capsys.readouterr().out)["plan"]["vocabulary"]
    assert (vocabulary["texts"], vocabulary["sample"]) == (125, "calibration")
    assert 0 < vocabulary["changed"] <= 5
    follow = ["compress", str(folder), "-o", str(small), "--plan", str(plan), "--json"]
    assert main([*follow, *trim]) == 0
    assert json.loads(capsys.readouterr().out)["vocabulary"] == vocabulary
    assert main(follow) == 1
    assert "give the same --keep-script" in capsys.readouterr().err


def test_by_default_nothing_is_trimmed() -> None:
    loaded = checkpoint("WordPiece")
    assert trim_vocabulary(loaded) == (loaded, None)


def test_prompts_stay_and_ids_of_settings_are_renumbered() -> None:
    loaded = checkpoint("WordPiece")
    mask = tokenizers()["WordPiece"].token_to_id("[MASK]")
    dot = tokenizers()["WordPiece"].token_to_id(".")
    cyrillic = tokenizers()["WordPiece"].token_to_id("М")
    prompts = {"query": "Москва: "}
    left, _ = trim_vocabulary(replace(loaded, text={**TEXT, "prompts": prompts}), "Latn")
    assert left.tokenizer_json is not None
    kept = Tokenizer.from_buffer(left.tokenizer_json).get_vocab()
    end = min(set(tokenizers()["WordPiece"].get_vocab()) - set(kept))
    settings = {
        "prompts": prompts,
        "mask_token_id": mask,
        "skipped_ids": [dot, cyrillic],
        "end_token_ids": [3, tokenizers()["WordPiece"].token_to_id(end)],
        "expansion": {"length": 8, "fixed": True, "attend": False, "token_id": mask},
    }
    loaded = replace(loaded, text={**TEXT, **settings})
    after, _ = trim_vocabulary(loaded, "Latn")
    x, y = both(loaded, after, "Москва: fine")
    assert x.tokens == y.tokens
    new = Tokenizer.from_buffer(after.tokenizer_json).token_to_id
    assert after.text["mask_token_id"] == after.text["expansion"]["token_id"] == new("[MASK]")
    assert after.text["skipped_ids"] == [i for i in (new("."), new("М")) if i is not None]
    assert after.text["end_token_ids"] == [3, new(end)], "what no text becomes stays where generating ends with it"
    assert new(end) is not None


def test_the_end_of_a_text_in_clip_stays_the_highest() -> None:
    pieces = Pieces(clip_pairs().to_str().encode())
    kept = sorted(pieces.always())
    assert kept[-1] == clip_pairs().token_to_id("<|endoftext|>")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keep_scripts": "hi"}, "keep_scripts names 'hi', which is no script of Unicode; use codes of ISO 15924"),
        ({"keep_scripts": " "}, "keep_scripts names no script"),
        ({"keep_vocabulary": []}, "keep_vocabulary holds no text"),
        ({"keep_vocabulary": [[1, 2]]}, "keep_vocabulary holds"),
        ({"keep_scripts": "Latn", "calibration": [[1, 2, 3]]}, "calibration holds token ids, which are others"),
    ],
)
def test_what_cannot_be_kept_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trim_vocabulary(checkpoint("WordPiece"), **arguments)
    with pytest.raises(ValueError, match="has no tokenizer"):
        trim_vocabulary(replace(checkpoint("WordPiece"), tokenizer_json=None), "Latn")


def test_without_the_package_of_scripts_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "regex", None)
    with pytest.raises(ImportError, match=r"pip install 'pocketformer\[compress\]'"):
        trim_vocabulary(checkpoint("WordPiece"), "Latn")

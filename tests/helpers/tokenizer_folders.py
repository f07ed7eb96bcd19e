"""Tokenizers of every kind, trained in a moment on odd texts, as the folders in which checkpoints come."""

from __future__ import annotations

import json
import math
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from helpers.corpus import texts
from helpers.odd_texts import odd_texts

BERT_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
FAIRSEQ_TOKENS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
ROWS = 6000  # more than any of the vocabularies


@cache
def word_pieces() -> dict[str, int]:
    """Cased pieces with marks, so that every setting of case and accents changes ids."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=5000, special_tokens=[*BERT_TOKENS, *FAIRSEQ_TOKENS], limit_alphabet=1500, show_progress=False
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    return tokenizer.get_vocab()


@cache
def byte_pairs() -> tuple[dict[str, int], list[tuple[str, str]]]:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        special_tokens=FAIRSEQ_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]


@cache
def unigram() -> list[tuple[str, float]]:
    """Pieces with scores, without special tokens: the parts of words that save most, scored by how often they come."""
    counts: Counter[str] = Counter()
    for text in _corpus():
        for word in text.split():
            marked = f"▁{word}"[:40]
            counts.update(marked[i:j] for i in range(len(marked)) for j in range(i + 1, min(i + 7, len(marked)) + 1))
    often = [(text, count) for text, count in counts.items() if count > 2 and not set(text) & set("<>[]")]
    best = sorted(often, key=lambda item: (-item[1] * len(item[0]), item[0]))[:4000]
    total = sum(count for _, count in best)
    return [(text, math.log(count / total)) for text, count in best]


def _corpus() -> list[str]:
    # Whole texts in lower case, title case and as they are: pieces of every case, with and without accents.
    plain = [text for text in odd_texts() if len(text) < 100]
    return [*texts()[:200], *plain, *(text.lower() for text in plain), *(text.title() for text in texts()[:60])]


def write(folder: Path, model_type: str, **files: Any) -> Path:
    """A folder with ``config.json`` and ``files``: JSON for values, text as it is; ``__`` in a name is a dot."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type, "vocab_size": ROWS}))
    for name, content in files.items():
        path = folder / name.replace("__", ".")
        path.write_text(content if isinstance(content, str) else json.dumps(content, ensure_ascii=False), "utf-8")
    return folder


def vocab_txt(vocabulary: dict[str, int]) -> str:
    return "".join(f"{text}\n" for text in sorted(vocabulary, key=lambda text: vocabulary[text]))


def merges_txt(merges: list[tuple[str, str]]) -> str:
    return "#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in merges)


def tokenizer_json(model: dict[str, Any], special: list[str], **parts: Any) -> dict[str, Any]:
    """A ``tokenizer.json`` whose special tokens are in the vocabulary already."""
    vocabulary = model["vocab"]
    index = vocabulary if isinstance(vocabulary, dict) else {text: i for i, (text, _) in enumerate(vocabulary)}
    added = [
        {"id": index[text], "content": text, "single_word": False, "lstrip": text == "<mask>", "rstrip": False}
        | {"normalized": False, "special": True}
        for text in special
    ]
    steps = dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder"))
    return {"version": "1.0", **steps, "added_tokens": added, "model": model, **parts}

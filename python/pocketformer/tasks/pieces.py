"""Long texts in pieces whose tokens, one after another, are those of the whole.

A text is cut before a single blank between two letters that have a case: no word of another script needs to be known,
and nothing that normalises or splits there looks across. Which tokenizers do so is a list; others get whole texts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_CHARACTERS = {"BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Nmt", "Precompiled", "StripAccents"}
"""Normalizers that change characters, or those that belong together as one."""

_BLANKS = (r"\s+", " {2,}", r"\s{2,}")
"""Expressions of blanks alone, which become one."""

_BRANCHES = {
    *("(?i:'s", "'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'d)"),
    *(r" ?\p{L}+", r"[^\r\n\p{L}\p{N}]?\p{L}+", r"[\p{L}]+", r"\p{L}+"),
    *(r" ?\p{N}+", r"\p{N}{1,3}", r"\p{N}", r"[\p{N}]"),
    *(r" ?[^\s\p{L}\p{N}]+", r" ?[^\s\p{L}\p{N}]+[\r\n]*", r"[^\s\p{L}\p{N}]+"),
    *(r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+", r"<\|startoftext\|>", r"<\|endoftext\|>"),
}
"""Of expressions of words: none has a blank behind its first character unless it is all blanks."""


def separable(tokenizer: Tokenizer) -> bool:
    """Whether the tokens of a text are those of its :func:`pieces`."""
    normalizers = _steps(tokenizer.normalizer, "normalizers")
    splitters = _steps(tokenizer.pre_tokenizer, "pretokenizers")
    known = all(map(_local, normalizers)) and None not in (found := [_splits(step) for step in splitters])
    added = (token.content for token in tokenizer.get_added_tokens_decoder().values())
    return (
        known
        and any(found)
        and not getattr(tokenizer.model, "dropout", None)
        and not any(re.search(r"\w[\s▁]", content) for content in added)
    )


def pieces(text: str, size: int) -> Iterator[tuple[int, int]]:
    """Where parts of about ``size`` characters begin and end: longer ones where there is no place to cut."""
    begin = 0
    while begin < len(text):
        end = cut(text, begin + size)
        yield begin, end
        begin = end


def cut(text: str, at: int) -> int:
    """The first place from ``at`` on where ``text`` may be cut, or its end."""
    while 0 < (at := text.find(" ", at)) < len(text) - 1:
        if _cased(text[at - 1]) and _cased(text[at + 1]):
            return at
        at += 1
    return len(text)


def _cased(character: str) -> bool:
    return character.isalpha() and character.lower() != character.upper()


def _steps(component: Any, parts: str) -> list[dict[str, Any]]:
    """The steps of a normalizer or pre-tokenizer in order, as tokenizer.json has them."""
    if component is None:
        return []
    pending, found = [json.loads(component.__getstate__())], []
    while pending:
        step = pending.pop(0)
        if step["type"] == "Sequence":
            pending = [*step[parts], *pending]
        else:
            found.append(step)
    return found


def _local(step: dict[str, Any]) -> bool:
    """Of a normalizer: that a blank between letters stays one, and nothing else depends on both sides of it."""
    if step["type"] != "Replace":
        return step["type"] in _CHARACTERS
    pattern = step["pattern"]
    if "Regex" in pattern:
        return pattern["Regex"] in _BLANKS and step["content"] == " "
    return not re.search(r"[\s▁]", pattern["String"])


def _splits(step: dict[str, Any]) -> bool | None:
    """Whether a pre-tokenizer splits before a blank between letters; None where it might do anything."""
    kind = step["type"]
    if kind in ("BertPreTokenizer", "Whitespace", "WhitespaceSplit"):
        return True
    if kind in ("Digits", "Punctuation"):
        return False
    if kind in ("ByteLevel", "Metaspace"):
        return bool(step.get("use_regex" if kind == "ByteLevel" else "split", True))
    if kind != "Split" or (step["behavior"], step["invert"]) not in (("Isolated", False), ("Removed", True)):
        return None
    branches = re.split(r"(?<!\\)\|", step["pattern"].get("Regex", ""))
    words = any(branch.endswith((r"\p{L}+", r"\p{L}]+")) for branch in branches)
    return True if words and set(branches) <= _BRANCHES else None

"""Where words of a text end: what entities and answers are widened to."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Scripts that put no blanks between words: Thai and Lao, Tibetan, Burmese, Khmer, kana, and Chinese characters.
_BLANKLESS = (
    (0x0E00, 0x0EFF),
    (0x0F00, 0x0FFF),
    (0x1000, 0x109F),
    (0x1780, 0x17FF),
    (0x3040, 0x30FF),
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0xFF66, 0xFF9F),
    (0x20000, 0x3FFFF),
)


def continuing_prefix(tokenizer: Tokenizer) -> str:
    """What marks a piece that continues a word, such as ``##``; empty for tokenizers that know no words."""
    return getattr(tokenizer.model, "continuing_subword_prefix", None) or ""


def is_blankless(character: str) -> bool:
    """Whether the script of ``character`` puts no blanks between words, so that only pieces can be told apart."""
    code = ord(character)
    return code >= 0x0E00 and any(low <= code <= high for low, high in _BLANKLESS)


def continues_word(text: str, at: int) -> bool:
    """Whether ``text[at - 1]`` and ``text[at]`` belong to one word of a script that puts blanks between words."""
    if not 0 < at < len(text):
        return False
    pair = text[at - 1 : at + 1]
    return all(_is_letter(character) and not is_blankless(character) for character in pair)


def _is_letter(character: str) -> bool:
    return character.isalnum() or unicodedata.category(character).startswith("M")  # accents and vowel signs

"""The pieces of a ``tokenizer.json``: those that texts in some scripts can become, and the file without the others."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import cache, cached_property
from itertools import pairwise
from math import inf
from typing import Any

KINDS = ("WordPiece", "Unigram", "BPE", "WordLevel")
COMPOUND = {"Jpan": ("Hani", "Hira", "Kana"), "Kore": ("Hang", "Hani"), "Hans": ("Hani",), "Hant": ("Hani",)}
"""Codes of ISO 15924 that stand for several scripts of Unicode, or for a way to write one."""


def script_filter(scripts: Iterable[str]) -> Callable[[str], bool]:
    """Whether a character is of one of ``scripts`` (``Deva``, ``Latin``), or is used with them all: digits,
    punctuation, symbols, and marks that take the script of what they stand on.

    By the Script_Extensions of Unicode, as the package regex has them. Raises ValueError for an unknown script,
    ImportError without that package.
    """
    try:
        import regex  # type: ignore[import-untyped]
    except ImportError:
        raise ImportError(
            "scripts are told by the package regex, which is not installed: pip install 'pocketformer[compress]'"
        ) from None
    classes = [r"\p{sc=Zyyy}", r"\p{sc=Zinh}"]
    for script in scripts:
        for code in COMPOUND.get(script.capitalize(), (script,)):
            try:
                classes.append(regex.compile(rf"\p{{scx={code}}}").pattern)
            except regex.error:
                raise ValueError(
                    f"keep_scripts names {script!r}, which is no script of Unicode; use codes of ISO 15924 such as "
                    "Latn, Deva, Telu, Knda, Cyrl, Arab, Hani, Jpan"
                ) from None
    pattern = regex.compile(f"[{''.join(classes)}]")
    known: dict[str, bool] = {}

    def keeps(character: str) -> bool:
        if character not in known:
            known[character] = pattern.match(character) is not None
        return known[character]

    return keeps


class Pieces:
    """The pieces of ``content`` by id. Raises ValueError for a kind of tokenizer that is not known."""

    def __init__(self, content: bytes) -> None:
        self.content: dict[str, Any] = json.loads(content)
        model = self.content["model"]
        self.kind = model.get("type")
        if self.kind not in KINDS:
            raise ValueError(f"the tokenizer is a {self.kind!r} model; only {', '.join(KINDS)} can be trimmed")
        vocabulary = model["vocab"]
        if self.kind == "Unigram":
            self.ids = {piece: index for index, (piece, _) in enumerate(vocabulary)}
        else:
            self.ids = dict(vocabulary)
        self.added = {str(token["content"]): int(token["id"]) for token in self.content.get("added_tokens") or []}
        self.prefix: str = model.get("continuing_subword_prefix") or ""
        self.suffix: str = model.get("end_of_word_suffix") or ""
        steps = [self.content.get("normalizer"), self.content.get("pre_tokenizer")]
        self.bytes = any(step.get("type") == "ByteLevel" for step in _steps(steps))
        self._splits_punctuation = any(step.get("type") == "BertPreTokenizer" for step in _steps(steps))

    def always(self) -> set[int]:
        """Ids that stay whatever is asked for: special and added tokens, the unknown one, and single bytes."""
        model = self.content["model"]
        kept = set(self.added.values())
        kept |= {self.ids[token] for token in (model.get("unk_token"),) if token in self.ids}
        if self.kind == "Unigram":
            if model.get("unk_id") is not None:
                kept.add(model["unk_id"])
            # What an unknown character costs is reckoned from the least score: without it texts could split otherwise.
            kept.add(min(range(len(model["vocab"])), key=lambda index: float(model["vocab"][index][1])))
        for piece, index in self.ids.items():
            if (self.bytes and len(self._bare(piece)) == 1) or _is_byte(piece):
                kept.add(index)
        for step in _steps([self.content.get("post_processor")]):
            kept |= {pair[1] for pair in (step.get("sep"), step.get("cls")) if pair}
            kept |= {index for token in _tokens(step) for index in token["ids"]}
        return kept

    def in_scripts(self, keeps: Callable[[str], bool]) -> set[int]:
        """Ids of the pieces that a text can become whose characters ``keeps`` holds, once they are normalised.

        Every piece of such a text, and every piece that it is merged from, is a part of it: such texts are split as
        they were.
        """
        parts = self._parts_of_characters(keeps) if self.bytes else None
        return {
            index
            for piece, index in self.ids.items()
            if (_in_bytes(self._bare(piece), keeps, parts) if parts else all(map(keeps, self._bare(piece))))
            and self._reachable(piece)
        }

    def with_parts(self, kept: Collection[int]) -> set[int]:
        """``kept`` and what they are merged from, so that texts that were split into them still are; and the single
        characters that they are written with, so that other words are spelled rather than unknown."""
        result = set(kept)
        for piece in [piece for piece, index in self.ids.items() if index in result]:
            parts = self._merged(piece) if self.kind == "BPE" else self._letters(piece)
            result |= {self.ids[part] for part in parts if part in self.ids}
        return result

    def rewritten(self, new: Mapping[int, int]) -> bytes:
        """The file with the ids of ``new`` alone, renumbered by it; ``new`` must keep their order."""
        content = json.loads(json.dumps(self.content))
        model = content["model"]
        if self.kind == "Unigram":
            model["vocab"] = [entry for index, entry in enumerate(model["vocab"]) if index in new]
            if model.get("unk_id") is not None:
                model["unk_id"] = new[model["unk_id"]]
        else:
            model["vocab"] = {piece: new[index] for piece, index in self.ids.items() if index in new}
        if "merges" in model:
            model["merges"] = [
                entry
                for entry, pair in zip(model["merges"], self._merges, strict=True)
                if all(self.ids.get(piece, -1) in new for piece in (*pair, self._joined(*pair)))
            ]
        for token in content.get("added_tokens") or []:
            token["id"] = new[token["id"]]
        for step in _steps([content.get("post_processor")]):
            for pair in (step.get("sep"), step.get("cls")):
                if pair:
                    pair[1] = new[pair[1]]
            for token in _tokens(step):
                token["ids"] = [new[index] for index in token["ids"]]
        padding = content.get("padding")
        if padding:
            padding["pad_id"] = new.get(padding["pad_id"], 0)
        return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()

    def _bare(self, piece: str) -> str:
        """Without the marks that say where in a word a piece stands."""
        text = piece.removeprefix(self.prefix) if self.prefix else piece
        return text.removesuffix(self.suffix) if self.suffix and len(text) > len(self.suffix) else text

    def _reachable(self, piece: str) -> bool:
        """False where a word can never hold the piece, such as ``[unused7]`` where punctuation stands alone."""
        if not self._splits_punctuation:
            return True
        from tokenizers.pre_tokenizers import BertPreTokenizer

        return len(BertPreTokenizer().pre_tokenize_str(self._bare(piece))) <= 1

    @cached_property
    def _merges(self) -> list[tuple[str, str]]:
        merges = self.content["model"].get("merges") or []
        pairs = (entry.split(" ", 1) if isinstance(entry, str) else entry for entry in merges)
        return [(left, right) for left, right in pairs]

    @cached_property
    def _ranks(self) -> dict[tuple[str, str], int]:
        return {pair: rank for rank, pair in enumerate(self._merges)}

    def _joined(self, left: str, right: str) -> str:
        return left + (right.removeprefix(self.prefix) if self.prefix else right)

    def _merged(self, piece: str) -> Iterator[str]:
        """What ``piece`` is merged from, in order."""
        begins, ends = bool(self.prefix) and piece.startswith(self.prefix), bool(self.suffix)
        bare = self._bare(piece)
        symbols = [c if i == 0 and not begins else self.prefix + c for i, c in enumerate(bare)]
        if symbols and ends and piece.endswith(self.suffix):
            symbols[-1] += self.suffix
        yield from symbols
        while len(symbols) > 1:
            rank, place = min((self._ranks.get(pair, inf), place) for place, pair in enumerate(pairwise(symbols)))
            if rank == inf:
                return
            symbols[place : place + 2] = [self._joined(*symbols[place : place + 2])]
            yield symbols[place]

    def _letters(self, piece: str) -> Iterator[str]:
        for letter in self._bare(piece):
            yield letter
            if self.prefix:
                yield self.prefix + letter

    def _parts_of_characters(self, keeps: Callable[[str], bool]) -> tuple[set[bytes], set[bytes], set[bytes]]:
        """First, last and middle bytes of the UTF-8 of all characters that ``keeps`` holds."""
        from unicodedata import category

        first, last, middle = set(), set(), set()
        for code in range(0x80, 0x110000):
            character = chr(code)
            if category(character) not in ("Cn", "Co", "Cs") and keeps(character):
                written = character.encode()
                first |= {written[:end] for end in range(1, len(written))}
                last |= {written[begin:] for begin in range(1, len(written))}
                middle |= {written[b:e] for b in range(1, len(written)) for e in range(b + 1, len(written))}
        return first, last, middle


def _in_bytes(piece: str, keeps: Callable[[str], bool], parts: tuple[set[bytes], set[bytes], set[bytes]]) -> bool:
    """Whether a piece of byte-level BPE is a part of a text whose characters ``keeps`` holds: it may begin and end
    within a character."""
    letters = _alphabet()
    if any(letter not in letters for letter in piece):
        return False
    written = bytes(letters[letter] for letter in piece)
    first, last, middle = parts
    begin = next((i for i, byte in enumerate(written) if byte & 0xC0 != 0x80), len(written))
    if begin == len(written):
        return written in last or written in middle
    head, rest = written[:begin], written[begin:]
    text = rest.decode("utf-8", "ignore")
    tail = rest[len(text.encode()) :]
    return (not head or head in last) and (not tail or tail in first) and all(map(keeps, text))


@cache
def _alphabet() -> dict[str, int]:
    """The letters by which byte-level BPE writes bytes: printable ones by themselves, the others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


def _is_byte(piece: str) -> bool:
    """Whether a piece stands for a byte that no other piece covers (``<0x0A>``)."""
    return len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">")


def _steps(parts: Iterable[Any]) -> Iterator[dict[str, Any]]:
    """The steps of normalisers, pre-tokenizers or post-processors, sequences resolved."""
    for part in parts:
        if isinstance(part, dict):
            yield part
            for key in ("normalizers", "pretokenizers", "processors"):
                yield from _steps(part.get(key) or [])


def _tokens(step: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The special tokens of a template."""
    special = step.get("special_tokens")
    return list(special.values()) if isinstance(special, dict) else []

"""The files of a tokenizer: its settings, and where its vocabulary comes from."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError, UnsupportedModelError
from .config import read_json
from .sentencepiece import CONTROL, USER_DEFINED, read_sentencepiece

if TYPE_CHECKING:
    from tokenizers.processors import PostProcessor

WORD_PIECE = ("vocab.txt",)
BYTE_PAIRS = ("vocab.json", "merges.txt")
SENTENCE_PIECE = ("tokenizer.model", "sentencepiece.bpe.model", "spiece.model")
_VOCABULARIES = (*WORD_PIECE, *BYTE_PAIRS, *SENTENCE_PIECE, "bpe.codes", "tiktoken.model")


class Settings:
    """What ``tokenizer_config.json`` says, after ``overrides`` of sentence-transformers."""

    def __init__(self, folder: Path, overrides: Mapping[str, Any] | None = None) -> None:
        self.folder = folder
        self.path = folder / "tokenizer_config.json"
        self.values: dict[str, Any] = read_json(self.path) if self.path.is_file() else {}
        self.overrides = dict(overrides or {})
        self.class_name = self._text("tokenizer_class")
        self.values.update(self.overrides)

    @property
    def max_length(self) -> int | None:
        """Tokens at which texts are cut, or None; transformers writes 1e30 where there is no limit."""
        value = self.values.get("model_max_length", self.values.get("max_len"))
        if value is None:
            return None
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not value >= 1:
            raise CheckpointError(f"{self.path}: 'model_max_length' is {value!r}; it must be a number of at least 1")
        return int(min(value, 2**31 - 1))

    def flag(self, key: str, default: bool) -> bool:
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            raise CheckpointError(f"{self.path}: {key!r} is {value!r}; it must be true or false")
        return value

    def optional_flag(self, key: str) -> bool | None:
        return None if self.values.get(key) is None else self.flag(key, False)

    def side(self, default: str) -> str:
        value = self.values.get("truncation_side", default)
        if value not in ("left", "right"):
            raise CheckpointError(f"{self.path}: 'truncation_side' is {value!r}; it must be 'left' or 'right'")
        return str(value)

    def refuse(self, key: str, why: str) -> None:
        """Raises when ``key`` is set to anything but false, null or nothing."""
        if self.values.get(key):
            raise UnsupportedModelError(f"{self.path}: {key!r} is {self.values[key]!r}; {why}")

    def _text(self, key: str) -> str | None:
        value = self.values.get(key)
        if value is not None and not isinstance(value, str):
            raise CheckpointError(f"{self.path}: {key!r} is {value!r}; it must be a string")
        return value


@dataclass(frozen=True)
class TokenizerFiles:
    """What the vocabulary is made of, from ``tokenizer.json`` or from older files.

    ``vocabulary`` maps texts to ids (WordPiece, byte pairs) or lists texts with scores (Unigram). ``json`` is the
    parsed ``tokenizer.json``, or None where there is none.
    """

    path: Path
    json: dict[str, Any] | None = None
    vocabulary: Any = None
    merges: list[tuple[str, str]] | None = None
    charsmap: bytes | None = None
    control_tokens: tuple[tuple[str, bool], ...] = ()

    @classmethod
    def read(cls, folder: Path, vocabulary_files: tuple[str, ...]) -> TokenizerFiles | None:
        """``tokenizer.json`` of ``folder``, else the files that are named; None where it has no tokenizer at all.

        Raises:
            CheckpointError: a file is damaged.
            UnsupportedModelError: there is a vocabulary, but of another kind.
        """
        path = folder / "tokenizer.json"
        if path.is_file():
            return cls._from_json(path)
        if vocabulary_files == SENTENCE_PIECE:
            found = next((folder / name for name in vocabulary_files if (folder / name).is_file()), None)
            return None if found is None else cls._from_sentencepiece(found)
        if vocabulary_files and all((folder / name).is_file() for name in vocabulary_files):
            return cls._from_lists(folder, vocabulary_files)
        other = [name for name in _VOCABULARIES if (folder / name).is_file()]
        if other:
            needed = " and ".join(vocabulary_files) or "tokenizer.json"
            raise UnsupportedModelError(
                f"{folder} has {other[0]}, but this tokenizer is read from {needed}: load it with AutoTokenizer and "
                "save it with save_pretrained, which writes tokenizer.json"
            )
        return None

    @classmethod
    def _from_json(cls, path: Path) -> TokenizerFiles:
        content = read_json(path)
        model = content.get("model")
        if not isinstance(model, dict):
            raise CheckpointError(f"{path} has no 'model'; save the tokenizer with save_pretrained")
        vocabulary, merges = model.get("vocab"), model.get("merges")
        if isinstance(vocabulary, list):
            vocabulary = [tuple(entry) if isinstance(entry, list) else entry for entry in vocabulary]
        if isinstance(merges, list):
            merges = [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in merges]
        return cls(path, content, vocabulary, merges, _charsmap(content.get("normalizer")))

    @classmethod
    def _from_sentencepiece(cls, path: Path) -> TokenizerFiles:
        model = read_sentencepiece(path)
        control = tuple((text, kind == CONTROL) for text, _, kind in model.pieces if kind in (CONTROL, USER_DEFINED))
        return cls(path, None, model.vocabulary, None, model.charsmap, control)

    @classmethod
    def _from_lists(cls, folder: Path, names: tuple[str, ...]) -> TokenizerFiles:
        from tokenizers.models import BPE, WordPiece

        paths = [str(folder / name) for name in names]
        try:
            if names == WORD_PIECE:
                return cls(folder / names[0], None, WordPiece.read_file(*paths))
            vocabulary, merges = BPE.read_file(*paths)
        except Exception as error:
            raise CheckpointError(f"{' or '.join(paths)} is damaged ({error}); download it again") from error
        return cls(folder / names[0], None, vocabulary, merges)

    def post_processor(self) -> PostProcessor | None:
        """The post-processor of ``tokenizer.json``."""
        from tokenizers import Tokenizer

        if self.json is None or self.json.get("post_processor") is None:
            return None
        empty = {"type": "WordLevel", "vocab": {}, "unk_token": ""}
        shell = {"version": "1.0", "added_tokens": [], "post_processor": self.json["post_processor"], "model": empty}
        found: PostProcessor | None = Tokenizer.from_str(json.dumps(shell)).post_processor
        return found


def _charsmap(normalizer: Any) -> bytes | None:
    """SentencePiece's compiled normalisation, from the first step that holds one."""
    steps = normalizer.get("normalizers", [normalizer]) if isinstance(normalizer, dict) else []
    for step in steps:
        if isinstance(step, dict) and step.get("type") == "Precompiled" and step.get("precompiled_charsmap"):
            return base64.b64decode(step["precompiled_charsmap"])
    return None

"""Texts to token ids with the tokenizer that the pocket file carries."""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..engine import Ids
from ..errors import PocketFileError
from ..pocketfile import PocketFile

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

CHUNK = 32  # texts tokenized at once: encodings hold some hundred bytes a token until their ids are taken
QUESTION_STRIDE = 128  # tokens that neighbouring windows of a long context share


class TextReader:
    """Tokenizes for one model; the tokenizer is loaded when the first text comes.

    Texts longer than ``max_length`` tokens are cut and a UserWarning says so once. Where the model answers questions,
    inputs are pairs and a long context is spread over overlapping windows instead.
    """

    def __init__(self, file: PocketFile, threads: int) -> None:
        self.max_length: int = min(file.text.get("max_length") or file.graph.max_length, file.graph.max_length)
        self._file = file
        self._parallel = threads > 1
        self._pairs = file.model["task"] == "answer"
        self._typed = file.graph.type_vocab_size > 1
        self._lock = threading.Lock()
        self._tokenizer: Tokenizer | None = None
        self._warned = False

    @property
    def tokenizer(self) -> Tokenizer:
        """Raises ValueError when the file has no tokenizer, PocketFileError when it cannot be read."""
        with self._lock:
            if self._tokenizer is None:
                self._tokenizer = self._load()
            return self._tokenizer

    def sequences(self, texts: Sequence[str]) -> list[Ids]:
        """The ids of each text, special tokens included."""
        result: list[Ids] = []
        cuts: list[int] = []
        for begin in range(0, len(texts), CHUNK):
            encodings = self._encode(texts[begin : begin + CHUNK], fast=True)
            result += [_array(encoding.ids) for encoding in encodings]
            cuts += self._cuts(encodings)
        self._warn(cuts)
        return result

    def encodings(self, texts: Sequence[str]) -> list[Encoding]:
        """The encoding of each text, with offsets and word numbers."""
        encodings = self._encode(texts, fast=False)
        self._warn(self._cuts(encodings))
        return encodings

    def windows(self, question: str, context: str) -> list[Encoding]:
        """``question`` with each window of ``context``."""
        with _explained(
            ValueError,
            f"the question {question[:60]!r} leaves no room for its context in {self.max_length} tokens: shorten it",
        ):
            encoding = self.tokenizer.encode(self._prepared(question), self._prepared(context))
        return [encoding, *encoding.overflowing]

    def types(self, encodings: Iterable[Encoding]) -> list[Ids] | None:
        """The token types of pairs, or None for a model without them."""
        return [_array(encoding.type_ids) for encoding in encodings] if self._typed else None

    def _encode(self, texts: Sequence[str], fast: bool) -> list[Encoding]:
        tokenizer = self.tokenizer
        prepared = [self._prepared(text) for text in texts]
        batch = getattr(tokenizer, "encode_batch_fast", tokenizer.encode_batch) if fast else tokenizer.encode_batch
        with _explained(PocketFileError, f"{self._file.path}: its tokenizer fails: compress the model again"):
            if len(prepared) == 1 or not self._parallel:  # encode_batch would start the tokenizer's own threads
                encodings = [tokenizer.encode(text) for text in prepared]
            else:
                encodings = batch(prepared)
        for text, encoding in zip(texts, encodings, strict=True):
            if not encoding.ids:
                raise ValueError(f"the text {text[:60]!r} has no tokens, and this tokenizer adds none; leave it out")
        return encodings

    def _cuts(self, encodings: Sequence[Encoding]) -> list[int]:
        """How many tokens each text lost."""
        special = self.tokenizer.num_special_tokens_to_add(False)
        return [sum(len(part.ids) - special for part in encoding.overflowing) for encoding in encodings]

    def _warn(self, cuts: Sequence[int]) -> None:
        if any(cuts) and not self._warned:
            self._warned = True
            warnings.warn(
                f"{sum(cut > 0 for cut in cuts)} of {len(cuts)} texts are longer than the {self.max_length} tokens "
                f"this model reads; {max(cuts)} tokens were cut from the end of the longest: split long texts (later "
                "cuts are not reported)",
                UserWarning,
                stacklevel=_caller(),
            )

    def _prepared(self, text: str) -> str:
        if not isinstance(text, str):
            raise TypeError(f"a text is {type(text).__name__}; pass str, or call the model on token ids")
        return text.lower() if self._file.text.get("lowercase") else text

    def _load(self) -> Tokenizer:
        content = self._file.tokenizer()
        if content is None:
            raise ValueError(
                f"{self._file.path} holds no tokenizer: compress a folder with tokenizer.json, or call the model on "
                "token ids"
            )
        from tokenizers import Tokenizer

        with _explained(PocketFileError, f"{self._file.path}: the tokenizer cannot be used: compress the model again"):
            tokenizer: Tokenizer = Tokenizer.from_buffer(content)
            tokenizer.no_padding()
            if self._pairs:
                tokenizer.enable_truncation(
                    self.max_length, stride=min(QUESTION_STRIDE, self.max_length // 4), strategy="only_second"
                )
            else:
                tokenizer.enable_truncation(self.max_length)
        return tokenizer


@contextmanager
def _explained(kind: type[Exception], message: str) -> Iterator[None]:
    """What the tokenizers library raises, bare Exceptions and Rust's panics, as ``kind``."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, MemoryError, TypeError):
        raise
    except BaseException as error:  # a panic is no Exception
        raise kind(f"{message} ({error})") from None


def as_list(texts: str | Iterable[str]) -> tuple[list[str], bool]:
    """The texts as a list, and whether there was a single one."""
    if isinstance(texts, str):
        return [texts], True
    if isinstance(texts, bytes):
        raise TypeError("texts is bytes; decode them to str")
    return list(texts), False


def _array(values: list[int]) -> Ids:
    return np.array(values, np.int32)


def _caller() -> int:
    """How many frames up the caller of this package is."""
    package, level = str(Path(__file__).parent.parent), 1
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(package):
        frame, level = frame.f_back, level + 1
    return level

"""Texts to token ids with the tokenizer that the pocket file carries."""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from ..engine import Ids
from ..errors import PocketFileError
from ..pocketfile import PocketFile
from .inputs import Text
from .pieces import cut, pieces, separable
from .windows import Passage, Window, divide, divide_context, window

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

CHUNK = 32  # texts tokenized at once: encodings hold some hundred bytes a token until their ids are taken
PIECE = 1 << 16  # characters of a long text tokenized at once, where its tokenizer allows it
QUESTION_STRIDE = 128  # tokens that neighbouring windows of a long context share
DOCUMENT_STRIDE = 256  # those that windows of a document share whose tokens are all wanted
TOKENIZERS = 4  # kept: a large vocabulary takes tens of megabytes

Truncation: TypeAlias = Literal["longest_first", "only_first", "only_second", "never"]
"""What is cut of a pair that is too long, as transformers names it; ``only_second`` keeps the rest as windows,
``never`` leaves every text whole."""


class TextReader:
    """Tokenizes for one model; the tokenizer is loaded when the first text comes.

    Texts longer than ``max_length`` tokens, that of the file or of a call, are cut and a UserWarning says so once. Of
    long ones no more is tokenized than that; for the warning the rest is, piece by piece.
    """

    def __init__(self, file: PocketFile, threads: int) -> None:
        self.max_length: int = min(file.text.get("max_length") or file.graph.max_length, file.graph.max_length)
        self._file = file
        self._parallel = threads > 1
        self._typed = file.graph.type_vocab_size > 1
        self._lock = threading.Lock()
        self._tokenizers: dict[tuple[Truncation, int, int], Tokenizer] = {}
        self._warned: set[str] = set()
        self._separable: bool | None = None

    def tokenizer(
        self, truncation: Truncation = "longest_first", max_length: int | None = None, stride: int = 0
    ) -> Tokenizer:
        """Raises ValueError when the file has no tokenizer, PocketFileError when it cannot be read.

        How it truncates is a state of the tokenizer, which several threads use: there is one for each way, of which the
        latest are kept.
        """
        key = truncation, max_length or self.max_length, stride
        with self._lock:
            found = self._tokenizers.pop(key) if key in self._tokenizers else self._load(*key)
            while len(self._tokenizers) >= TOKENIZERS:
                del self._tokenizers[next(iter(self._tokenizers))]
            self._tokenizers[key] = found
            return found

    def any_tokenizer(self) -> Tokenizer:
        """One whose way to truncate does not matter: what is there already."""
        with self._lock:
            found = next(reversed(self._tokenizers.values()), None)
        return self.tokenizer() if found is None else found

    def check_length(self, max_length: int | None) -> int:
        """The tokens at which texts are cut. Raises ValueError for more than the model reads, or too few for a text."""
        if max_length is None:
            return self.max_length
        limit, special = self._file.graph.max_length, self.any_tokenizer().num_special_tokens_to_add(True)
        if not special < max_length <= limit:
            raise ValueError(f"max_length is {max_length}; it must be between {special + 1} and the model's {limit}")
        return max_length

    def sequences(self, texts: Sequence[Text]) -> list[Ids]:
        """The ids of each text or pair, special tokens included."""
        return self.inputs(texts)[0]

    def inputs(
        self,
        texts: Sequence[Text],
        truncation: Truncation = "longest_first",
        name: str = "texts",
        max_length: int | None = None,
    ) -> tuple[list[Ids], list[Ids] | None]:
        """The ids of each text or pair, and their token types where there are pairs and the model knows types.

        Errors call text i ``name[i]``. ``max_length`` is one that :meth:`check_length` allowed.
        """
        ids: list[Ids] = []
        types: list[Ids] = []
        cuts: list[int] = []
        typed = self._typed and any(isinstance(text, tuple) for text in texts)
        for begin in range(0, len(texts), CHUNK):
            chunk = texts[begin : begin + CHUNK]
            encodings = self._encode(chunk, truncation, name, begin, max_length=max_length)
            ids += [_array(encoding.ids) for encoding in encodings]
            if typed:
                types += [_array(encoding.type_ids) for encoding in encodings]
            if "cut" not in self._warned:
                cuts += self._cuts(chunk, encodings, self.tokenizer(truncation, max_length))
        self._warn_of_cuts(len(texts), cuts, max_length)
        return ids, types if typed else None

    def encodings(self, texts: Sequence[str]) -> list[Encoding]:
        """The encoding of each text, with offsets and word numbers."""
        encodings = self._encode(texts, offsets=True)
        self._warn_of_cuts(len(texts), self._cuts(texts, encodings, self.tokenizer()))
        return encodings

    def prefix_length(self, prefix: str, max_length: int | None = None) -> int:
        """Tokens that ``prefix`` has before a text, the special ones at the beginning included."""
        encoding = self._encode([prefix], max_length=max_length)[0]
        last = self.any_tokenizer().get_added_tokens_decoder().get(encoding.ids[-1])
        return len(encoding.ids) - (1 if last is not None and last.special else 0)

    def windows(self, question: str, context: str, max_length: int | None = None) -> list[Passage]:
        """``question`` with each of the overlapping windows of ``context``; a long one is tokenized piece by piece."""
        check_unicode("question", question)
        check_unicode("context", context)
        length = max_length or self.max_length
        stride = min(QUESTION_STRIDE, length // 4)
        tokenizer = self.tokenizer("only_second", length, stride)
        with _explained(
            ValueError,
            f"the question {question[:60]!r} leaves no room for its context in {length} tokens: shorten it",
        ):
            if self._long(context, tokenizer):
                first = self._parts((question, context[: cut(context, 1)]))
                frame = Passage.of(self.tokenizer("never").encode(*first))
                parts = (Passage.of(part, 0, begin) for part, begin in self._pieces(context))
                windows = list(divide_context(parts, frame, length, stride))
            else:
                encoding = tokenizer.encode(*self._parts((question, context)))
                windows = [Passage.of(part) for part in (encoding, *encoding.overflowing)]
        self._warn_of_windows("context", len(windows), length, stride)
        return windows

    def document(self, text: str, max_length: int | None = None) -> tuple[list[Window], int]:
        """The overlapping windows of a document, one where it fits, and the tokens that neighbours share."""
        check_unicode("document", text)
        length = max_length or self.max_length
        stride = min(DOCUMENT_STRIDE, length // 4)
        tokenizer = self.tokenizer("only_first", length, stride)
        with self._refusal("longest_first"):
            if self._long(text, tokenizer):
                parts = (window(text, part, begin) for part, begin in self._pieces(text))
                windows = list(divide(parts, self._frame(text), length, stride))
            else:
                encoding = tokenizer.encode(*self._parts(text))
                windows = [window(text, part) for part in (encoding, *encoding.overflowing)]
        self._warn_of_windows("document", len(windows), length, stride)
        return windows, stride

    def types(self, windows: Iterable[Passage]) -> list[Ids] | None:
        """The token types of pairs, or None for a model without them."""
        return [window.types for window in windows] if self._typed else None

    def _encode(
        self,
        texts: Sequence[Text],
        truncation: Truncation = "longest_first",
        name: str = "texts",
        begin: int = 0,
        offsets: bool = False,
        max_length: int | None = None,
    ) -> list[Encoding]:
        tokenizer = self.tokenizer(truncation, max_length)
        batch = tokenizer.encode_batch if offsets else getattr(tokenizer, "encode_batch_fast", tokenizer.encode_batch)
        for i, text in enumerate(texts, begin):
            if isinstance(text, str) and len(text) > 2 * PIECE:  # of which not all may be read
                check_unicode(f"{name}[{i}]", text)
        try:
            with self._refusal(truncation):
                parts = [self._parts(self._beginning(text, tokenizer)) for text in texts]
                if len(parts) == 1 or not self._parallel:  # encode_batch would start the tokenizer's own threads
                    encodings = [tokenizer.encode(*part) for part in parts]
                else:
                    encodings = batch([part if len(part) == 2 else part[0] for part in parts])
        except TypeError:  # a text that is not Unicode: looked for only then, as looking costs
            for i, text in enumerate(texts, begin):
                check_unicode(f"{name}[{i}]", text)
            raise
        for i, (text, encoding) in enumerate(zip(texts, encodings, strict=True), begin):
            if not len(encoding):
                raise ValueError(
                    f"{name}[{i}], {text!r:.60}, has no tokens, and this tokenizer adds none; leave it out"
                )
        return encodings

    def _long(self, text: Text, tokenizer: Tokenizer) -> bool:
        """Whether a text that is cut at its end can be tokenized piece by piece, and is long enough for that."""
        if not isinstance(text, str) or len(text) <= 2 * PIECE:
            return False
        if self._separable is None:
            self._separable = separable(tokenizer)
        return self._separable and (tokenizer.truncation or {}).get("direction") == "right"

    def _beginning(self, text: Text, tokenizer: Tokenizer) -> Text:
        """A part of a long text that is cut as the whole would be; any other text as it is."""
        if isinstance(text, str) and self._long(text, tokenizer):
            size = PIECE
            while (end := cut(text, size)) < len(text):
                if tokenizer.encode(*self._parts(text[:end])).overflowing:
                    return text[:end]
                size = 4 * end
        return text

    def _pieces(self, text: str) -> Iterator[tuple[Encoding, int]]:
        """The tokens of a long text without special ones, piece by piece, and the character each begins at."""
        tokenizer = self.tokenizer("never")
        for begin, end in pieces(text, PIECE):
            yield tokenizer.encode(self._parts(text[begin:end])[0], add_special_tokens=False), begin

    def _frame(self, text: str) -> Window:
        """The beginning of a long text between its special tokens."""
        return window(text, self.tokenizer("never").encode(*self._parts(text[: cut(text, 1)])))

    def _refusal(self, truncation: Truncation) -> AbstractContextManager[None]:
        if truncation == "only_first":
            return _explained(
                ValueError, f"the second text leaves no room for the first in {self.max_length} tokens: shorten it"
            )
        return _explained(PocketFileError, f"{self._file.path}: its tokenizer fails: compress the model again")

    def _parts(self, text: Text) -> tuple[Any, ...]:
        """The arguments of ``Tokenizer.encode``."""
        parts = (text,) if isinstance(text, str) else text
        return tuple(part.lower() for part in parts) if self._file.text.get("lowercase") else parts

    def _cuts(self, texts: Sequence[Text], encodings: Sequence[Encoding], tokenizer: Tokenizer) -> list[int]:
        """How many tokens each text that was too long lost; 0 of a pair, where it depends on which is counted."""
        special = tokenizer.num_special_tokens_to_add(False)

        def tokens(encoding: Encoding, special: int) -> int:
            return sum(len(part.ids) - special for part in [encoding, *encoding.overflowing])

        def lost(text: Text, encoding: Encoding) -> int:
            if not isinstance(text, str):
                return 0
            if not self._long(text, tokenizer):
                return tokens(encoding, special) - (len(encoding.ids) - special)
            spans = pieces(text, PIECE)
            parts = (self._parts(text[slice(*span)])[0] for span in spans)
            counts = (tokens(tokenizer.encode(part, add_special_tokens=False), 0) for part in parts)
            return sum(counts) - (len(encoding.ids) - special)

        pairs = zip(texts, encodings, strict=True)
        return [lost(text, encoding) for text, encoding in pairs if encoding.overflowing]

    def _warn_of_cuts(self, texts: int, cuts: Sequence[int], max_length: int | None = None) -> None:
        if not cuts:
            return
        longest = f"; {max(cuts)} tokens were cut from the longest" if max(cuts) else " and were cut"
        reads = f"{self.max_length} tokens this model reads" if max_length is None else f"{max_length} of max_length"
        self._warn(
            "cut",
            f"{len(cuts)} of {texts} texts are longer than the {reads}{longest}: split long texts (later cuts are not "
            "reported)",
        )

    def _warn_of_windows(self, what: str, count: int, length: int, shared: int) -> None:
        if count > 1:
            self._warn(
                "windows",
                f"the {what} is longer than the {length} tokens of one pass: it is read in {count} windows that share "
                f"{shared} tokens with the next (later ones are not reported)",
            )

    def _warn(self, kind: str, message: str) -> None:
        """Once for each kind."""
        if kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(message, UserWarning, stacklevel=_caller())

    def _load(self, truncation: Truncation, max_length: int, stride: int) -> Tokenizer:
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
            if truncation == "never":
                tokenizer.no_truncation()
                return tokenizer
            side = (tokenizer.truncation or {}).get("direction", "right")
            if truncation == "only_first" and stride:
                side = "right"  # windows in the order of the document
            tokenizer.enable_truncation(max_length, stride=stride, strategy=truncation, direction=side)
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


def check_unicode(name: str, text: Text) -> None:
    """Raises ValueError where ``text`` holds half of a surrogate pair, which no encoding can carry."""
    for part in (text,) if isinstance(text, str) else text:
        try:
            part.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{name} holds {part[error.start]!a}, half of a surrogate pair, at character {error.start}: repair it "
                "with text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')"
            ) from None


def _array(values: list[int]) -> Ids:
    return np.array(values, np.int32)


def _caller() -> int:
    """How many frames up the caller of this package is."""
    package, level = str(Path(__file__).parent.parent), 1
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(package):
        frame, level = frame.f_back, level + 1
    return level

"""What a model is run on while its linears are watched: token ids of texts, made up, or rows of numbers."""

from __future__ import annotations

import heapq
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from ..graph import Array, Graph

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from ..sources.huggingface import Checkpoint

Text: TypeAlias = str | tuple[str, str]
Samples: TypeAlias = Iterable[Text] | Iterable[Sequence[int] | Array]
"""Texts, pairs of texts, or the token ids of sequences."""

DEFAULT_TEXT = Path(__file__).with_name("calibration.txt")
TOKENS = 24_576
"""Of texts, at most: what more of them add is small (docs/performance.md)."""
FEW_TOKENS = 4096
"""Of our own texts, where nothing has 4 bits: twice as many take half as long again and int8 gains nothing by them."""
LEAST_TOKENS = 256
MOST_UNKNOWN = 0.3
"""Share of unknown tokens from which on texts tell nothing about a vocabulary's words."""
LEAST_SHARE = 4
"""Times what is judged by, that must be there for it to be held out of what is fitted to."""
HELD_OUT = 8
"""One in so many of our own sentences is judged by, where the others are fitted to."""
RANDOM_SEQUENCE = 64
"""Tokens of one random sequence."""
TEXTS_AT_ONCE = 64


@dataclass(frozen=True)
class Calibration:
    """Sequences end to end. ``inputs`` holds, by name, int32 [rows] or float32 [rows, width]; ``lengths`` int64
    [sequences] the rows of each sequence of the domain that the caller of the graph fills. Optional inputs that are
    absent are 0.
    """

    inputs: Mapping[str, Array]
    lengths: Array

    @property
    def rows(self) -> int:
        return int(self.lengths.sum())

    def chunks(self, rows: int) -> Iterator[tuple[slice, Array]]:
        """The rows and the lengths of consecutive sequences, at least one and about ``rows`` rows at a time."""
        begin = first = 0
        ends = np.cumsum(self.lengths)
        for index, end in enumerate(ends):
            if index + 1 == len(ends) or end + self.lengths[index + 1] - begin > rows:
                yield slice(begin, int(end)), self.lengths[first : index + 1]
                begin, first = int(end), index + 1


def parted(whole: Calibration, rows: int) -> tuple[Calibration, Calibration]:
    """``whole`` without some of its sequences, and these, of about ``rows`` rows and spread over it; both are all of it
    where it has too few for that."""
    if whole.rows < LEAST_SHARE * rows or len(whole.lengths) < LEAST_SHARE:
        return whole, whole
    every = max(whole.rows // rows, LEAST_SHARE)
    held = np.arange(len(whole.lengths)) % every == 0
    of_rows = np.repeat(held, whole.lengths)
    parts = [
        Calibration({name: array[rows] for name, array in whole.inputs.items()}, whole.lengths[sequences])
        for rows, sequences in ((~of_rows, ~held), (of_rows, held))
    ]
    return parts[0], parts[1]


def takes_tokens(graph: Graph) -> bool:
    """Whether ``graph`` takes indices of tokens alone, so that random ones can be made up for it."""
    return len(graph.inputs) > 0 and all(entry["dtype"] == "i32" for entry in graph.inputs)


def random_tokens(graph: Graph, tokens: int, seed: int = 0) -> Calibration:
    """About ``tokens`` random tokens. What matters most (the scales of the norms, the channels that always fire) is a
    property of the weights, and no text is needed to see it."""
    length = min(RANDOM_SEQUENCE, graph.max_length)
    lengths = np.full(max(tokens // length, 1), length, np.int64)
    rng = np.random.default_rng(seed)
    inputs = {
        entry["name"]: rng.integers(0, entry["limit"], lengths.sum()).astype(np.int32)
        for entry in graph.inputs
        if not entry.get("optional")
    }
    return Calibration(inputs, lengths)


def calibrate(checkpoint: Checkpoint, samples: Samples | str | os.PathLike[str], tokens: int = TOKENS) -> Calibration:
    """The token ids of ``samples``, at most about ``tokens``: where there are more, a random choice of the samples.

    ``samples`` are texts, pairs, the token ids of sequences, or the path of a UTF-8 file with a text a line, a tab
    between those of a pair. They are read once, one after the other, and cut to the model's length.

    Raises ValueError when they are none of these, too few, not Unicode, or mostly unknown to the model's vocabulary.
    """
    if isinstance(samples, (str, os.PathLike)):
        samples = read_lines(samples)
    if not takes_tokens(checkpoint.graph):
        raise ValueError("calibration holds texts or token ids, which this model does not take; leave it out")
    reader = _Reader(checkpoint)
    chosen = _Sample(tokens)
    iterator = iter(samples)
    begin = 0
    while batch := list(islice(iterator, TEXTS_AT_ONCE)):
        for ids, types in reader.read(batch, begin):
            chosen.add(ids, types)
        begin += len(batch)
    calibration = chosen.calibration(checkpoint.graph)
    if calibration.rows < LEAST_TOKENS:
        raise ValueError(
            f"calibration has {calibration.rows} tokens in {begin} samples; it needs at least {LEAST_TOKENS}: give "
            "more texts, or leave it out"
        )
    reader.check_known()
    return calibration


def default_calibration(
    checkpoint: Checkpoint, tokens: int = TOKENS, held_out: bool | None = None
) -> Calibration | None:
    """Our own sentences as the tokens of ``checkpoint``; None where it takes no text, or not this one. ``held_out``:
    see ``default_texts``."""
    if checkpoint.tokenizer_json is None or not takes_tokens(checkpoint.graph):
        return None
    try:
        return calibrate(checkpoint, default_texts(held_out), tokens)
    except ValueError:
        return None


def default_texts(held_out: bool | None = None) -> list[str]:
    """Each sentence by itself, and runs of them, which are longer and leave their places to other words. ``held_out``:
    every eighth alone, or all but these."""
    sentences = [line for line in DEFAULT_TEXT.read_text(encoding="utf-8").splitlines() if line]
    if held_out is not None:
        sentences = [line for i, line in enumerate(sentences) if (i % HELD_OUT == 0) == held_out]
    order = np.random.default_rng(0).permutation(len(sentences))
    runs, begin = [], 0
    for size in np.resize([2, 3, 5, 8, 12], len(sentences)):
        if begin >= len(sentences):
            break
        runs.append(" ".join(sentences[i] for i in order[begin : begin + size]))
        begin += size
    return list(dict.fromkeys([*sentences, *runs]))


def read_lines(path: str | os.PathLike[str]) -> Iterator[Text]:
    """The lines of a UTF-8 file that are not empty; what a tab parts is a pair."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"calibration: {os.fspath(path)}, line {number} is not UTF-8 (byte 0x{line[error.start]:02x}); "
                    "convert it, such as with iconv -f latin1 -t utf-8"
                ) from None
            first, tab, second = text.partition("\t")
            if text.strip():
                yield (first, second) if tab else text


class _Reader:
    """Samples to token ids and types, and how many of the words were unknown."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.graph, self.text = checkpoint.graph, checkpoint.text
        self.content = checkpoint.tokenizer_json
        self.max_length = min(self.text.get("max_length") or self.graph.max_length, self.graph.max_length)
        self.limit = self.graph.vocab_size
        self.known = self.unknown = 0
        self._tokenizer: Tokenizer | None = None
        self._unknown_id: int | None = None

    def read(self, samples: Sequence[Any], begin: int) -> Iterator[tuple[Array, Array | None]]:
        for index, sample in enumerate(samples, begin):
            name = f"calibration[{index}]"
            if isinstance(sample, str) or (
                isinstance(sample, (tuple, list)) and len(sample) == 2 and all(isinstance(part, str) for part in sample)
            ):
                yield self._text(name, (sample,) if isinstance(sample, str) else tuple(sample))
            else:
                yield self._ids(name, sample), None

    def _ids(self, name: str, sample: Any) -> Array:
        try:
            ids = np.asarray(sample)
        except ValueError:
            ids = np.empty((0, 0))
        if ids.ndim != 1 or not (ids.size == 0 or np.issubdtype(ids.dtype, np.integer)):
            raise ValueError(
                f"{name} is {sample!r:.60}; it must be a text, a pair of texts, or the token ids of one sequence"
            )
        if ids.size and not 0 <= ids.min() <= ids.max() < self.limit:
            raise ValueError(f"{name} holds ids {ids.min()}…{ids.max()}; the model knows 0…{self.limit - 1}")
        return ids[: self.max_length].astype(np.int32)

    def _text(self, name: str, parts: tuple[str, ...]) -> tuple[Array, Array | None]:
        for part in parts:
            try:
                part.encode()
            except UnicodeEncodeError as error:
                raise ValueError(
                    f"{name} holds {part[error.start]!a}, half of a surrogate pair, at character {error.start}: repair "
                    "it with text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')"
                ) from None
        if self.text.get("lowercase"):
            parts = tuple(part.lower() for part in parts)
        try:
            encoding = self.tokenizer.encode(parts[0], *parts[1:])  # type: ignore[arg-type]
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except BaseException as error:  # a panic of the tokenizers library is no Exception
            raise ValueError(f"{name}: the model's tokenizer fails on {parts[0]!r:.60} ({error})") from None
        ids = np.array(encoding.ids, np.int32)
        if ids.size and not ids.max() < self.limit:
            raise ValueError(f"{name}: the tokenizer gives the id {ids.max()}; the model knows 0…{self.limit - 1}")
        words = ids[np.array(encoding.special_tokens_mask, bool) == 0]
        unknown = int((words == self._unknown_id).sum()) if self._unknown_id is not None else 0
        if self._unknown_id is not None:  # in some tokenizers the unknown token counts as a special one
            unknown = max(unknown, int((ids == self._unknown_id).sum()))
        self.unknown += unknown
        self.known += max(len(words), unknown) - unknown
        typed = len(parts) == 2 and self.graph.type_vocab_size > 1
        return ids, np.array(encoding.type_ids, np.int32) if typed else None

    @property
    def tokenizer(self) -> Tokenizer:
        if self._tokenizer is None:
            if self.content is None:
                raise ValueError(
                    "calibration holds texts, but the checkpoint has no tokenizer: add its tokenizer.json, or give "
                    "token ids"
                )
            from tokenizers import Tokenizer

            try:
                tokenizer: Tokenizer = Tokenizer.from_buffer(self.content)
                tokenizer.no_padding()
                tokenizer.enable_truncation(self.max_length)
            except (KeyboardInterrupt, SystemExit, MemoryError):
                raise
            except BaseException as error:
                raise ValueError(f"calibration: the model's tokenizer cannot be used ({error})") from None
            self._unknown_id = _unknown_id(self.content, tokenizer)
            self._tokenizer = tokenizer
        return self._tokenizer

    def check_known(self) -> None:
        words = self.known + self.unknown
        if words and self.unknown > MOST_UNKNOWN * words:
            raise ValueError(
                f"calibration is mostly unknown to the model: {self.unknown / words:.0%} of its tokens are the unknown "
                "one; give texts in a language of the model"
            )


def _unknown_id(content: bytes, tokenizer: Tokenizer) -> int | None:
    model = json.loads(content).get("model") or {}
    token = model.get("unk_token")
    if isinstance(token, str):
        found: int | None = tokenizer.token_to_id(token)
        return found
    number = model.get("unk_id")
    return number if isinstance(number, int) else None


class _Sample:
    """A uniform choice among samples of any number, of about ``tokens`` tokens together."""

    def __init__(self, tokens: int) -> None:
        self.tokens, self.held, self.count = tokens, 0, 0
        self.rng = np.random.default_rng(0)
        self.heap: list[tuple[float, int, Array, Array | None]] = []

    def add(self, ids: Array, types: Array | None) -> None:
        self.count += 1
        if not len(ids):
            return
        heapq.heappush(self.heap, (self.rng.random(), self.count, ids, types))
        self.held += len(ids)
        while self.held - len(self.heap[0][2]) >= self.tokens:
            self.held -= len(heapq.heappop(self.heap)[2])

    def calibration(self, graph: Graph) -> Calibration:
        chosen = sorted(self.heap, key=lambda entry: entry[1])
        lengths = np.array([len(ids) for _, _, ids, _ in chosen], np.int64)
        inputs = {"ids": np.concatenate([np.empty(0, np.int32), *(ids for _, _, ids, _ in chosen)])}
        if any(types is not None for *_, types in chosen):
            inputs["types"] = np.concatenate([np.zeros_like(ids) if t is None else t for _, _, ids, t in chosen])
        return Calibration(inputs, lengths)

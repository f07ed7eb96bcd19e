"""The few fields of a SentencePiece model (``spiece.model``) that a tokenizer is built from.

The file is a protocol buffer, ``ModelProto`` of sentencepiece_model.proto. The reader walks its wire format with every
length checked against the bytes that are there; unknown fields are passed over.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import CheckpointError, UnsupportedModelError

MAX_BYTES = 1 << 28  # vocabularies of a million pieces take 20 MB
MAX_PIECES = 1 << 22
CONTROL, USER_DEFINED = 3, 4  # types of pieces that text may name outright
_UNIGRAM = 1
_ALGORITHMS = {1: "Unigram", 2: "BPE", 3: "words", 4: "characters"}

Value = int | bytes


@dataclass
class SentencePieceModel:
    """``pieces`` are (text, score, type) in the order of their ids; ``charsmap`` is the compiled normalisation."""

    pieces: list[tuple[str, float, int]] = field(default_factory=list)
    charsmap: bytes | None = None

    @property
    def vocabulary(self) -> list[tuple[str, float]]:
        return [(text, score) for text, score, _ in self.pieces]


def read_sentencepiece(path: Path) -> SentencePieceModel:
    """Reads a Unigram model.

    Raises:
        CheckpointError: the file is damaged or no SentencePiece model.
        UnsupportedModelError: the model is not Unigram.
    """
    if path.stat().st_size > MAX_BYTES:
        raise CheckpointError(f"{path} has more than {MAX_BYTES} bytes, which no SentencePiece model has")
    try:
        return _model(path.read_bytes())
    except UnsupportedModelError as error:
        raise UnsupportedModelError(f"{path}: {error}") from None
    except ValueError as error:
        raise CheckpointError(f"{path} is not a valid SentencePiece model ({error}); download it again") from error


def _model(data: bytes) -> SentencePieceModel:
    model = SentencePieceModel()
    algorithm = _UNIGRAM
    for number, value in _fields(data):
        if number == 1:
            if len(model.pieces) == MAX_PIECES:
                raise ValueError(f"more than {MAX_PIECES} pieces")
            model.pieces.append(_piece(_bytes(value)))
        elif number == 2:  # trainer_spec
            algorithm = next((_integer(v) for n, v in _fields(_bytes(value)) if n == 3), algorithm)
        elif number == 3:  # normalizer_spec
            maps = [_bytes(v) for n, v in _fields(_bytes(value)) if n == 2]
            model.charsmap = (maps[-1] if maps else model.charsmap) or None
    if not model.pieces:
        raise ValueError("it has no pieces")
    if algorithm != _UNIGRAM:
        name = _ALGORITHMS.get(algorithm, algorithm)
        raise UnsupportedModelError(f"its algorithm is {name}; supported is Unigram: save a tokenizer.json")
    return model


def _piece(data: bytes) -> tuple[str, float, int]:
    text, score, kind = "", 0.0, 1
    for number, value in _fields(data):
        if number == 1:
            text = _bytes(value).decode()
        elif number == 2:
            score = _float(value)
        elif number == 3:
            kind = _integer(value)
    return text, score, kind


def _fields(data: bytes) -> Iterator[tuple[int, Value]]:
    """Field number and value of each entry: an integer, or the bytes of anything else."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, position = _varint(data, position)
            yield number, value
            continue
        if wire == 2:
            size, position = _varint(data, position)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire} at byte {position}")
        if size > len(data) - position:
            raise ValueError(f"a field of {size} bytes at byte {position} of {len(data)}")
        yield number, data[position : position + size]
        position += size


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):  # a 64-bit integer takes at most ten bytes
        if position >= len(data):
            raise ValueError("it ends inside an integer")
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise ValueError(f"an integer of more than ten bytes at byte {position}")


def _bytes(value: Value) -> bytes:
    if isinstance(value, int):
        raise ValueError("an integer where bytes belong")
    return value


def _float(value: Value) -> float:
    data = _bytes(value)
    if len(data) != 4:
        raise ValueError(f"{len(data)} bytes where a float belongs")
    return float(struct.unpack("<f", data)[0])


def _integer(value: Value) -> int:
    if not isinstance(value, int):
        raise ValueError("bytes where an integer belongs")
    return value

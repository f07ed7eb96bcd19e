"""The header of a GGUF file: metadata, and where each tensor lies.

The layout is that of version 3, little-endian (github.com/ggml-org/ggml, docs/gguf.md); version 2 is the same. Every
count is checked against the bytes that are left before anything is made of it, so that a damaged file costs a message.

    magic, version, tensors, entries | entries | name, shape, type, offset of each tensor | padding | data
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError, UnsupportedModelError
from .gguf_types import NAMES, TYPES, BlockType

Bytes = NDArray[np.uint8]

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_TENSORS = 65_536
MAX_ENTRIES = 65_536
MAX_ITEMS = 1 << 22  # strings and lists in all of the metadata; a vocabulary has 262,144, and as many merges
MAX_DEPTH = 4  # of lists in lists
MAX_NAME_BYTES = 65_535  # the format's own limit of a key
MAX_ALIGNMENT = 1 << 16
MAX_DIMENSIONS = 4

_STRING, _BOOL, _ARRAY = 8, 7, 9
_NUMBERS: dict[int, np.dtype[Any]] = {
    0: np.dtype("u1"),
    1: np.dtype("i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    _BOOL: np.dtype("u1"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}
_LEAST_BYTES = {_STRING: 8, _ARRAY: 12, **{kind: dtype.itemsize for kind, dtype in _NUMBERS.items()}}


@dataclass(frozen=True)
class TensorInfo:
    """A tensor; ``shape`` as numpy has it (a file lists the innermost first), and its bytes in the file."""

    name: str
    shape: tuple[int, ...]
    type: BlockType
    begin: int
    end: int


@dataclass(frozen=True)
class GgufHeader:
    """``metadata`` holds Python's numbers, booleans and strings, lists of strings or lists, and arrays of numbers."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]
    content: Bytes


def read_gguf(path: Path) -> GgufHeader:
    """Maps the file and reads its header; no tensor is touched.

    Raises:
        CheckpointError: the file is damaged or no GGUF file.
        UnsupportedModelError: it is one part of several, of an old version, or has tensors of a type that is not read.
    """
    try:
        if path.stat().st_size < 24:
            raise CheckpointError(f"it has {path.stat().st_size} bytes, too few for a header")
        return _header(path, np.memmap(path, np.uint8, mode="r").view(np.ndarray))
    except UnsupportedModelError as error:
        raise UnsupportedModelError(f"{path}: {error}") from None
    except CheckpointError as error:
        raise CheckpointError(f"{path} is not a valid GGUF file ({error}); download it again") from None


def _header(path: Path, content: Bytes) -> GgufHeader:
    reader = _Reader(content)
    magic = bytes(reader.take(4, "the magic"))
    if magic != MAGIC:
        raise CheckpointError(f"it begins with {magic!r}, not {MAGIC!r}")
    version = reader.integer(4, "the version")
    if version not in VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        kind = f"big-endian, version {swapped}," if swapped <= max(VERSIONS) else f"version {version}"
        raise UnsupportedModelError(f"a GGUF file of {kind} is not read; convert the model again, to version 3")
    tensors = reader.count("the number of tensors", MAX_TENSORS, 24)
    entries = reader.count("the number of metadata entries", MAX_ENTRIES, 13)
    metadata: dict[str, Any] = {}
    for _ in range(entries):
        key = reader.string("a metadata key", MAX_NAME_BYTES)
        if key in metadata:
            raise CheckpointError(f"metadata {key!r:.80} is there twice")
        metadata[key] = reader.value(reader.integer(4, f"the type of {key!r:.80}"), f"metadata {key!r:.80}")
    _refuse_parts(metadata)
    infos = [_tensor(reader) for _ in range(tensors)]
    return GgufHeader(path, metadata, _placed(infos, reader.position, _alignment(metadata), len(content)), content)


def _refuse_parts(metadata: dict[str, Any]) -> None:
    parts = metadata.get("split.count", 0)
    if type(parts) is int and parts > 1:
        raise UnsupportedModelError(
            f"'split.count' is {parts}: the model lies in as many files, which are not read together; join them with "
            "llama.cpp's llama-gguf-split --merge"
        )


def _alignment(metadata: dict[str, Any]) -> int:
    value = metadata.get("general.alignment", 32)
    if type(value) is not int or not 1 <= value <= MAX_ALIGNMENT or value & (value - 1):
        raise CheckpointError(f"'general.alignment' is {value!r:.80}; it must be a power of two up to {MAX_ALIGNMENT}")
    return value


def _tensor(reader: _Reader) -> tuple[str, tuple[int, ...], BlockType, int]:
    """Name, shape, type and offset in the data of the next tensor."""
    name = reader.string("the name of a tensor", MAX_NAME_BYTES)
    what = f"tensor {name!r:.80}"
    dimensions = reader.integer(4, f"the dimensions of {what}")
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        raise CheckpointError(f"{what} has {dimensions} dimensions; there are 1 to {MAX_DIMENSIONS}")
    shape = tuple(reader.integer(8, f"the shape of {what}") for _ in range(dimensions))[::-1]
    if min(shape) < 1:
        raise CheckpointError(f"{what} has the shape {list(shape)}; no dimension may be 0")
    kind = reader.integer(4, f"the type of {what}")
    offset = reader.integer(8, f"the offset of {what}")
    if kind not in TYPES:
        if kind not in NAMES:
            raise CheckpointError(f"{what} has the type {kind}, which GGUF does not know")
        raise UnsupportedModelError(
            f"{what} has the type {NAMES[kind]}; supported are {', '.join(known.name for known in TYPES.values())}: "
            "take a file of these, or quantize the model to one of them"
        )
    block = TYPES[kind]
    if shape[-1] % block.size:
        raise CheckpointError(f"{what} has rows of {shape[-1]} values, no multiple of the {block.size} of {block.name}")
    return name, shape, block, offset


def _placed(
    infos: list[tuple[str, tuple[int, ...], BlockType, int]], header: int, alignment: int, size: int
) -> dict[str, TensorInfo]:
    """The tensors by name, each inside of the file and none over another."""
    start = -(-header // alignment) * alignment
    result: dict[str, TensorInfo] = {}
    for name, shape, block, offset in infos:
        what, begin = f"tensor {name!r:.80}", start + offset
        end = begin + prod(shape) // block.size * block.bytes
        if name in result:
            raise CheckpointError(f"{what} is there twice")
        if offset % alignment:
            raise CheckpointError(f"{what} has the offset {offset}, which is not aligned to {alignment} bytes")
        if end > size:
            raise CheckpointError(
                f"{what} of shape {list(shape)} and type {block.name} ends at byte {end}, but the file at {size}"
            )
        result[name] = TensorInfo(name, shape, block, begin, end)
    ordered = sorted(result.values(), key=lambda info: info.begin)
    for before, after in pairwise(ordered):
        if after.begin < before.end:
            raise CheckpointError(f"tensor {after.name!r:.80} lies over tensor {before.name!r:.80}")
    return result


class _Reader:
    """Walks over the header; each step is checked against what is left of the file."""

    def __init__(self, content: Bytes) -> None:
        self.data = content.data
        self.position = 0
        self.items = 0

    def take(self, count: int, what: str) -> memoryview:
        begin, end = self.position, self.position + count
        if end > len(self.data):
            raise CheckpointError(f"{what} takes {count} bytes, but {len(self.data) - begin} are left")
        self.position = end
        return self.data[begin:end]

    def integer(self, size: int, what: str) -> int:
        return int.from_bytes(self.take(size, what), "little")

    def count(self, what: str, most: int, least_bytes: int) -> int:
        """A count of things of at least ``least_bytes`` each that follow."""
        count = self.integer(8, what)
        left = len(self.data) - self.position
        if count > most:
            raise CheckpointError(f"{what} is {count}; the limit is {most}")
        if count * least_bytes > left:
            raise CheckpointError(f"{what} is {count}, which {left} bytes cannot hold")
        return count

    def string(self, what: str, most: int | None = None) -> str:
        length = self.integer(8, f"the length of {what}")
        if most is not None and length > most:
            raise CheckpointError(f"{what} has {length} bytes; the limit is {most}")
        return _text(self.take(length, what), what)

    def value(self, kind: int, what: str) -> Any:
        if kind == _STRING:
            self._spend(1, what)
            return self.string(what)
        if kind == _ARRAY:
            return self._array(what, 1)
        if kind not in _NUMBERS:
            raise CheckpointError(f"{what} has the type {kind}, which GGUF does not know")
        return self._numbers(kind, 1, what)[0].item()

    def _array(self, what: str, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise CheckpointError(f"{what} holds lists in lists, deeper than {MAX_DEPTH}")
        kind = self.integer(4, f"the type in {what}")
        if kind not in _LEAST_BYTES:
            raise CheckpointError(f"{what} holds the type {kind}, which GGUF does not know")
        count = self.count(f"the length of {what}", 2**63, _LEAST_BYTES[kind])
        if kind in _NUMBERS:
            return self._numbers(kind, count, what)
        self._spend(count, what)
        if kind == _STRING:
            return self._strings(count, what)
        return [self._array(what, depth + 1) for _ in range(count)]

    def _numbers(self, kind: int, count: int, what: str) -> NDArray[Any]:
        dtype = _NUMBERS[kind]
        numbers = np.frombuffer(self.take(count * dtype.itemsize, what), dtype)
        if kind != _BOOL:
            return numbers
        if count and numbers.max() > 1:
            raise CheckpointError(f"{what} is a boolean of value {int(numbers.max())}; it must be 0 or 1")
        return numbers.view(np.bool_)

    def _strings(self, count: int, what: str) -> list[str]:
        """A list of strings: there are hundred thousands of them, read without a step of the above for each."""
        data, position, result = self.data, self.position, []
        length_of = struct.Struct("<Q").unpack_from
        for _ in range(count):
            begin = position + 8
            if begin > len(data):
                raise CheckpointError(f"{what} ends inside a length")
            position = begin + length_of(data, position)[0]
            if position > len(data):
                raise CheckpointError(f"a string of {what} ends at byte {position}, but the file at {len(data)}")
            result.append(_text(data[begin:position], what))
        self.position = position
        return result

    def _spend(self, count: int, what: str) -> None:
        self.items += count
        if self.items > MAX_ITEMS:
            raise CheckpointError(f"the metadata holds more than {MAX_ITEMS} strings and lists, up to {what}")


def _text(data: memoryview, what: str) -> str:
    try:
        return str(data, "utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{what} is not UTF-8 ({error.reason} at byte {error.start})") from None

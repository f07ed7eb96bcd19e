"""Writes a pocket file tensor by tensor, in any order and in parts, so that a model need not fit in memory."""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
from collections.abc import Iterator, Mapping
from typing import IO, Any, Protocol

import numpy as np

from . import _core
from .graph import Array, Graph
from .layout import ALIGNMENT, round_up
from .metadata import check_task, check_texts
from .pocketfile import TOKENIZER, _facts, _header, _judged, _parse, _replacing


class Shaped(Protocol):
    """What is known of a tensor before it is made."""

    @property
    def dtype(self) -> np.dtype[Any]: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def nbytes(self) -> int: ...


class PocketWriter:
    """The data of a pocket file whose header is written; see :func:`writing`."""

    def __init__(self, file: IO[bytes], tensors: Mapping[str, Shaped]) -> None:
        self._file = file
        self._tensors = tensors
        self._begin: dict[str, int] = {}
        end = file.tell()
        for name, tensor in tensors.items():
            self._begin[name] = end
            end += tensor.nbytes
        file.truncate(end)

    def write(self, name: str, begin: int, part: Array) -> None:
        """``part`` are the entries from ``begin`` on of the first axis of the tensor ``name``; the rest stays zero.

        Raises KeyError for an unknown name, ValueError when the part does not fit the tensor.
        """
        tensor = self._tensors[name]
        alike = part.dtype == tensor.dtype and part.shape[1:] == tensor.shape[1:]
        if not (alike and 0 <= begin <= tensor.shape[0] - len(part)):
            raise ValueError(
                f"part of {name!r} is {part.dtype} {list(part.shape)} from {begin} on; the tensor is "
                f"{tensor.dtype} {list(tensor.shape)}"
            )
        little = np.ascontiguousarray(part, part.dtype.newbyteorder("<"))
        self._file.seek(self._begin[name] + begin * (tensor.nbytes // tensor.shape[0]))
        self._file.write(little.data)

    def map(self) -> dict[str, Array]:
        """The tensors as the file holds them."""
        self._file.flush()
        with open(f"/proc/self/fd/{self._file.fileno()}", "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return {
            name: np.ndarray(tensor.shape, tensor.dtype, mapped, self._begin[name])
            for name, tensor in self._tensors.items()
        }


@contextlib.contextmanager
def writing(
    path: str | os.PathLike[str],
    graph: Graph,
    slots: Mapping[str, Shaped],
    model: dict[str, Any],
    text: dict[str, Any],
    tokenizer_json: bytes | None,
) -> Iterator[PocketWriter]:
    """A writer of the tensors ``slots`` of the packed ``graph``, whose own parameters do not matter.

    ``path`` holds the old content until the block has ended and the file was found in order; then the new one. After an
    error or an interrupt nothing is left of it.

    Raises PocketFileError before the block when the metadata or the graph break the format, after it when the values of
    the tensors do.
    """
    facts = {name: _facts(slot) for name, slot in slots.items()}
    _judged(lambda: _core.check_graph(graph.description(), facts))
    check_texts(model, text)
    if tokenizer_json is not None:
        _parse("tokenizer_json", tokenizer_json)
    tokenizer, tensors = _with_tokenizer(slots, tokenizer_json)
    header = _header(graph, model, text, tensors)
    with _replacing(os.fspath(path)) as file:
        file.write(struct.pack("<Q", len(header)) + header)
        writer = PocketWriter(file, tensors)
        if tokenizer is not None:
            writer.write(TOKENIZER, 0, tokenizer)
        yield writer
        params = writer.map()
        params.pop(TOKENIZER, None)
        check_task(model, _judged(lambda: _core.Program(graph.description(), params)))


def file_bytes(
    graph: Graph,
    slots: Mapping[str, Shaped],
    model: dict[str, Any],
    text: dict[str, Any],
    tokenizer_json: bytes | None,
) -> int:
    """The size of the file that :func:`writing` would write."""
    _, tensors = _with_tokenizer(slots, tokenizer_json)
    header = _header(graph, model, text, tensors)
    return 8 + len(header) + sum(int(tensor.nbytes) for tensor in tensors.values())


def _with_tokenizer(slots: Mapping[str, Shaped], tokenizer_json: bytes | None) -> tuple[Array | None, dict[str, Any]]:
    """The padded tokenizer, and all tensors of the file."""
    if tokenizer_json is None:
        return None, dict(slots)
    tokenizer = np.frombuffer(tokenizer_json.ljust(round_up(len(tokenizer_json), ALIGNMENT)), np.uint8)
    return tokenizer, {**slots, TOKENIZER: tokenizer}

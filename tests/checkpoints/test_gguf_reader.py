"""Headers and number formats of GGUF files, against the gguf package; and files that lie."""

from __future__ import annotations

import random
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType

from helpers.gguf_files import plain, random_blocks, write_gguf
from pocketformer.errors import CheckpointError, UnsupportedModelError
from pocketformer.sources import gguf_reader
from pocketformer.sources.gguf_reader import read_gguf
from pocketformer.sources.gguf_types import NAMES, TYPES

MUTATIONS = 3000


@pytest.mark.parametrize("kind", TYPES, ids=[block.name for block in TYPES.values()])
def test_values_are_those_of_the_reference(kind: int) -> None:
    block = TYPES[kind]
    raw = np.random.default_rng(kind).integers(0, 256, (37, 3 * block.bytes), dtype=np.uint8)
    with np.errstate(all="ignore"):  # random factors are infinite or no number now and then
        actual = block.rows(raw)
        expected = gguf.quants.dequantize(raw, GGMLQuantizationType(kind))
    assert actual.dtype == np.float32
    same = (actual.view(np.uint32) == expected.view(np.uint32)) | (np.isnan(actual) & np.isnan(expected))
    assert actual.shape == expected.shape
    assert same.all()
    assert np.isfinite(actual).mean() > 0.8


def test_types_are_those_of_the_format() -> None:
    assert {kind.value: kind.name for kind in GGMLQuantizationType}.items() <= NAMES.items()
    for kind, block in TYPES.items():
        assert gguf.GGML_QUANT_SIZES[GGMLQuantizationType(kind)] == (block.size, block.bytes)
        assert GGMLQuantizationType(kind).name == block.name


def everything(path: Path, **options: Any) -> Path:
    """A file with metadata of every kind and a tensor of every format."""
    tensors = {
        f"weight.{block.name}": (random_blocks(kind, 3, 2 if block.size > 1 else 5, kind), GGMLQuantizationType(kind))
        for kind, block in TYPES.items()
        if kind > 1
    }
    tensors["weight.F32"] = plain(np.linspace(-1, 1, 24).reshape(2, 3, 4))
    tensors["weight.F16"] = plain(np.linspace(-1, 1, 7), GGMLQuantizationType.F16)
    metadata = {
        "general.name": "tëst",
        "a.flag": True,
        "a.number": 7,
        "a.factor": 0.25,
        "a.texts": ["", "one", "zwei", "▁"],
        "a.numbers": [1, -2, 3],
        "a.floats": [0.5, -0.25],
        "a.flags": [True, False],
        "a.lists": [[1, 2], [3]],
        "a.list_of_texts": [["x"], ["y", "z"]],
        **options,
    }
    return write_gguf(path, metadata, tensors, "test")


def test_header_and_values_are_those_of_the_reference(tmp_path: Path) -> None:
    path = everything(tmp_path / "all.gguf", **{"general.alignment": 64})
    header, reference = read_gguf(path), gguf.GGUFReader(path)
    assert header.metadata["general.architecture"] == "test"
    assert header.metadata["general.name"] == "tëst"
    assert header.metadata["a.flag"] is True
    assert header.metadata["a.factor"] == 0.25
    assert header.metadata["a.texts"] == ["", "one", "zwei", "▁"]
    assert header.metadata["a.numbers"].tolist() == [1, -2, 3]
    assert header.metadata["a.flags"].tolist() == [True, False]
    assert [part.tolist() for part in header.metadata["a.lists"]] == [[1, 2], [3]]
    assert header.metadata["a.list_of_texts"] == [["x"], ["y", "z"]]
    assert list(header.tensors) == [tensor.name for tensor in reference.tensors]
    for tensor in reference.tensors:
        info = header.tensors[tensor.name]
        assert info.shape == tuple(int(extent) for extent in tensor.shape)[::-1]
        assert (info.begin, info.end) == (tensor.data_offset, tensor.data_offset + tensor.n_bytes)
        raw = header.content[info.begin : info.end].reshape(info.shape[0], -1)
        expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        assert np.array_equal(info.type.rows(raw).reshape(expected.shape), expected)


def header_of(
    tensors: list[bytes], entries: list[bytes], version: int = 3, counts: tuple[int, int] | None = None
) -> bytes:
    n, m = counts or (len(tensors), len(entries))
    return b"GGUF" + struct.pack("<IQQ", version, n, m) + b"".join(entries) + b"".join(tensors)


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def entry(key: bytes, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def info(name: bytes = b"t", shape: tuple[int, ...] = (32,), kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def count(kind: int, value: int) -> bytes:
    return struct.pack("<IQ", kind, value)


DATA = bytes(512)
LIES = {
    "empty": (b"", "0 bytes, too few"),
    "37 bytes": (header_of([], [entry(b"", 8, b"\0")]), "the length of metadata '' takes 8 bytes, but 1 are left"),
    "37 bytes of a tensor": (header_of([], [], counts=(1, 0)) + bytes(13), "number of tensors is 1, which 21 bytes"),
    "another magic": (b"GGML" + bytes(60), "begins with b'GGML'"),
    "big-endian": (header_of([], [], version=3 << 24), "big-endian, version 3, is not read"),
    "version 1": (header_of([], [], version=1), "version 1 is not read"),
    "tensors": (header_of([], [], counts=(2**63, 0)), f"the number of tensors is {2**63}; the limit"),
    "tensors that do not fit": (header_of([], [], counts=(65_000, 0)), "65000, which 8 bytes cannot hold"),
    "entries": (header_of([], [], counts=(0, 2**40)), "the number of metadata entries is .* the limit"),
    "key": (header_of([], [struct.pack("<Q", 2**62) + bytes(20)]), "a metadata key has .* bytes; the limit"),
    "text": (header_of([], [entry(b"k", 8, struct.pack("<Q", 2**62))]), "metadata 'k' takes .* bytes, but 0 are left"),
    "no text": (header_of([], [entry(b"k", 8, text(b"\xff\xfe"))]), "metadata 'k' is not UTF-8"),
    "flag": (header_of([], [entry(b"k", 7, b"\x02")]), "metadata 'k' is a boolean of value 2"),
    "kind": (header_of([], [entry(b"k", 13, bytes(8))]), "metadata 'k' has the type 13"),
    "kind in a list": (header_of([], [entry(b"k", 9, count(99, 1))]), "metadata 'k' holds the type 99"),
    "list": (header_of([], [entry(b"k", 9, count(4, 2**62))]), "the length of metadata 'k' is .* cannot hold"),
    "list of texts": (header_of([], [entry(b"k", 9, count(8, 2**60))]), "the length of metadata 'k' is"),
    "a text in a list": (header_of([], [entry(b"k", 9, count(8, 1) + struct.pack("<Q", 99))]), "ends at byte .* but"),
    "deep": (header_of([], [entry(b"k", 9, count(9, 1) * 9 + count(0, 0))]), "lists in lists, deeper than 4"),
    "twice": (header_of([], [entry(b"k", 0, b"1")] * 2), "metadata 'k' is there twice"),
    "alignment": (header_of([], [entry(b"general.alignment", 4, struct.pack("<I", 24))]), "'general.alignment' is 24"),
    "alignment 0": (header_of([], [entry(b"general.alignment", 4, bytes(4))]), "'general.alignment' is 0"),
    "parts": (header_of([], [entry(b"split.count", 2, b"\x03\0")]), "'split.count' is 3.*llama-gguf-split --merge"),
    "no dimensions": (header_of([info(shape=())], []) + DATA, "tensor 't' has 0 dimensions"),
    "five dimensions": (header_of([info(shape=(1,) * 5)], []) + DATA, "tensor 't' has 5 dimensions"),
    "dimension 0": (header_of([info(shape=(32, 0))], []) + DATA, r"the shape \[0, 32\]; no dimension may be 0"),
    "overflow": (header_of([info(shape=(2**63, 2**63, 2**63))], []) + DATA, "tensor 't' of shape .* but the file at"),
    "type": (header_of([info(kind=77)], []) + DATA, "tensor 't' has the type 77, which GGUF does not know"),
    "other type": (header_of([info(kind=20)], []) + DATA, "tensor 't' has the type IQ4_NL; supported are F32, .*Q6_K"),
    "rows": (header_of([info(shape=(33,), kind=2)], []) + DATA, "rows of 33 values, no multiple of the 32 of Q4_0"),
    "unaligned": (header_of([info(offset=4)], []) + DATA, "the offset 4, which is not aligned to 32"),
    "beyond": (header_of([info(offset=2**63)], []) + DATA, "tensor 't' of shape .* ends at byte"),
    "names": (header_of([info(), info(offset=128)], []) + DATA, "tensor 't' is there twice"),
    "overlap": (header_of([info(), info(b"u", offset=96)], []) + DATA, "tensor 'u' lies over tensor 't'"),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies_are_refused(lie: str, tmp_path: Path) -> None:
    content, message = LIES[lie]
    path = tmp_path / "lie.gguf"
    path.write_bytes(content)
    with pytest.raises((CheckpointError, UnsupportedModelError), match=message) as caught:
        read_gguf(path)
    assert str(path) in str(caught.value)


def test_many_lists_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_reader, "MAX_ITEMS", 10)
    texts = [text(b"")] * 6
    path = tmp_path / "lists.gguf"
    path.write_bytes(header_of([], [entry(key, 9, count(8, 6) + b"".join(texts)) for key in (b"k", b"l")]))
    with pytest.raises(CheckpointError, match="more than 10 strings and lists, up to metadata 'l'"):
        read_gguf(path)


def read_all(path: Path) -> None:
    header = read_gguf(path)
    for info in header.tensors.values():
        raw = header.content[info.begin : info.end].reshape(info.shape[0], -1)
        assert info.type.rows(raw).size == np.prod(info.shape)


def mutations(original: bytes, header: int) -> list[Callable[[random.Random, bytearray], None]]:
    numbers = (0, 1, 2, 7, 31, 255, 256, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1)

    def byte(rng: random.Random, data: bytearray) -> None:
        data[rng.randrange(header)] = rng.randrange(256)

    def number(rng: random.Random, data: bytearray) -> None:
        at = rng.randrange(header - 8)
        data[at : at + 8] = struct.pack("<Q", rng.choice(numbers))

    def small(rng: random.Random, data: bytearray) -> None:
        at = rng.randrange(header - 4)
        data[at : at + 4] = struct.pack("<I", rng.choice(numbers) & 0xFFFFFFFF)

    def cut(rng: random.Random, data: bytearray) -> None:
        del data[rng.randrange(len(data)) :]

    def move(rng: random.Random, data: bytearray) -> None:
        size = rng.randrange(1, 64)
        begin, to = rng.randrange(header), rng.randrange(header)
        data[to : to + size] = original[begin : begin + size]

    def drop(rng: random.Random, data: bytearray) -> None:
        begin = rng.randrange(header)
        del data[begin : begin + rng.randrange(1, 16)]

    return [byte, number, small, cut, move, drop]


@pytest.mark.slow
def test_mutated_files_are_refused_or_read_in_little_memory(tmp_path: Path) -> None:
    path = everything(tmp_path / "all.gguf")
    original = path.read_bytes()
    first = min(info.begin for info in read_gguf(path).tensors.values())
    changes = mutations(original, first)
    rng = random.Random(20261126)

    def refused(count: int) -> int:
        result = 0
        for _ in range(count):
            data = bytearray(original)
            for _ in range(rng.choice((1, 1, 2))):
                if len(data) > first:
                    rng.choice(changes)(rng, data)
            path.write_bytes(data)
            try:
                with np.errstate(all="ignore"):
                    read_all(path)
            except (CheckpointError, UnsupportedModelError) as error:
                result += len(str(error)) < 600 + len(str(path))
        return result

    assert MUTATIONS // 4 < refused(MUTATIONS) < MUTATIONS
    tracemalloc.start()
    try:
        refused(MUTATIONS // 10)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000

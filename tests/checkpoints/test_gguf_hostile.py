"""GGUF files whose metadata lies, past what their header shows: refused by name, before anything is made of it."""

from __future__ import annotations

import struct
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.hostile_gguf import F32, LIST, STRING, U32, Entry, Tensor, decoder, listed, text
from pocketformer.errors import CheckpointError, UnsupportedModelError
from pocketformer.sources.config import Config
from pocketformer.sources.gguf import load_gguf

NUMBERS = listed(U32, [struct.pack("<I", 1)] * 3)
HUGE = struct.pack("<I", 2**32 - 1)


def with_entry(path: Path, architecture: str, entry: Entry) -> Path:
    """A small decoder with ``entry`` in place of its own of that key, or beside them."""
    file = decoder(architecture, 8)
    path.write_bytes(replace(file, entries=(*(e for e in file.entries if e[0] != entry[0]), entry)).content())
    return path


@pytest.mark.parametrize(
    ("architecture", "key", "kind", "value", "message"),
    [
        ("llama", "llama.rope.scaling.type", LIST, NUMBERS, r"rope\.scaling\.type is array"),
        ("llama", "tokenizer.ggml.model", LIST, NUMBERS, r"tokenizer\.ggml\.model is array"),
        ("qwen3", "tokenizer.ggml.pre", LIST, listed(STRING, [text(b"qwen2")]), r"tokenizer\.ggml\.pre is \['qwen2'\]"),
        ("qwen3", "tokenizer.ggml.merges", U32, HUGE, r"merges is missing"),
        ("llama", "llama.block_count", U32, HUGE, r"block_count is 4294967295; it must be at most 65536"),
        ("qwen3", "qwen3.block_count", U32, struct.pack("<I", 65_536), r"'blk\.1\.attn_q\.weight'.* is missing"),
        ("llama", "llama.attention.key_length", U32, struct.pack("<I", 1 << 31), r"heads have 2147483648 channels"),
        ("llama", "llama.rope.freq_base", F32, struct.pack("<f", float("inf")), r"freq_base is inf"),
    ],
)
def test_refused(architecture: str, key: str, kind: int, value: bytes, message: str, tmp_path: Path) -> None:
    path = with_entry(tmp_path / "lying.gguf", architecture, (key.encode(), kind, value))
    tracemalloc.start()
    try:
        with pytest.raises((CheckpointError, UnsupportedModelError), match=message):
            load_gguf(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8_000_000


def test_divisors_of_an_odd_head(tmp_path: Path) -> None:
    """``rope_freqs`` as long as half of a head of 17 channels, which do not make pairs."""
    path = with_entry(tmp_path / "odd.gguf", "llama", (b"llama.attention.key_length", U32, struct.pack("<I", 17)))
    file = decoder("llama", 8)
    entries = (*file.entries, (b"llama.attention.key_length", U32, struct.pack("<I", 17)))
    divisors = Tensor(b"rope_freqs.weight", (8,), 0, len(file.data))
    data = file.data + struct.pack("<8f", *[1.0] * 8)
    path.write_bytes(replace(file, entries=entries, tensors=(*file.tensors, divisors), data=data).content())
    with pytest.raises(CheckpointError, match=r"'rope_freqs\.weight' has the shape \[8\]; it must be that of half"):
        load_gguf(path)


@pytest.mark.parametrize("key", ["num_hidden_layers", "num_layers", "n_layers", "n_layer"])
def test_layers_of_a_config(key: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"'{key}' is 4294967296; the limit is 65536"):
        Config({key: 1 << 32}, tmp_path / "config.json").integer(key)

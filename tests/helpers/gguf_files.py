"""Small GGUF files, written by the gguf package."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType

from pocketformer.sources.gguf_types import TYPES

Tensor = tuple[np.ndarray, GGMLQuantizationType]


def write_gguf(path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, Tensor], architecture: str) -> Path:
    """``metadata`` takes the types that a converter would give it; a quantized tensor is its bytes."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.data_alignment = metadata.get("general.alignment", writer.data_alignment)
    for key, value in metadata.items():
        add(writer, key, value)
    for name, (data, kind) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def plain(array: np.ndarray, kind: GGMLQuantizationType = GGMLQuantizationType.F32) -> Tensor:
    """``array`` rounded to ``kind``; of a quantized kind the gguf package must know how to round to it."""
    return gguf.quants.quantize(np.ascontiguousarray(array, np.float32), kind), kind


def random_blocks(kind: int, rows: int, blocks: int, seed: int = 0) -> np.ndarray:
    """Rows of ``blocks`` random blocks each, of factors that are small and finite."""
    block = TYPES[kind]
    raw = np.random.default_rng(seed).integers(0, 256, (rows * blocks, block.bytes), dtype=np.uint8)
    for begin in HALVES.get(kind, ()):  # the exponent's upper bits: below 1, and neither infinity nor NaN
        raw[:, begin + 1] &= 0xBB
    return raw.reshape(rows, blocks * block.bytes)


HALVES = {8: (0,), 2: (0,), 3: (0, 2), 6: (0,), 7: (0, 2), 12: (0, 2), 13: (0, 2), 14: (208,)}
"""Where the blocks of a type hold half-precision factors."""

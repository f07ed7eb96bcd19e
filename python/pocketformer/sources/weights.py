"""Tensors of a Hugging Face folder, read from safetensors as float32."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError
from .config import read_json

Float32 = NDArray[np.float32]

_DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}
MAX_EXTENT = 2**31 - 1
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.h5", "*.msgpack")


@dataclass(frozen=True)
class _Entry:
    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Weights:
    """The tensors of a checkpoint whose names start with ``prefix``; names are given without it."""

    folder: Path
    entries: dict[str, _Entry]
    prefix: str = ""
    maps: dict[Path, NDArray[np.uint8]] = field(default_factory=dict)

    def __contains__(self, name: str) -> bool:
        return self.prefix + name in self.entries

    def under(self, prefix: str) -> Weights:
        return Weights(self.folder, self.entries, self.prefix + prefix, self.maps)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entry(name).shape

    def tensor(self, name: str, *shape: int) -> Float32:
        """The tensor ``name`` as float32; F32 data is a view of the mapped file.

        Raises:
            CheckpointError: it is missing, has another shape than ``shape``, is not F32, F16 or BF16, or is not finite.
        """
        entry = self._entry(name, shape)
        where = f"tensor {self.prefix + name!r} in {entry.file}"
        if entry.shape != shape:
            raise CheckpointError(
                f"{where} has shape {list(entry.shape)}, but config.json asks for {list(shape)}; "
                "the two files are not from the same model"
            )
        if entry.dtype not in _DTYPES:
            raise CheckpointError(f"{where} has dtype {entry.dtype}; save the model as F32, F16 or BF16")
        if entry.file not in self.maps:
            self.maps[entry.file] = np.memmap(entry.file, np.uint8, mode="r")
        raw = self.maps[entry.file][entry.begin : entry.end].view(np.ndarray).view(_DTYPES[entry.dtype]).reshape(shape)
        if entry.dtype == "BF16":  # numpy has no bfloat16: it is the upper half of a float32
            raw = (raw.astype(np.uint32) << 16).view(np.float32)
        array: Float32 = np.require(raw, np.float32, ["C", "A"])
        if not np.isfinite(array).all():
            raise CheckpointError(f"{where} holds NaN or infinity; the checkpoint is damaged or training diverged")
        return array

    def linear(self, name: str, n: int, k: int) -> tuple[Float32, Float32]:
        """Weight ``[n, k]`` and bias ``[n]``."""
        return self.tensor(f"{name}.weight", n, k), self.tensor(f"{name}.bias", n)

    def norm(self, name: str, width: int) -> tuple[Float32, Float32]:
        """Weight and bias ``[width]``; checkpoints converted from TensorFlow call them gamma and beta."""
        weight, bias = ("gamma", "beta") if f"{name}.gamma" in self else ("weight", "bias")
        return self.tensor(f"{name}.{weight}", width), self.tensor(f"{name}.{bias}", width)

    def _entry(self, name: str, shape: tuple[int, ...] | None = None) -> _Entry:
        full = self.prefix + name
        if full not in self.entries:
            expected = "" if shape is None else f" (expected shape {list(shape)})"
            files = sorted({str(e.file) for e in self.entries.values()})
            raise CheckpointError(
                f"tensor {full!r}{expected} is missing from {', '.join(files) or self.folder}; "
                "save the complete model with save_pretrained"
            )
        return self.entries[full]


def open_weights(folder: Path) -> Weights:
    """Maps ``model.safetensors``, or the shards named by ``model.safetensors.index.json``.

    Raises:
        CheckpointError: no safetensors file, a damaged one, or only pickles (which are never opened).
        ImportError: the safetensors package is absent.
    """
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return Weights(folder, {name: entry for name, entry in _read_header(single)})
    if index.is_file():
        return Weights(folder, _read_shards(folder, index))
    pickles = sorted(p.name for pattern in _PICKLES for p in folder.glob(pattern))
    if pickles:
        raise CheckpointError(
            f"{folder} holds {pickles[0]} but no model.safetensors; such files can run code when opened and are never "
            "read: convert with transformers, model.save_pretrained(folder), and pass the new folder"
        )
    raise CheckpointError(f"{folder} has no model.safetensors; pass the folder that save_pretrained wrote")


def _read_shards(folder: Path, index: Path) -> dict[str, _Entry]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
        raise CheckpointError(f"{index} has no 'weight_map' from tensor names to file names; download it again")
    entries: dict[str, _Entry] = {}
    for shard in sorted(set(weight_map.values())):
        if Path(shard).name != shard:
            raise CheckpointError(f"{index} names the shard {shard!r}, which is outside of its folder")
        if not (folder / shard).is_file():
            raise CheckpointError(f"{index} names the shard {shard!r}, which is missing; download it into {folder}")
        entries.update(_read_header(folder / shard))
    return entries


def _read_header(path: Path) -> Iterator[tuple[str, _Entry]]:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise ImportError(
            "reading checkpoints needs the safetensors package: pip install 'pocketformer[compress]'"
        ) from error
    try:
        with safe_open(
            path, framework="np"
        ):  # checks lengths, offsets, overlaps and dtypes, so that the header is true
            pass
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a valid safetensors file ({error}); download it again") from error
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header: dict[str, Any] = json.loads(file.read(length))
    for name, info in header.items():
        if name != "__metadata__":
            if 0 in info["shape"] and prod(filter(None, info["shape"])) > MAX_EXTENT:  # others are as large as the file
                raise CheckpointError(f"{path}: tensor {name!r} has the shape {info['shape']}; the file is damaged")
            begin, end = (8 + length + offset for offset in info["data_offsets"])
            yield name, _Entry(path, info["dtype"], tuple(info["shape"]), begin, end)

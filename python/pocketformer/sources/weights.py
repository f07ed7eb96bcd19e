"""Tensors of safetensors files, read as float32 one at a time."""

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
from ..lazy import Float32, lazy
from .config import read_json

_DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "F64": np.dtype("<f8"),
}
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
    """The tensors of a folder by the names in its files."""

    folder: Path
    entries: dict[str, _Entry]
    maps: dict[Path, NDArray[np.uint8]] = field(default_factory=dict)

    def __contains__(self, name: str) -> bool:
        return name in self.entries

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entry(name).shape

    def weight(self, name: str, *shape: int) -> Float32:
        """The tensor ``name``, read when it is used; F32 data is then a view of the mapped file.

        Raises:
            CheckpointError: it is missing, has another shape than ``shape``, or is not F64, F32, F16 or BF16; when it
                is read, that it is not finite.
        """
        stored, where = self._checked(name, shape)
        return lazy(shape, lambda begin, end: widen(stored[begin:end], where))

    def tensor(self, name: str, *shape: int) -> Float32:
        """The values of the tensor ``name``, of F32 a view of the mapped file; errors as in :meth:`weight`."""
        return widen(*self._checked(name, shape))

    def vector(self, name: str, length: int) -> Float32:
        return self.tensor(name, length)

    def _checked(self, name: str, shape: tuple[int, ...]) -> tuple[NDArray[Any], str]:
        """The mapped values of ``name``, which has ``shape``, and what to call it in a message."""
        entry = self._entry(name, shape)
        where = f"tensor {name!r} in {entry.file}"
        if entry.shape != shape:
            raise CheckpointError(
                f"{where} has shape {list(entry.shape)}, but config.json asks for {list(shape)}; "
                "the two files are not from the same model"
            )
        if entry.dtype not in _DTYPES:
            raise CheckpointError(f"{where} has dtype {entry.dtype}; save the model as F32, F16, BF16 or F64")
        return self._view(entry), where

    def _view(self, entry: _Entry) -> NDArray[Any]:
        if entry.file not in self.maps:
            self.maps[entry.file] = np.memmap(entry.file, np.uint8, mode="r")
        raw = self.maps[entry.file][entry.begin : entry.end].view(np.ndarray)
        return raw.view(_DTYPES[entry.dtype]).reshape(entry.shape)

    def _entry(self, name: str, shape: tuple[int, ...] | None = None) -> _Entry:
        if name not in self.entries:
            expected = "" if shape is None else f" (expected shape {list(shape)})"
            files = sorted({str(e.file) for e in self.entries.values()})
            raise CheckpointError(
                f"tensor {name!r}{expected} is missing from {', '.join(files) or self.folder}; "
                "save the complete model with save_pretrained"
            )
        return self.entries[name]


def widen(stored: NDArray[Any], where: str) -> Float32:
    """``stored`` as aligned, contiguous, finite float32; uint16 is bfloat16, the upper half of a float32."""
    if stored.dtype == np.uint16:
        stored = (stored.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinity
        array: Float32 = np.require(stored, np.float32, ["C", "A"])
    # Two reductions instead of isfinite, which would build an array of the same extent; NaN passes through both.
    if array.size and not (np.isfinite(array.max()) and np.isfinite(array.min())):
        raise CheckpointError(f"{where} holds NaN or infinity; the checkpoint is damaged or training diverged")
    return array


def open_weights(folder: Path) -> Weights:
    """Maps ``model.safetensors``, or the shards named by ``model.safetensors.index.json``.

    Raises:
        CheckpointError: no safetensors file, a damaged one, or only pickles (which are never opened).
        ImportError: the safetensors package is absent.
    """
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return open_file(single)
    if index.is_file():
        return Weights(folder, _read_shards(folder, index))
    raise no_safetensors(folder, "model")


def open_file(path: Path) -> Weights:
    """Maps one safetensors file; errors as in :func:`open_weights`."""
    return Weights(path.parent, dict(_read_header(path)))


def no_safetensors(folder: Path, stem: str) -> CheckpointError:
    """Why ``folder`` without ``stem``.safetensors is refused."""
    pickles = sorted(p.name for pattern in _PICKLES for p in folder.glob(pattern))
    if pickles:
        return CheckpointError(
            f"{folder} holds {pickles[0]} but no {stem}.safetensors; such files can run code when opened and are never "
            "read: convert with transformers, model.save_pretrained(folder), and pass the new folder"
        )
    return CheckpointError(f"{folder} has no {stem}.safetensors; pass the folder that save_pretrained wrote")


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
        # Checks lengths, offsets, overlaps and dtypes, so that the header is true.
        with safe_open(path, framework="np"):
            pass
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a valid safetensors file ({error}); download it again") from error
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header: dict[str, Any] = json.loads(file.read(length))
    shared = header.pop("__metadata__", None) or {}
    for name, info in header.items():
        if 0 in info["shape"] and prod(filter(None, info["shape"])) > MAX_EXTENT:  # others are as large as the file
            raise CheckpointError(f"{path}: tensor {name!r} has the shape {info['shape']}; the file is damaged")
        begin, end = (8 + length + offset for offset in info["data_offsets"])
        entry = _Entry(path, info["dtype"], tuple(info["shape"]), begin, end)
        yield name, entry
        # save_model stores tensors that share memory once, and which names are missing in the metadata.
        yield from ((other, entry) for other, kept in shared.items() if kept == name and other not in header)

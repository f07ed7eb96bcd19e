"""A GGUF file as a checkpoint: the tensors and the config of the Hugging Face model that it was converted from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError
from ..lazy import Float32, lazy
from .config import Config
from .gguf_config import Architecture, read_config
from .gguf_groups import grouped
from .gguf_reader import GgufHeader, TensorInfo, read_gguf
from .gguf_sampling import read_sampling
from .gguf_tokenizer import read_gguf_tokenizer
from .huggingface import Checkpoint, read_decoder
from .weights import widen

_REPOSITORY_KEYS = ("general.source.huggingface.repository", "general.source.repo_url", "general.repo_url")
_REPOSITORY = re.compile(r"(?:https?://huggingface\.co/)?(\w[\w.-]*/\w[\w.-]*)/?")


@dataclass(frozen=True)
class GgufSource:
    """Tensors under the names of Hugging Face, as float32: what converters change on the way is undone.

    Matrices are [n, k] even of GPT-2, whose folders have them the other way round. Rows of a Llama's queries and keys
    come back from the order in which rotary pairs are neighbours, and 1 is taken from Gemma's norms again, which
    transformers adds when it runs. Quantized values are those that llama.cpp computes with.
    """

    header: GgufHeader
    architecture: Architecture
    config: Config

    @classmethod
    def open(cls, path: Path) -> GgufSource:
        """Raises what :func:`~pocketformer.sources.gguf_reader.read_gguf` and ``read_config`` raise."""
        header = read_gguf(path)
        return cls(header, *read_config(header))

    @property
    def name(self) -> str:
        value = self.header.metadata.get("general.name")
        return value if isinstance(value, str) and value else self.header.path.stem

    @property
    def repository(self) -> str | None:
        values: Mapping[str, object] = self.header.metadata
        found = (_REPOSITORY.fullmatch(str(values.get(key))) for key in _REPOSITORY_KEYS)
        return next((match[1] for match in found if match), None)

    @property
    def license(self) -> str | None:
        value = self.header.metadata.get("general.license")
        return value if isinstance(value, str) and value else None

    def __contains__(self, name: str) -> bool:
        return self.architecture.stored(name) in self.header.tensors

    def shape(self, name: str) -> tuple[int, ...]:
        return self._info(name).shape

    def weight(self, name: str, *shape: int) -> Float32:
        """The matrix ``name``, decoded in each use, only the rows that are asked for.

        Raises CheckpointError when it is missing or has another shape, or, when it is read, that it is not finite.
        """
        info = self._info(name, shape)
        raw = self._raw(info)
        order = self._order(name, shape[0])
        where = f"tensor {info.name!r} in {self.header.path}"

        def stored(begin: int, end: int) -> NDArray[np.uint8]:
            return raw[begin:end] if order is None else raw[order[begin:end]]

        def rows(begin: int, end: int) -> Float32:
            return _decoded(info, stored(begin, end), where)

        return lazy(shape, rows, grouped(info, stored, where))

    def vector(self, name: str, length: int) -> Float32:
        info = self._info(name, (length,))
        values: Float32 = _decoded(info, self._raw(info), f"tensor {info.name!r} in {self.header.path}")[0]
        order = self._order(name, length)
        if order is not None:
            values = values[order]
        if self.architecture.unit_norms and "norm" in info.name:
            values = np.subtract(values, np.float32(1))
        return values

    def _info(self, name: str, shape: tuple[int, ...] | None = None) -> TensorInfo:
        stored = self.architecture.stored(name)
        info = self.header.tensors.get(stored or "")
        if info is None:
            expected = "" if shape is None else f" (expected shape {list(shape)})"
            raise CheckpointError(
                f"tensor {stored!r}, Hugging Face's {name!r}{expected}, is missing from {self.header.path}; the file "
                "holds no complete model: take another, or convert it again"
            )
        if shape is not None and info.shape != shape:
            raise CheckpointError(
                f"tensor {info.name!r} in {self.header.path} has shape {list(info.shape)}, but the metadata asks for "
                f"{list(shape)}; the file is damaged or was made for another program"
            )
        return info

    def _raw(self, info: TensorInfo) -> NDArray[np.uint8]:
        """The bytes of a tensor by rows; a vector is one row."""
        rows = info.shape[0] if len(info.shape) > 1 else 1
        return self.header.content[info.begin : info.end].reshape(rows, -1)

    def _order(self, name: str, rows: int) -> NDArray[np.intp] | None:
        """Which stored row each row of ``name`` is, or None where they lie in order.

        A head's rows are stored as (pair, half) and wanted as (half, pair).
        """
        found = re.search(r"self_attn\.([qk])_proj\.", name)
        if not (self.architecture.interleaved and found):
            return None
        heads = self.config.integer("num_attention_heads" if found[1] == "q" else "num_key_value_heads")
        if rows % (2 * heads):
            raise CheckpointError(f"{self.header.path}: {rows} rows of {name} do not make {heads} heads of pairs")
        order: NDArray[np.intp] = np.arange(rows, dtype=np.intp).reshape(heads, -1, 2).swapaxes(1, 2).reshape(rows)
        return order


def _decoded(info: TensorInfo, raw: NDArray[np.uint8], where: str) -> Float32:
    with np.errstate(all="ignore"):  # what is not finite is refused below
        values = info.type.rows(raw)
    return widen(values, where)


def load_gguf(path: Path) -> Checkpoint:
    """Imports a decoder from a GGUF file; its weights are read, and decoded, when they are used.

    Raises:
        CheckpointError: the file is damaged, or lacks what the model needs.
        UnsupportedModelError: its architecture, a number format, a setting or its tokenizer is not supported.
    """
    source = GgufSource.open(path)
    graph, model = read_decoder(source, transposed=False)
    tokenizer = read_gguf_tokenizer(source.header, graph.vocab_size, graph.max_length)
    text = {
        "max_length": graph.max_length,
        "end_token_ids": tokenizer.end_token_ids if tokenizer else [],
        "sampling": read_sampling(source.header),
        "chat_template": tokenizer.chat_template if tokenizer else None,
        "special_tokens": tokenizer.special_tokens if tokenizer else {},
    }
    return Checkpoint(graph, model, text, tokenizer.json if tokenizer else None)

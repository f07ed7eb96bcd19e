"""Quantize, pack and write, tensor by tensor; and what that did to each."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from math import prod, sqrt
from typing import TYPE_CHECKING

import numpy as np

from ..graph import Array, Graph
from ..packing import stored_weights
from ..pocketwriter import writing
from .packed import Sink, Slot, layout, write_plain, write_rows
from .quantize import Progress, QuantizeOptions, as_quantized, choose_rotations, round_weights
from .report import CompressionReport, Stage, TensorReport

if TYPE_CHECKING:
    from ..sources.huggingface import Checkpoint

WEIGHTS = ("int8", "fp32")


class Memory:
    """A sink that keeps the tensors as arrays."""

    def __init__(self, slots: Mapping[str, Slot]) -> None:
        self.params: dict[str, Array] = {name: np.zeros(slot.shape, slot.dtype) for name, slot in slots.items()}

    def write(self, name: str, begin: int, part: Array) -> None:
        self.params[name][begin : begin + len(part)] = part


class Compression:
    """A plain fp32 ``graph`` on its way to be packed: its ``target`` without parameters, and the ``slots`` of these.

    ``weights`` is ``int8`` (linears, embedding tables, attention) or ``fp32``. Raises ValueError for another word.
    """

    def __init__(self, graph: Graph, weights: str = "int8", options: QuantizeOptions | None = None) -> None:
        if weights not in WEIGHTS:
            raise ValueError(f"weights is {weights!r}; it must be one of {', '.join(WEIGHTS)}")
        self.graph = graph
        self.options = options or QuantizeOptions()
        self.rotations = choose_rotations(graph, self.options) if weights == "int8" else {}
        target = as_quantized(graph, self.rotations) if weights == "int8" else replace(graph, params={})
        self.target = replace(target, weights=stored_weights(target))
        self.slots = layout(self.target)

    def run(self, sink: Sink, progress: Progress | None = None) -> CompressionReport:
        """Fills ``sink`` with the tensors of ``slots``."""
        errors: dict[str, tuple[float, float]] = {}
        peaks: dict[str, float] = {}
        for part in round_weights(self.graph, self.rotations, self.options, progress):
            weight = f"{part.name}.weight"
            slot = self.slots[weight]
            write_rows(sink, weight, slot, part.begin, part.values)
            sink.write(f"{part.name}.scale", part.begin, part.scale)
            if slot.panels:
                sink.write(f"{part.name}.colsum", part.begin, part.values.sum(axis=1, dtype=np.int32))
            error, norm = errors.get(weight, (0.0, 0.0))
            errors[weight] = error + part.error, norm + part.norm
            peaks[weight] = part.peak
        for name, slot in self.slots.items():
            if name in self.graph.params and name not in errors:
                write_plain(sink, name, slot, self.graph.params[name])
        return self._report({name: sqrt(error / max(norm, 1e-60)) for name, (error, norm) in errors.items()}, peaks)

    def _report(self, errors: Mapping[str, float], peaks: Mapping[str, float]) -> CompressionReport:
        params, slots = self.graph.params, self.slots
        tensors = []
        for name, slot in slots.items():
            if name not in params:
                continue  # scales and sums are counted with their weight
            base = name.removesuffix(".weight")
            extras = sum(slots[extra].nbytes for extra in (f"{base}.scale", f"{base}.colsum") if extra in slots)
            after = slot.nbytes + extras
            tensors.append(TensorReport(name, params[name].nbytes, after, errors.get(name, 0.0), peaks.get(name, 0.0)))
        used = sum(tensor.before for tensor in tensors)
        rounded = sum(prod(slot.plain) * slot.dtype.itemsize for slot in slots.values() if slot.dtype != np.int32)
        stages = [Stage("import", sum(array.nbytes for array in params.values()), used)]
        if self.rotations:
            stages.append(Stage("quantize", used, rounded))
        stages.append(Stage("pack", rounded, sum(slot.nbytes for slot in slots.values())))
        return CompressionReport(tuple(stages), tuple(tensors))


def compress_graph(
    graph: Graph, weights: str = "int8", options: QuantizeOptions | None = None, progress: Progress | None = None
) -> tuple[Graph, CompressionReport]:
    """A plain fp32 graph → the packed graph of a pocket file, in memory, and a report.

    ``weights`` is ``int8`` (linears, embedding tables, attention) or ``fp32``. Raises ValueError for another word.
    """
    compression = Compression(graph, weights, options)
    memory = Memory(compression.slots)
    report = compression.run(memory, progress)
    return replace(compression.target, params=memory.params), report


def compress_checkpoint(
    loaded: Checkpoint,
    dst: str | os.PathLike[str],
    weights: str = "int8",
    progress: Progress | None = None,
    options: QuantizeOptions | None = None,
) -> CompressionReport:
    """Compresses an imported checkpoint into the pocket file ``dst``; a part of one weight is in memory at a time.

    Raises ValueError for unknown ``weights`` and PocketFileError when the graph breaks the format; ``dst`` is then
    untouched, as it is after an interrupt.
    """
    compression = Compression(loaded.graph, weights, options)
    model = {**loaded.model, "weights": weights}
    tokenizer = minify(loaded.tokenizer_json)
    with writing(dst, compression.target, compression.slots, model, loaded.text, tokenizer) as file:
        report = compression.run(file, progress)
        if progress:
            progress("write", 1.0)
    return replace(report, file_bytes=os.stat(dst).st_size)


def minify(tokenizer_json: bytes | None) -> bytes | None:
    """The same JSON without the white space between its tokens, which is a third of a typical tokenizer file."""
    if tokenizer_json is None:
        return None
    return json.dumps(json.loads(tokenizer_json), ensure_ascii=False, separators=(",", ":")).encode()

"""The passes in order: quantize, pack, write; and what they did to each tensor."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ..graph import Graph
from ..packing import pack_graph
from ..pocketfile import write_pocket
from .quantize import Progress, QuantizeOptions, dequantize, quantize_graph
from .report import CompressionReport, Stage, TensorReport

if TYPE_CHECKING:
    from ..sources.huggingface import Checkpoint

WEIGHTS = ("int8", "fp32")


def compress_graph(
    graph: Graph, weights: str = "int8", options: QuantizeOptions | None = None, progress: Progress | None = None
) -> tuple[Graph, CompressionReport]:
    """A plain fp32 graph → the packed graph of a pocket file and a report.

    ``weights`` is ``int8`` (linears, embedding tables, attention) or ``fp32``. Raises ValueError for another word.
    """
    if weights not in WEIGHTS:
        raise ValueError(f"weights is {weights!r}; it must be one of {', '.join(WEIGHTS)}")
    quantized = quantize_graph(graph, options, progress) if weights == "int8" else graph
    packed = pack_graph(quantized)
    tensors = _tensors(graph, quantized, packed)
    used = sum(tensor.before for tensor in tensors)
    stages = [Stage("import", sum(array.nbytes for array in graph.params.values()), used)]
    if weights == "int8":
        stages.append(Stage("quantize", used, _bytes(quantized, packed)))
    stages.append(Stage("pack", _bytes(quantized, packed), sum(tensor.after for tensor in tensors)))
    return packed, CompressionReport(tuple(stages), tuple(tensors))


def compress_checkpoint(
    loaded: Checkpoint,
    dst: str | os.PathLike[str],
    weights: str = "int8",
    progress: Progress | None = None,
    options: QuantizeOptions | None = None,
) -> CompressionReport:
    """Compresses an imported checkpoint and writes the pocket file ``dst``.

    Raises ValueError for unknown ``weights`` and PocketFileError when the graph breaks the format; ``dst`` is then
    untouched.
    """
    packed, report = compress_graph(loaded.graph, weights, options, progress)
    if progress:
        progress("write", 1.0)
    model = {**loaded.model, "weights": weights}
    write_pocket(dst, packed, model, loaded.text, minify(loaded.tokenizer_json))
    return replace(report, file_bytes=os.stat(dst).st_size)


def minify(tokenizer_json: bytes | None) -> bytes | None:
    """The same JSON without the white space between its tokens, which is a third of a typical tokenizer file."""
    if tokenizer_json is None:
        return None
    return json.dumps(json.loads(tokenizer_json), ensure_ascii=False, separators=(",", ":")).encode()


def _tensors(graph: Graph, quantized: Graph, packed: Graph) -> list[TensorReport]:
    rotations = {name: facts.get("rotate", 0) for name, facts in quantized.weights.items()}
    result = []
    for name, stored in packed.params.items():
        if name not in graph.params:
            continue  # scales and sums are counted with their weight
        base = name.removesuffix(".weight")
        extras = (
            packed.params[extra].nbytes for extra in (f"{base}.scale", f"{base}.colsum") if extra in packed.params
        )
        error = 0.0
        if stored.dtype == np.int8:
            plain = graph.params[name]
            real = dequantize(quantized.params[name], quantized.params[f"{base}.scale"], rotations.get(base, 0))
            error = float(np.linalg.norm(real - plain) / max(float(np.linalg.norm(plain)), 1e-30))
        result.append(TensorReport(name, graph.params[name].nbytes, stored.nbytes + sum(extras), error))
    return result


def _bytes(graph: Graph, packed: Graph) -> int:
    return sum(array.nbytes for name, array in graph.params.items() if name in packed.params)

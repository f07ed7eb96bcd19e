"""Quantize, pack and write, tensor by tensor; and what that did to each."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from math import prod, sqrt
from typing import TYPE_CHECKING

import numpy as np

from ..graph import Array, Graph
from ..grouped import GROUP_PARTS, Grouped
from ..lazy import grouped_of
from ..packing import stored_weights
from ..pocketwriter import file_bytes, writing
from .calibration import FEW_TOKENS, TOKENS, Samples, takes_tokens
from .dataflow import Dataflow
from .options import QuantizeOptions
from .packed import Sink, Slot, layout, row_parts, write_part, write_plain
from .pictures import sample, takes_images
from .precision import FP16, INT8
from .profile import Observer, Progress, kept_profile, load_profile
from .profile import save_profile as keep_profile
from .quantize import Profiler, Quantization, calibrated_profiler
from .report import CompressionReport, Stage, TensorReport

if TYPE_CHECKING:
    from ..sources.huggingface import Checkpoint

WEIGHTS = {"int8": 8, "int4": 4, "fp16": 16, "fp32": 32, "gguf": 8}
"""Bits of linears."""


EXTRAS = (*GROUP_PARTS, "high", "codebook", "colsum")
"""What is stored beside a rounded weight, and counted with it."""


class Memory:
    """A sink that keeps the tensors as arrays."""

    def __init__(self, slots: Mapping[str, Slot]) -> None:
        self.params: dict[str, Array] = {name: np.zeros(slot.shape, slot.dtype) for name, slot in slots.items()}

    def write(self, name: str, begin: int, part: Array) -> None:
        self.params[name][begin : begin + len(part)] = part


class Compression:
    """A plain fp32 ``graph`` on its way to be packed: its ``target`` without parameters, and the ``slots`` of these.

    ``weights`` is the precision of linears where ``options`` name no other: ``int8`` or ``int4``, and tables and
    attention are rounded too, ``fp16``, which is that of tables too, or ``fp32``, and nothing is rounded; with ``gguf``
    the integers of a GGUF file are kept, and what has none becomes int8. ``profiler``: see Quantization.

    Raises ValueError for another word, and where pairs are to be bounded and nothing has any.
    """

    def __init__(
        self,
        graph: Graph,
        weights: str = "int8",
        options: QuantizeOptions | None = None,
        profiler: Profiler | None = None,
    ) -> None:
        if weights not in WEIGHTS:
            raise ValueError(f"weights is {weights!r}; it must be one of {', '.join(WEIGHTS)}")
        self.graph = graph
        rounded, options = weights != "fp32", options or QuantizeOptions()
        self.kept = kept_integers(graph, options) if weights == "gguf" else {}
        self.quantization = Quantization(graph, options, WEIGHTS[weights], profiler, self.kept) if rounded else None
        target = self.quantization.target if self.quantization else replace(graph, params={})
        if options.bounded_pairs and not any(facts.get("bounded_pairs") for facts in target.weights.values()):
            raise no_pairs(weights)
        precisions = self.quantization.precisions.values() if self.quantization else ()
        if options.refit_int8 and not any(precision.bits == INT8 for precision in precisions):
            raise ValueError(f"refit_int8 is of int8, and with weights {weights!r} there is none; leave it out")
        self.target = replace(target, weights=stored_weights(target))
        self.slots = layout(self.target, [name for name, grouped in self.kept.items() if grouped.minimum])

    def run(self, sink: Sink, progress: Progress | None = None) -> CompressionReport:
        """Fills ``sink`` with the tensors of ``slots``."""
        errors: dict[str, tuple[float, float]] = {}
        peaks: dict[str, float] = {}
        for part in self.quantization.round(progress) if self.quantization else ():
            weight = f"{part.name}.weight"
            slot = self.slots[weight]
            write_part(sink, part.name, "weight", self.slots, part.begin, part.values)
            if part.scale.ndim > 1:
                write_part(sink, part.name, "scale", self.slots, part.begin, part.scale)
            else:
                sink.write(f"{part.name}.scale", part.begin, part.scale)
            if part.codebook is not None:
                sink.write(f"{part.name}.codebook", 0, part.codebook)
            elif slot.panels:
                sink.write(f"{part.name}.colsum", part.begin, part.values.sum(axis=1, dtype=np.int32))
            error, norm = errors.get(weight, (0.0, 0.0))
            errors[weight] = error + part.error, norm + part.norm
            peaks[weight] = part.peak
        for done, (name, grouped) in enumerate(self.kept.items()):
            if progress:
                progress(name, done / len(self.kept))
            for begin, end in row_parts(grouped.shape):
                for role, rows in grouped.stored(begin, end).items():
                    write_part(sink, name, role, self.slots, begin, rows)
            codebook = grouped.codebook()
            if codebook is not None:
                sink.write(f"{name}.codebook", 0, codebook)
            errors[f"{name}.weight"] = 0.0, 1.0
        params = (self.quantization or self).graph.params
        for name, slot in self.slots.items():
            if name in params and name not in errors:
                errors[name] = write_plain(sink, name, slot, params[name])
        return self._report({name: sqrt(error / max(norm, 1e-60)) for name, (error, norm) in errors.items()}, peaks)

    def _report(self, errors: Mapping[str, float], peaks: Mapping[str, float]) -> CompressionReport:
        params, slots = self.graph.params, self.slots
        tensors = []
        for name, slot in slots.items():
            if name not in params:
                continue  # scales and sums are counted with their weight
            base = name.removesuffix(".weight")
            extras = sum(slots[f"{base}.{extra}"].nbytes for extra in EXTRAS if f"{base}.{extra}" in slots)
            after = slot.nbytes + extras
            precision = self.target.weights.get(base, {}).get("format", "f32") if name != base else "f32"
            known = errors.get(name, 0.0), peaks.get(name, 0.0)
            tensors.append(TensorReport(name, params[name].nbytes, after, *known, slot.plain, precision))
        used = sum(tensor.before for tensor in tensors)
        rounded = sum(
            prod(slot.plain) * (slot.bits or 8 * slot.dtype.itemsize) // 8
            for slot in slots.values()
            if slot.dtype != np.int32
        )
        stages = [Stage("import", sum(array.nbytes for array in params.values()), used)]
        if self.quantization:
            stages.append(Stage("quantize", used, rounded))
        stages.append(Stage("pack", rounded, sum(slot.nbytes for slot in slots.values())))
        how = self.quantization
        report = CompressionReport(tuple(stages), tuple(tensors))
        return report if how is None else replace(report, unscaled=how.unscaled, zeros=how.zeros)


def no_pairs(weights: str) -> ValueError:
    """What is raised where pairs are to be bounded and nothing has any."""
    return ValueError(f"bounded_pairs is of int8 linears, and with weights {weights!r} there are none; leave it out")


def kept_integers(graph: Graph, options: QuantizeOptions) -> dict[str, Grouped]:
    """The weights of ``graph`` whose integers can be stored as they are, and of which ``options`` say nothing else.

    A table is among them where no other of its lookup stands before it.
    """
    flow = Dataflow(graph)
    found = {
        name: grouped_of(graph.params[f"{name}.weight"])
        for name in {**flow.tables, **flow.linears}
        if not flow.tables.get(name) and not any(fnmatchcase(name, pattern) for pattern in options.precision)
    }
    return {name: grouped for name, grouped in found.items() if grouped is not None}


def compress_graph(
    graph: Graph,
    weights: str = "int8",
    options: QuantizeOptions | None = None,
    progress: Progress | None = None,
    profiler: Profiler | None = None,
) -> tuple[Graph, CompressionReport]:
    """A plain fp32 graph → the packed graph of a pocket file, in memory, and a report.

    ``weights``, ``options`` and ``profiler`` are those of Compression.
    """
    compression = Compression(graph, weights, options, profiler)
    memory = Memory(compression.slots)
    report = compression.run(memory, progress)
    return replace(compression.target, params=memory.params), report


def compress_checkpoint(
    loaded: Checkpoint,
    dst: str | os.PathLike[str],
    weights: str = "int8",
    progress: Progress | None = None,
    options: QuantizeOptions | None = None,
    calibration: Samples | str | os.PathLike[str] | None = None,
    save_profile: str | os.PathLike[str] | None = None,
) -> CompressionReport:
    """Compresses an imported checkpoint into the pocket file ``dst``; a part of one weight is in memory at a time.

    ``calibration``: what the model is run on, see :func:`~pocketformer.compress`; ``save_profile``: where what was seen
    of it is kept.

    Raises ValueError for unknown ``weights`` or a calibration that is of no use, and PocketFileError when the graph
    breaks the format; ``dst`` is then untouched, as it is after an interrupt.
    """
    options = options or QuantizeOptions()
    profiler = None
    if weights in WEIGHTS and rounds(loaded.graph, weights, options):
        profiler = make_profiler(loaded, options, calibration, save_profile, WEIGHTS[weights])
    if profiler is None and (calibration is not None or save_profile is not None):
        raise ValueError(f"weights is {weights!r} and rounded without calibration; leave calibration out")
    compression = Compression(loaded.graph, weights, options, profiler)
    model = {**loaded.model, "weights": weights}
    tokenizer = minify(loaded.tokenizer_json)
    with writing(dst, compression.target, compression.slots, model, loaded.text, tokenizer) as file:
        report = compression.run(file, progress)
        if progress:
            progress("write", 1.0)
    return replace(report, file_bytes=os.stat(dst).st_size, weights=weights)


def predicted_bytes(loaded: Checkpoint, weights: str, options: QuantizeOptions | None = None) -> int:
    """The size of the file that ``compress_checkpoint`` would write, from shapes alone."""
    return bytes_of(replace(loaded, tokenizer_json=minify(loaded.tokenizer_json)), weights, options)


def bytes_of(loaded: Checkpoint, weights: str, options: QuantizeOptions | None) -> int:
    """The same where the tokenizer is minified already: it is large."""
    compression = Compression(loaded.graph, weights, options)
    model = {**loaded.model, "weights": weights}
    return file_bytes(compression.target, compression.slots, model, loaded.text, loaded.tokenizer_json)


def rounds(graph: Graph, weights: str, options: QuantizeOptions) -> bool:
    """Whether weights of ``graph`` become integers, for which the model is run on a calibration."""
    if weights != "fp16":
        return weights != "fp32"
    return any(precision.bits <= INT8 for precision in options.precisions(graph, FP16).values())


def make_profiler(
    loaded: Checkpoint,
    options: QuantizeOptions,
    calibration: Samples | str | os.PathLike[str] | None,
    save_to: str | os.PathLike[str] | None = None,
    linear_bits: int = 8,
    needed: bool = False,
) -> Profiler | None:
    """What runs the model of ``loaded``: on ``calibration``, or where that is None on our own texts, or on random
    tokens where these are strange to it; None where the options ask for none. An ``.npz`` is a profile that was kept.

    ``needed``: by what prunes, which wants as many rows as fewer bits do. Of images int8 is rounded without having seen
    any unless they are given: pictures that are made up are for fewer bits, and for what prunes.

    A profile that is kept or used again is that of the fp32 model: nothing is then fitted to what rounding has changed.

    Raises ValueError for ``refit_int8`` beside such a profile, or where nothing is run.
    """
    graph = loaded.graph
    if options.refit_int8 and (kept_profile(calibration) or save_to is not None):
        raise ValueError(
            "refit_int8 runs the rounded model beside the exact one, of which a profile that is kept says nothing; "
            "give texts, and keep none"
        )
    if kept_profile(calibration):
        path = calibration
        return Profiler(lambda names, _: load_profile(path, graph, names))
    thorough = options.thorough(graph, linear_bits) or needed
    made_up = options.random_tokens > 0 and (takes_tokens(graph) or (takes_images(graph) and thorough))
    if calibration is not None:
        chosen = sample(loaded, calibration, TOKENS, 0)
    elif made_up:
        chosen = sample(loaded, None, TOKENS if thorough else FEW_TOKENS, options.random_tokens)
    elif options.refit_int8:
        raise ValueError("refit_int8 needs what the model is run on; give a calibration")
    else:
        return None
    profiler = calibrated_profiler(graph, chosen)
    if save_to is not None and options.scaling in ("smooth", "awq"):
        raise ValueError(f"scaling is {options.scaling!r}, and a profile that is kept is not scaled; leave it out")
    if save_to is None:
        return profiler
    linears = list(dict.fromkeys(op["weight"] for op in graph.ops if op["op"] == "linear"))
    return Profiler(lambda names, _: _only(names, keep_profile(save_to, profiler(linears))))


def _only(names: Collection[str], observers: Iterable[Observer]) -> Iterator[Observer]:
    """``observers`` of ``names``: a profile that is kept knows all linears, whatever their precision is this time."""
    for observer in observers:
        observer.weights = tuple(name for name in observer.weights if name in names)
        if observer.weights:
            yield observer


def minify(tokenizer_json: bytes | None) -> bytes | None:
    """The same JSON without the white space between its tokens, which is a third of a typical tokenizer file."""
    if tokenizer_json is None:
        return None
    return json.dumps(json.loads(tokenizer_json), ensure_ascii=False, separators=(",", ":")).encode()

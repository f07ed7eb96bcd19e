"""A cost model: latency and memory of a pocket file on a machine that need not be at hand.

Products take their multiply-adds over peak × share, or as long as their weights take to arrive from memory; the other
phases take so many multiply-adds of fp32 for each element; threads meet at barriers. Measured to be within 20% on the
machine that the constants come from (tests/runtime/test_predict.py); what it says of boards is a prediction.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .._core import Program, block_rows
from ..engine import Engine
from ..graph import Graph
from .boards import Machine

# Operations for each element, in fp32 multiply-adds at peak: cycles for each 16 lanes of the AVX-512 kernels, one pipe
# (docs/performance.md). Per score: exponent 7 and quantizing P 3.5 cycles for 16 queries.
ROTATE_QUANTIZE, QUANTIZE, STORE, NORM, ACTIVATION, EPILOGUE, EMBED, POOL = 12.0, 6.0, 11.0, 11.0, 12.0, 3.5, 25.0, 4.0
SCORE_I8, SCORE_F32 = 10.5, 8.0
# Of maps of pixels, which the nearest caches do not hold, on AVX2: a number that is copied into a window, a pixel that
# a depthwise convolution multiplies, one that is added to a mean, and what rounding and activations then take.
WINDOW, TAP, MEAN, MAP_QUANTIZE, MAP_ACTIVATION = 34.0, 2.5, 14.0, 18.0, 35.0
# For each byte of weights that a block of rows takes from a cache.
WEIGHT = 0.2
# For each weight of fewer than 8 bits that a block of rows makes 8 bits of (4 and 5 bits, groups of 64 and channels, on
# AVX2: 1.3 to 3.7).
UNPACK = 2.6
# Of the share of its peak that a product of int8 reaches, that of one of bounded pairs: it takes 0.75 of the time where
# the peaks allow 0.66 (AVX2, docs/decisions/0009).
PAIRS_SHARE = 0.88
# Rows that share what they pass over.
SKIP_ROWS = 4
# The planner's: rows a thread below which columns are split, with weights from a cache and from memory.
MIN_CACHED_ROWS, MIN_FETCHED_ROWS = 8, 17
# The interpreter with numpy, tokenizers and this package, measured on Linux x86-64.
PYTHON_BYTES = 34_000_000


PHASES = {
    "embed": ("embedding", EMBED),
    "norm": ("norm", NORM),
    "quantize_heads": ("split", STORE),
    "store": ("split", STORE),
    **dict.fromkeys(("unfold", "fold", "concat", "resize"), ("windows", WINDOW)),
    "average": ("windows", MEAN),
}
"""Phase and cost of an element by kind of step; those of attention and products are more than one number."""


@dataclass(frozen=True)
class Work:
    """What one operator asks of the machine for all rows of a run."""

    phase: str
    rows: float
    macs: float = 0  # multiply-adds of products
    int8: bool = False
    bounded_pairs: bool = False  # of the weights
    elements: float = 0  # in fp32 multiply-adds
    weight_bytes: float = 0
    unpacked: float = 0  # weights of fewer than 8 bits


def predict(engine: Engine, machine: Machine, lengths: list[int], threads: int) -> dict[str, Any]:
    """Seconds of one run over sequences of ``lengths`` tokens, by phase, and bytes by kind; ready for JSON. The length
    of an image is how many pixels it has.

    Raises ValueError for a length that the model does not allow and for more threads than the machine has cores.
    """
    stored = sum(array.nbytes for array in engine.file.graph.params.values())
    image = engine.file.graph.find_input("pixels") is not None
    return predict_program(engine.program, stored, machine, lengths, threads, keeps(engine.file.graph), image=image)


def keeps(graph: Graph) -> bool:
    """Whether keys and values stay in a cache of the caller from run to run: those of decoders do."""
    return any(state.get("kept") for state in graph.states)


def predict_program(
    program: Program,
    file_bytes: int,
    machine: Machine,
    lengths: list[int],
    threads: int,
    kept: bool = False,
    *,
    image: bool = False,
) -> dict[str, Any]:
    """The same of a program whose file, which needs not exist, has ``file_bytes``; ``kept``: see :func:`keeps`."""
    if not 1 <= threads <= machine.cores:
        raise ValueError(f"threads is {threads}; {machine.name} has {machine.cores} cores, use 1 to {machine.cores}")
    stays = 2 * program.stage_weight_bytes <= machine.cache_bytes
    selected = len(lengths) if program.output_kind == "selected" else 0
    works = list(_works(program, lengths, selected))
    cached = sum(work.weight_bytes for work in works) <= machine.cache_bytes
    phases: dict[str, float] = {}
    for work in works:
        # Of texts nearly everything has the rows of the tokens; those of an image's parts are many and few.
        rows = round(work.rows) if image else sum(lengths)
        columns = _in_columns(rows, threads, stays)
        block = rows if columns else min(rows, block_rows(rows, threads, stays))
        blocks = _ceil(rows, block)
        speed = threads if columns else threads / _imbalance(rows, block, threads)
        elements = work.elements + (WEIGHT * work.weight_bytes + UNPACK * work.unpacked) * blocks
        compute = elements / (machine.f32_peak * 1e9 * machine.element_share)
        if work.phase == "attention":
            compute += work.macs / (_peak(machine, work.int8) * machine.attention_share)
        else:
            share = machine.int8_share if work.int8 else machine.f32_share
            peak = _peak(machine, work.int8)
            if work.bounded_pairs:
                peak = max(peak, machine.pairs_peak * 1e9 * PAIRS_SHARE)
            compute += work.macs / (peak * share)
        # Blocks that follow one another find an operator's weights in the cache when it holds them.
        passes = 1 if work.weight_bytes <= machine.cache_bytes else blocks
        arrival = 0 if cached else work.weight_bytes * passes / (machine.bandwidth * 1e9)
        phases[work.phase] = phases.get(work.phase, 0.0) + max(compute / speed, arrival)
    columns = _in_columns(sum(lengths), threads, stays)
    meetings = program.meetings if columns else program.stages
    phases["barriers"] = meetings * machine.barrier_seconds if threads > 1 else 0.0
    phases["call"] = machine.call_seconds
    memory = {
        "file": file_bytes,
        "working": program.arena_bytes(lengths, threads, selected),
        "cache": sum(program.cache_bytes(length, length) for length in lengths) if kept else 0,
        "python": PYTHON_BYTES,
    }
    return {
        "lengths": lengths,
        "threads": threads,
        "seconds": sum(phases.values()),
        "phases": phases,
        "bytes": sum(memory.values()),
        "memory": memory,
    }


def _works(program: Program, lengths: list[int], selected: int) -> Iterator[Work]:
    """Sixteen queries of a head are a vector; keys are those that one of them sees."""
    steps = program.work(lengths, selected)
    maps = any(step["kind"] in ("depthwise", "average") for step in steps)
    activation, rotate, quantize = (
        (MAP_ACTIVATION, MAP_QUANTIZE, MAP_QUANTIZE) if maps else (ACTIVATION, ROTATE_QUANTIZE, QUANTIZE)
    )
    for step in steps:
        kind, elements = step["kind"], step["elements"]
        if kind == "linear":
            cost = EPILOGUE * elements + activation * step["activated"]
            left = 1 - step["zeros"] ** min(step["rows"], SKIP_ROWS)  # as if rows had theirs apart from each other
            macs, weights = left * step["multiply_adds"], left * step["weight_bytes"]
            count = step["multiply_adds"] / step["rows"]
            few = left * count if step["int8"] and step["weight_bytes"] < count else 0.0
            yield Work("linear", step["rows"], macs, step["int8"], step["bounded_pairs"], cost, weights, few)
        elif kind in ("mix", "linear_attention", "nystrom"):
            yield Work("attention", step["rows"], step["multiply_adds"], elements=POOL * elements)
        elif kind in ("depthwise", "convolve"):
            cost = TAP * step["multiply_adds"] + EPILOGUE * elements + activation * step["activated"]
            yield Work("depthwise", step["rows"], elements=cost, weight_bytes=step["weight_bytes"])
        elif kind == "quantize":
            cost = quantize * elements + (rotate - quantize) * step["rotated"]
            yield Work("quantize", step["rows"], elements=cost)
        elif kind == "attention":
            lanes, each = step["score_lanes"], SCORE_I8 if step["int8"] else SCORE_F32
            macs = step["multiply_adds"] * lanes / step["scores"]
            yield Work("attention", step["rows"], macs, step["int8"], elements=each * lanes)
        else:
            phase, cost = PHASES.get(kind, ("pooling", POOL))
            yield Work(phase, step["rows"], elements=cost * elements)


def _in_columns(rows: int, threads: int, stays: bool) -> bool:
    return threads > 1 and rows < (MIN_CACHED_ROWS if stays else MIN_FETCHED_ROWS) * threads


def _peak(machine: Machine, int8: bool) -> float:
    return (machine.int8_peak if int8 else machine.f32_peak) * 1e9


def _ceil(count: int, unit: int) -> int:
    return (count + unit - 1) // unit


def _imbalance(rows: int, block: int, threads: int) -> float:
    """How much longer the busiest thread takes than the mean."""
    whole, rest = divmod(rows, block)
    busiest = whole // threads * block + (block if whole % threads else rest)
    return busiest * threads / rows

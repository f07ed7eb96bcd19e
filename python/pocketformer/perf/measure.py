"""Timings of a pocket file, and what this machine can do at most; the command ``pocketformer bench`` prints them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from .. import _core
from ..engine import Engine, require_texts
from .machine import describe_machine

PROBES = 10
"""How often a peak is probed at most that a run was above."""
_FRESH_PROCESS = """
import sys
from pocketformer.perf.measure import peak_rss, prepare
from pocketformer.engine import Engine
engine = Engine(sys.argv[1], None)
prepare(engine, 16, 1)()
print(peak_rss())
"""


def peaks(threads: Sequence[int] | None = None, seconds: float = 0.3) -> dict[str, Any]:
    """What this machine can do at most, each figure the best of ``seconds``; ready for JSON.

    ``peaks`` has a row for each number of threads (default: 1 to one for each strong core, above 8 in doublings),
    ``isas`` one for one thread of each instruction set. ``int8_gmacs`` and ``fp32_gmacs`` are 10⁹ multiply-adds a
    second by the product's inner instruction alone, ``read_gbps`` the gigabytes a second read from beyond every cache.
    """
    milliseconds = max(1, round(1000 * seconds))
    by_threads = [
        {
            "threads": count,
            "int8_gmacs": _core.probe_int8(milliseconds=milliseconds, threads=count),
            "fp32_gmacs": _core.probe_f32(milliseconds=milliseconds, threads=count),
            "read_gbps": _core.probe_bandwidth(milliseconds, threads=count),
        }
        for count in sorted(set(threads or _thread_counts()))
    ]
    isas = [
        {
            "isa": isa,
            "int8_gmacs": _core.probe_int8(isa, milliseconds),
            "fp32_gmacs": _core.probe_f32(isa, milliseconds),
        }
        for isa in _core.isas()
    ]
    return {"machine": describe_machine(), "peaks": by_threads, "isas": isas}


def measure(
    path: str, lengths: Sequence[int], batches: Sequence[int], threads: Sequence[int] | None, seconds: float
) -> dict[str, Any]:
    """Every combination that the model allows, each repeated for ``seconds``; times in seconds, ready for JSON.

    Every run quotes the peaks of its own minute, probed before and after it, and again where the run was above them:
    the probe was disturbed then. ``peak_share`` is what its multiply-adds would take at the peak of the weights' type,
    ``roofline_share`` the larger of that and of what reading its weights once would take, each divided by the median
    time. Weights that fit into a cache are read at that cache's speed.
    """
    loads = [timed(lambda: Engine(path, None)) for _ in range(5)]
    reference = Engine(path, None)
    require_texts(reference, "bench measures")
    program, longest = reference.program, reference.file.graph.max_length
    allowed = [n for n in lengths if n <= longest]
    if not allowed:
        raise ValueError(f"all lengths are above {longest}, the longest sequence that {path} allows")
    int8 = reference.file.model["weights"] not in ("fp16", "fp32")
    stored = weight_bytes(reference)
    probe = _core.probe_int8 if int8 else _core.probe_f32
    runs = []
    for count in sorted(set(threads or (1, _core.default_threads()))):
        engine = Engine(path, count)
        read = _core.probe_bandwidth(100, bytes=max(stored, 1 << 16), threads=count)
        for batch in batches:
            for length in allowed:
                call = prepare(engine, length, batch)
                call()
                peak = probe(milliseconds=30, threads=count)
                times = repeated(call, seconds)
                macs = sum(multiply_adds(reference, length).values()) * batch
                for _ in range(PROBES):
                    peak = max(peak, probe(milliseconds=30, threads=count))
                    if macs / 1e9 / peak <= min(times):
                        break
                middle = median(times)
                computing, reading = macs / 1e9 / peak, stored / 1e9 / read
                runs.append(
                    {
                        "threads": count,
                        "batch": batch,
                        "length": length,
                        "median": middle,
                        "best": min(times),
                        "repetitions": len(times),
                        "tokens_per_second": batch * length / middle,
                        "gmacs": macs / middle / 1e9,
                        "peak_gmacs": peak,
                        "read_gbps": read,
                        "peak_share": computing / middle,
                        "roofline_share": max(computing, reading) / middle,
                        "arena_bytes": program.arena_bytes([length] * batch, count, _selected(engine, batch)),
                    }
                )
    return {
        "name": reference.file.model["name"],
        "weights": reference.file.model["weights"],
        "isa": program.isa,
        "load_seconds": min(loads),
        "peak_rss_bytes": fresh_rss(path),
        "runs": runs,
    }


def prepare(engine: Engine, length: int, batch: int) -> Any:
    """A call without arguments that runs ``batch`` random sequences of ``length`` tokens."""
    rng = np.random.default_rng(0)
    vocab = engine.file.graph.vocab_size
    sequences = [rng.integers(0, vocab, length, dtype=np.int32) for _ in range(batch)]
    selected = np.arange(batch, dtype=np.int64) * length if _selected(engine, batch) else None
    return lambda: engine.run(sequences, None, selected)


def multiply_adds(engine: Engine, length: int) -> dict[str, int]:
    """Multiply-adds of one sequence of ``length`` tokens in the steps ``linear`` and ``attention``."""
    total = {"linear": 0, "attention": 0}
    for step in engine.program.work([length], _selected(engine, 1)):
        if step["kind"] in total:
            total[step["kind"]] += int(step["multiply_adds"])
    return total


def weight_bytes(engine: Engine) -> int:
    """Bytes of the weights of all products."""
    return sum(int(step["weight_bytes"]) for step in engine.program.work([1], _selected(engine, 1)))


def peak_rss() -> int:
    """The most bytes that this process has had in memory; ``getrusage`` would count what its parent had at the fork."""
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def _selected(engine: Engine, batch: int) -> int:
    """Rows that ``prepare``'s call asks for: one a sequence, of models that give one for each row asked for."""
    return batch if engine.program.output_kind == "selected" else 0


def _thread_counts() -> list[int]:
    most = _core.default_threads()
    doublings = [8 << i for i in range(1, 8) if 8 << i < most]
    return sorted({*range(1, min(most, 8) + 1), *doublings, most})


def timed(call: Callable[[], Any]) -> float:
    """Seconds that ``call()`` takes."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def repeated(call: Callable[[], Any], seconds: float) -> list[float]:
    """Seconds of each call: at least three calls and ``seconds`` in total."""
    times = [timed(call)]
    while sum(times) < seconds or len(times) < 3:
        times.append(timed(call))
    return times


def fresh_rss(path: str, script: str = _FRESH_PROCESS) -> int:
    """``peak_rss`` that ``script`` prints, in a fresh process with the pocket file as its argument.

    The default loads the file and runs a sequence of 16 tokens.
    """
    done = subprocess.run(
        [sys.executable, "-c", script, os.path.abspath(path)], capture_output=True, text=True, check=True
    )
    return int(done.stdout)

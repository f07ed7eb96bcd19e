"""Timings of a pocket file on this machine; the command ``pocketformer bench`` prints them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from . import _core
from .engine import Engine
from .graph import Graph

_FRESH_PROCESS = """
import sys
from pocketformer.measure import peak_rss, prepare
from pocketformer.engine import Engine
engine = Engine(sys.argv[1], None)
prepare(engine, 16, 1)()
print(peak_rss())
"""


def measure(
    path: str, lengths: Sequence[int], batches: Sequence[int], threads: Sequence[int] | None, seconds: float
) -> dict[str, Any]:
    """Every combination that the model allows, each repeated for ``seconds``; times in seconds, ready for JSON.

    ``peak_share`` of an int8 file is its multiply-adds a second over ``threads`` times what a bare loop of the integer
    instruction reaches on one core at that moment.
    """
    loads = [timed(lambda: Engine(path, None)) for _ in range(5)]
    reference = Engine(path, None)
    program, graph = reference.program, reference.file.graph
    allowed = [n for n in lengths if n <= program.max_length]
    if not allowed:
        raise ValueError(f"all lengths are above {program.max_length}, the longest sequence that {path} allows")
    peak = _core.probe_int8()
    runs = []
    for count in sorted(set(threads or (1, _core.default_threads()))):
        engine = Engine(path, count)
        for batch in batches:
            for length in allowed:
                call = prepare(engine, length, batch)
                call()
                times = repeated(call, seconds)
                middle = median(times)
                macs = sum(multiply_adds(graph, length).values()) * batch
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
                        "peak_share": macs / middle / 1e9 / (peak * count) if _is_int8(engine) else None,
                        "arena_bytes": program.arena_bytes([length] * batch, count, _rows(engine, batch)),
                    }
                )
    return {
        "name": reference.file.model["name"],
        "weights": reference.file.model["weights"],
        "isa": program.isa,
        "load_seconds": min(loads),
        "peak_rss_bytes": _fresh_rss(path),
        "peak_gmacs": peak,
        "runs": runs,
    }


def prepare(engine: Engine, length: int, batch: int) -> Any:
    """A call without arguments that runs ``batch`` random sequences of ``length`` tokens."""
    rng = np.random.default_rng(0)
    vocab = engine.file.graph.vocab_size
    sequences = [rng.integers(0, vocab, length, dtype=np.int32) for _ in range(batch)]
    rows = np.arange(batch, dtype=np.int64) * length if _rows(engine, batch) else None
    return lambda: engine.run(sequences, None, rows)


def multiply_adds(graph: Graph, length: int) -> dict[str, int]:
    """Multiply-adds of one sequence of ``length`` tokens in the operators ``linear`` and ``attention``."""
    total = {"linear": 0, "attention": 0}
    per_sequence: set[str] = set()  # values with a single row for each sequence
    for op in graph.ops:
        source = op.get("in")
        if op["op"] in ("pool", "select") or source in per_sequence:
            per_sequence.add(op["out"])
        rows = 1 if source in per_sequence else length
        if op["op"] == "linear":
            total["linear"] += rows * op["n"] * op["k"]
        elif op["op"] == "attention":
            total["attention"] += 2 * op["heads"] * op["head_dim"] * length * length
    return total


def peak_rss() -> int:
    """The most bytes that this process has had in memory; ``getrusage`` would count what its parent had at the fork."""
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def _rows(engine: Engine, batch: int) -> int:
    return batch if engine.program.output_domain == "rows" else 0


def _is_int8(engine: Engine) -> bool:
    return bool(engine.file.model["weights"] == "int8")


def timed(call: Any) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def repeated(call: Any, seconds: float) -> list[float]:
    times = [timed(call)]
    while sum(times) < seconds or len(times) < 3:
        times.append(timed(call))
    return times


def _fresh_rss(path: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", _FRESH_PROCESS, os.path.abspath(path)], capture_output=True, text=True, check=True
    )
    return int(done.stdout)

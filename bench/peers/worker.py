"""The child process of one runner, driven by JSON lines: ``python -m bench.peers.worker NAME CACHE THREADS``."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from bench.peers.runners import RUNNERS, Runner

CLOCKS = {"wall": time.perf_counter, "process": time.process_time}


def measure(runner: Runner, ids: list[list[int]], seconds: float, least: int, clock: str) -> list[float]:
    """Seconds of each call, after one call that is not counted: at least ``least`` calls and ``seconds`` in total.

    The process's own clock stands while a neighbour has the core; it adds up what all threads of the process take.
    """
    now = CLOCKS[clock]
    runner.run(ids)
    times: list[float] = []
    while len(times) < least or sum(times) < seconds:
        start = now()
        runner.run(ids)
        times.append(now() - start)
    return times


def answer(runner: Runner, request: dict[str, Any]) -> Any:
    if request["do"] == "measure":
        return measure(runner, request["ids"], request["seconds"], request["least"], request["clock"])
    return runner.run(request["ids"]).tolist()


def main() -> None:
    name, cache, threads = sys.argv[1:]
    # Libraries print to standard output: the replies get a descriptor of their own.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    runner = RUNNERS[name]()
    runner.load(Path(cache), int(threads))
    print(json.dumps(runner.version), file=replies, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(runner, json.loads(line))), file=replies, flush=True)


if __name__ == "__main__":
    main()

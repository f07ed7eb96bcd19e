"""The whole bench: JSON and a page in one folder. ``make bench`` runs ``python -m bench.run``.

About ten minutes; ``--everything`` takes every case, runtime and more rounds. What cannot run here is left out, and
the page says why. Kernels and models run on an idle machine or not at all: nothing else should be running.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from bench.page import render
from bench.peers import attention, compare, prepare, products
from bench.peers.peer import ROOT, available, default_cache
from bench.results import Result
from pocketformer.fetch import fetch
from pocketformer.perf.measure import peaks


def pytest_benchmarks(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The suite of bench/test_*.py. Raises RuntimeError when a benchmark fails."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "benchmarks.json"
        command = [sys.executable, "-m", "pytest", "bench", "-q", "-p", "no:cacheprovider", "--benchmark-quiet"]
        command += ["--benchmark-disable-gc", f"--benchmark-json={report}", f"--budget={arguments.seconds}"]
        command += ["--everything"] if arguments.everything else []
        done = subprocess.run(command, cwd=ROOT, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"the benchmarks failed with exit code {done.returncode}; their output is above")
        benchmarks: list[dict[str, Any]] = json.loads(report.read_text())["benchmarks"]
    for benchmark in benchmarks:
        benchmark["stats"].pop("data", None)
    return benchmarks


def native(folder: Path, arguments: argparse.Namespace, result: Result) -> None:
    """Products beside oneDNN's, and the fixed cost of a forward pass."""
    if reason := products.missing(folder):
        result["skipped"]["products, fixed cost"] = reason
        return
    rounds = 15 if arguments.everything else 7
    result["products"] = [
        row
        for threads in sorted({1, arguments.threads})
        for row in products.measure(folder, products.ROWS, threads, rounds, 0.02)
    ]
    if not any("onednn" in row for row in result["products"]):
        result["skipped"]["oneDNN"] = "it was not found when bench/native was built"
    lines = subprocess.run([folder / "fixed_cost"], capture_output=True, text=True, check=True).stdout.splitlines()
    result["fixed_cost"] = [json.loads(line) for line in lines]


def torch_attention(arguments: argparse.Namespace, result: Result) -> None:
    if reason := attention.missing():
        result["skipped"]["torch's attention"] = reason
        return
    result["attention"] = attention.run(attention.LENGTHS, 9 if arguments.everything else 5, 0.05)


def runtimes(arguments: argparse.Namespace, result: Result) -> None:
    """MiniLM, and with ``--everything`` BERT-base's shape, in every runtime that is installed."""
    models: dict[str, tuple[Path, list[str], tuple[compare.Shape, ...]]] = {
        "all-MiniLM-L6-v2": (arguments.cache, [], compare.CELLS)
    }
    if arguments.everything:
        cells = ((1, 32), (1, 128), (1, 512))
        models["BERT-base's shape"] = (arguments.cache / "bert-base", ["--bert-base"], cells)
    result["peers"] = {}
    for model, (cache, options, shapes) in models.items():
        prepare.main([str(fetch("minilm")), "--cache", str(cache), *options])
        names = [
            name
            for name in available(cache, [], lambda name, reason: result["skipped"].update({name: reason}))
            if arguments.everything or "int8" in name
        ]
        threads = sorted({1, arguments.threads})
        rounds = 9 if arguments.everything else 5
        result["peers"][model] = compare.run(cache, names, shapes, threads, rounds, 0.1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "bench-results")
    parser.add_argument("--native", type=Path, default=ROOT / "build" / "bench" / "bench" / "native")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="where the runtimes' files are kept")
    parser.add_argument("--seconds", type=float, default=0.2, help="for each benchmark of the suite")
    parser.add_argument("--everything", action="store_true")
    arguments = parser.parse_args()

    result: Result = peaks()
    arguments.threads = result["machine"]["threads"]
    result |= {
        "kernel": platform.release(),
        "python": platform.python_version(),
        "commit": commit(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "load average": " ".join(f"{value:.2f}" for value in os.getloadavg()),
        "skipped": {},
    }
    steps: tuple[tuple[str, Callable[[], None]], ...] = (
        ("kernels and models", lambda: result.update(benchmarks=pytest_benchmarks(arguments))),
        ("products", lambda: native(arguments.native, arguments, result)),
        ("attention", lambda: torch_attention(arguments, result)),
        ("runtimes", lambda: runtimes(arguments, result)),
    )
    for name, step in steps:
        start = time.perf_counter()
        step()
        print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)

    arguments.output.mkdir(parents=True, exist_ok=True)
    stamp = result["date"].replace(":", "").partition("+")[0]
    target = arguments.output / f"{stamp}-{result['commit']}.json"
    target.write_text(json.dumps(result, indent=1))
    page = arguments.output / "index.html"
    page.write_text(render(result), encoding="utf-8")
    print(f"{target}\n{page}")


def commit() -> str:
    """The checkout's commit, with a plus sign when it has changes; ``unknown`` outside of git."""
    command = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()

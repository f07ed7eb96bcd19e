"""From starting Python to the first embedding of a text, and the memory it takes: ``python -m bench.peers.cold_start``.

Each repetition starts a fresh process that imports the runtime, loads the model and the tokenizer and embeds one
sentence. The files are in the page cache.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from bench.peers.peer import ROOT, available, benchmark_environment, default_cache

TEXT = "The quick brown fox jumps over the lazy dog."

# What a user of the runtime would write; beyond that, bench.peers.runners imports a few small standard modules.
PROGRAM = """
import sys
from pathlib import Path
from bench.peers.runners import RUNNERS
name, cache, threads, text = sys.argv[1:]
from tokenizers import Tokenizer
tokenizer = Tokenizer.from_file(str(Path(cache) / "huggingface" / "tokenizer.json"))
tokenizer.no_padding()
runner = RUNNERS[name]()
runner.load(Path(cache), int(threads))
assert abs(float((runner.run([tokenizer.encode(text).ids]) ** 2).sum()) - 1) < 1e-3
"""
# The cost of what all runners share: the interpreter, numpy and the tokenizer.
SHARED = PROGRAM.split("runner =")[0]


def start(program: str, name: str, cache: Path, threads: int) -> tuple[float, float]:
    """Wall time in seconds and peak resident memory in MiB of one fresh process.

    Raises RuntimeError when it fails.
    """
    begin = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", program, name, str(cache), str(threads), TEXT],
        cwd=ROOT,
        env=benchmark_environment(),
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begin
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(f"{name} failed with exit code {process.returncode}")
    return seconds, usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=default_cache(), help="folder filled by bench.peers.prepare")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--runners", nargs="+", default=[], help="names; default: all that can run here")
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()

    programs = {"(numpy and tokenizer alone)": SHARED}
    programs |= dict.fromkeys(available(arguments.cache, arguments.runners), PROGRAM)
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in programs}
    for _ in range(arguments.repeats + 1):
        for name, program in programs.items():
            samples[name].append(start(program, name, arguments.cache.resolve(), arguments.threads))
    print("| runtime | first embedding, s: median | fastest | peak memory, MiB |\n|---|---|---|---|")
    results = {}
    for name, pairs in samples.items():
        seconds, memory = zip(*pairs[1:], strict=True)  # the first start fills the page cache
        results[name] = {"median": median(seconds), "fastest": min(seconds), "peak_mib": median(memory)}
        print(f"| {name} | {median(seconds):.3f} | {min(seconds):.3f} | {median(memory):.0f} |")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()

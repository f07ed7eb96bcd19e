"""Decoders beside llama.cpp, on the same GGUF file: ``python -m bench.peers.decoding FILE.gguf``.

Ours runs the pocket file that keeps the GGUF file's integers; it is made when first needed. Each runner lives in its
own process, stopped while the others are asked (peer.py), and a round asks each of them in turn for the same cell.
llama.cpp is measured with and without flash attention, in batches of 512 and with fp16 keys and values; its better
figure counts. A cell `start:TOKENS` is a new process each time: from an interpreter that has imported the package to
the logits behind a prompt of so many tokens, llama.cpp's reading of its vocabulary left out (ours is the tokenizer's).

It comes with the package llama-cpp-python (0.3.36), which is no part of the extra ``bench``: it is built from source,
in ten minutes. It may lie in an environment of its own, whose interpreter ``--llama-python`` names. Where it is missing
ours is measured alone.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from contextlib import ExitStack, closing
from pathlib import Path
from statistics import median
from typing import Any

from bench.peers.decoding_worker import RUNNERS
from bench.peers.machine import describe
from bench.peers.peer import Child, benchmark_environment, default_cache, say_skipped

OURS = "pocketformer"
CELLS = ("prefill:128", "prefill:512", "prefill:2048", "decode:8", "decode:1024", "decode:4096")
STEPS = 16
"""Tokens that are decoded of a cell in a round."""


def pocket_file(gguf: Path, cache: Path) -> Path:
    """The pocket file with the integers of ``gguf``, made anew where that or what makes it is newer."""
    import pocketformer

    made = cache / f"{gguf.stem}.pocket"
    makers = Path(pocketformer.__file__).parent.rglob("*.py")
    if not made.exists() or made.stat().st_mtime < max(path.stat().st_mtime for path in (gguf, *makers)):
        pocketformer.compress(gguf, made, weights="gguf")
    return made


def runners(llama_python: str) -> dict[str, str]:
    """The interpreter of each runner that can run here."""
    chosen = {OURS: sys.executable}
    probe = subprocess.run([llama_python, "-c", "import llama_cpp"], capture_output=True, text=True)
    for name in RUNNERS:
        if name != OURS and probe.returncode == 0:
            chosen[name] = llama_python
    if probe.returncode != 0:
        say_skipped(
            "llama.cpp", f"{llama_python} has no package llama-cpp-python; name one that has with --llama-python"
        )
    return chosen


def request(cell: str) -> dict[str, Any]:
    kind, _, tokens = cell.partition(":")
    if kind not in ("prefill", "decode", "start") or not tokens.isdecimal() or int(tokens) == 0:
        raise argparse.ArgumentTypeError(f"{cell!r} is no cell; write prefill:TOKENS, decode:CONTEXT or start:TOKENS")
    if kind != "decode":
        return {"do": "prefill", "tokens": int(tokens), "repeat": 1}
    return {"do": kind, "context": int(tokens), "steps": STEPS}


def measure(
    gguf: Path, pocket: Path, cache: Path, chosen: dict[str, str], cells: list[str], threads: int, rounds: int
) -> list[dict[str, Any]]:
    """A row for each runner and cell: seconds of each prompt, token, or start (and its vocabulary), of all rounds."""
    capacity = max(int(cell.partition(":")[2]) for cell in cells) + STEPS + 1
    rows: dict[tuple[str, str], dict[str, Any]] = {
        (name, cell): {"runner": name, "threads": threads, "cell": cell, "rounds": []}
        for cell in cells
        for name in chosen
    }

    def new_child(name: str) -> Child:
        path = pocket if name == OURS else gguf
        words = [name, str(path.resolve()), str(cache.resolve()), str(threads), str(capacity)]
        environment = benchmark_environment()
        if name == OURS:
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        return Child(name, [chosen[name], "-W", "ignore", "-m", "bench.peers.decoding_worker", *words], environment)

    def start(name: str, cell: str) -> float:
        with closing(new_child(name)) as child:
            rows[name, cell].setdefault("vocabulary", []).append(child.hello["vocabulary"])
            return float(child.hello["load"] + median(child.ask(request(cell))))

    with ExitStack() as stack:
        children = [stack.enter_context(closing(new_child(name))) for name in chosen]
        for number in range(rounds):
            for cell in cells:
                for child in children if number % 2 == 0 else reversed(children):
                    fresh = cell.startswith("start")
                    taken = start(child.name, cell) if fresh else median(child.ask(request(cell)))
                    rows[child.name, cell]["rounds"].append(taken)
        memory = {child.name: child.ask({"do": "memory"}) | child.hello for child in children}
    for (name, _), row in rows.items():
        row["memory"] = memory[name]
    return list(rows.values())


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: tokens, or starts, a second by cell, the median of the rounds; the ratio to the better llama.cpp."""
    lines = []
    for threads in sorted({row["threads"] for row in rows}):
        chosen = [row for row in rows if row["threads"] == threads]
        cells = list(dict.fromkeys(row["cell"] for row in chosen))
        speed = {(row["runner"], row["cell"]): tokens(row["cell"]) / seconds(row) for row in chosen}
        names = list(dict.fromkeys(row["runner"] for row in chosen))
        lines += [f"| {threads} thread{'s' * (threads > 1)} | " + " | ".join(cells) + " | peak RSS |"]
        lines += ["|---" * (len(cells) + 2) + "|"]
        for name in names:
            peak = next(row["memory"]["VmHWM"] for row in chosen if row["runner"] == name)
            figures = " | ".join(f"{speed[name, cell]:.4g}" for cell in cells)
            lines.append(f"| {name} | {figures} | {peak / 1e6:.0f} MB |")
        peers = [name for name in names if name != OURS]
        if peers and OURS in names:
            ratios = [speed[OURS, cell] / max(speed[name, cell] for name in peers) for cell in cells]
            lines.append(
                "| ours / the better llama.cpp | " + " | ".join(f"**{ratio:.2f}**" for ratio in ratios) + " | |"
            )
        lines.append("")
    return "\n".join(lines)


def seconds(row: dict[str, Any]) -> float:
    """The median of the rounds, without what the vocabulary took."""
    return float(median(row["rounds"]) - median(row.get("vocabulary", [0.0])))


def tokens(cell: str) -> int:
    """Tokens that a cell's time is of; of a start one, the first."""
    kind, _, count = cell.partition(":")
    return int(count) if kind == "prefill" else 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", type=Path, metavar="FILE.gguf")
    parser.add_argument("--cache", type=Path, default=default_cache() / "decoding", help="what was made before")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--cells", nargs="+", default=list(CELLS), metavar="prefill:TOKENS|decode:CONTEXT|start:TOKENS")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--runners", nargs="+", choices=list(RUNNERS), help="default: all that can run here")
    parser.add_argument("--llama-python", default=sys.executable, help="interpreter with llama-cpp-python")
    parser.add_argument("--json", type=Path, help="write the raw times here")
    arguments = parser.parse_args()
    try:
        for cell in arguments.cells:
            request(cell)
    except argparse.ArgumentTypeError as error:
        parser.error(str(error))
    arguments.cache.mkdir(parents=True, exist_ok=True)
    pocket = pocket_file(arguments.gguf, arguments.cache)
    found = runners(arguments.llama_python)
    chosen = {name: python for name, python in found.items() if name in (arguments.runners or found)}
    rows = []
    for threads in arguments.threads:
        rows += measure(arguments.gguf, pocket, arguments.cache, chosen, arguments.cells, threads, arguments.rounds)
    print(table(rows))
    print("\n".join(f"- {key}: {value}" for key, value in describe().items()))
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": describe(), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()

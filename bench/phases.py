"""Where the time of a forward pass goes, by phase: ``python -m bench.phases MODEL.pocket``.

Linux's ``perf`` samples one thread of the release build 10,000 times a second, and the line tables say which function
each sampled instruction was inlined from: nothing is added to the code that runs. The extension must hold them:

    pip install . -C install.strip=false -C cmake.define.CMAKE_CXX_FLAGS=-g1
"""

from __future__ import annotations

import argparse
import json
import math
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from pocketformer import _core
from pocketformer.engine import Engine
from pocketformer.perf.measure import multiply_adds, prepare

PROBE = "probe"
CELLS = ("1x16", "1x32", "1x128", "1x512", "8x128")

# The first pattern that matches a function of the inline chain, innermost function first, names the phase.
PHASES = (
    ("GELU and other activations", r"^(activate|gelu|gelu_tanh|silu|tanh|map_rows)\b"),
    ("store: bias, residual", r"^(store_tile|finish_tile)\b"),
    ("attention: Q·Kᵀ", r"::score\b|::score<|^score\b|\bmultiply\b"),
    ("attention: exponent", r"exponentiate\b"),
    ("attention: quantize P", r"KeyTileI8.*::quantize\b|^quantize\b"),
    ("attention: P·V", r"accumulate\b"),
    ("attention: gather Q, merge, store", r"^(attend_|gather_queries|attention_)|RunningSoftmax"),
    ("products", r"^(gemm_|dispatch_height|Tile)"),
    ("rotate", r"^(rotate_row|rotate_blocks|hadamard|butterfly)\b"),
    ("quantize", r"^(quantize_rows|row_max_abs)\b"),
    (
        "split and quantize Q, K, V",
        r"^(store_(i8|f32|heads?|values)|quantize_(heads?|rows_of_heads)|rotate_heads|measure_heads)\b",
    ),
    ("norms", r"^norm\b"),
    ("embedding", r"^(embed|gather_panel_row)\b"),
    (PROBE, r"^probe_"),
    ("pooling", r"^(pool|l2_normalize)\b"),
)
OTHER = "runtime"


def phase_of(chain: Iterable[str]) -> str:
    """The phase of an instruction from the functions it was inlined through, innermost first."""
    for function in chain:
        name = re.sub(r"^(void|float|int|long|unsigned long) ", "", function.replace("(anonymous namespace)::", ""))
        for phase, pattern in PHASES:
            if re.search(pattern, name):
                return phase
    return OTHER


def inline_chains(library: Path, addresses: list[int]) -> list[list[str]]:
    """For each address the functions that contain it, innermost first. Raises RuntimeError without line tables."""
    done = subprocess.run(
        ["addr2line", "-a", "-f", "-i", "-C", "-e", str(library)],
        input="\n".join(map(hex, addresses)),
        capture_output=True,
        text=True,
        check=True,
    )
    chains: list[list[str]] = []
    lines = iter(done.stdout.splitlines())
    located = False
    for line in lines:
        if re.fullmatch("0x[0-9a-f]+", line):
            chains.append([])
            continue
        chains[-1].append(line)
        located |= not next(lines).startswith("?")
    if addresses and not located:
        raise RuntimeError(f"{library} has no line tables; install it as this module's description says")
    return chains


@dataclass
class Profile:
    """One cell: what share of the time each phase took."""

    batch: int
    tokens: int
    shares: dict[str, float]
    seconds: float  # of a call, median
    peak: float  # int8 multiply-adds a second, probed between the calls, median
    multiply_adds: dict[str, int]  # of a call, by operator

    def share_of_peak(self, operator: str, phases: Iterable[str]) -> float:
        """What the multiply-adds of ``operator`` would take at the peak, of what these phases took."""
        taken = sum(self.shares.get(phase, 0.0) for phase in phases) * self.seconds
        return self.multiply_adds[operator] / self.peak / taken


def sample(model: str, batch: int, tokens: int, seconds: float) -> Profile:
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "perf.data"
        child = [sys.executable, "-m", "bench.phases", model, "--child", str(batch), str(tokens), str(seconds)]
        run = subprocess.run(
            ["perf", "record", "-q", "-F", "9999", "-e", "cpu-clock:u", "-o", str(data), *child],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        report = json.loads(run.stdout)
        script = subprocess.run(
            ["perf", "script", "-i", str(data), "-F", "ip"], capture_output=True, text=True, check=True
        )
    counts: Counter[int] = Counter()
    for ip in (int(word, 16) for word in script.stdout.split()):
        if report["begin"] <= ip < report["end"]:
            counts[ip - report["begin"] + report["offset"]] += 1
    addresses = sorted(counts)
    phases: Counter[str] = Counter()
    for address, chain in zip(addresses, inline_chains(Path(_core.__file__), addresses), strict=True):
        phases[phase_of(chain)] += counts[address]
    del phases[PROBE]
    total = sum(phases.values())
    shares = {phase: count / total for phase, count in phases.items()}
    return Profile(batch, tokens, shares, report["seconds"], report["peak"], report["multiply_adds"])


def child(model: str, batch: int, tokens: int, seconds: float) -> None:
    engine = Engine(model, 1)
    call = prepare(engine, tokens, batch)
    call()
    times: list[float] = []
    peaks: list[float] = []
    while sum(times) < seconds:
        peaks.append(_core.probe_int8(milliseconds=2))
        for _ in range(math.ceil(seconds / 50 / (times[-1] if times else seconds))):
            start = time.thread_time()  # stands while a neighbour has the core
            call()
            times.append(time.thread_time() - start)
    macs = {operator: batch * count for operator, count in multiply_adds(engine.file.graph, tokens).items()}
    result = {"seconds": median(times), "peak": 1e9 * median(peaks), "multiply_adds": macs}
    print(json.dumps({**_mapping(), **result}))


def _mapping() -> dict[str, Any]:
    """Where the extension's code lies in this process."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, flags, offset, *_, path = line.split()
        if path == str(Path(_core.__file__).resolve()) and "x" in flags:
            begin, end = (int(bound, 16) for bound in span.split("-"))
            return {"begin": begin, "end": end, "offset": int(offset, 16)}
    raise RuntimeError(f"{_core.__file__} has no executable mapping")


def table(profiles: list[Profile]) -> str:
    rows = [["batch × tokens", *(f"{p.batch} × {p.tokens}" for p in profiles)]]
    for name in (*(name for name, _ in PHASES), OTHER):
        if any(name in p.shares for p in profiles):
            rows.append([name, *(f"{p.shares.get(name, 0.0):.1%}" for p in profiles)])
    rows.append(["median, ms", *(f"{1e3 * p.seconds:.2f}" for p in profiles)])
    for title, operator, phases in (
        ("linears: share of the int8 peak while in `products`", "linear", ["products"]),
        ("attention: the same in Q·Kᵀ and P·V", "attention", ["attention: Q·Kᵀ", "attention: P·V"]),
    ):
        rows.append([title, *(f"{p.share_of_peak(operator, phases):.0%}" for p in profiles)])
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a file that `pocketformer compress` wrote")
    parser.add_argument("--cells", nargs="+", default=list(CELLS), metavar="BATCHxTOKENS")
    parser.add_argument("--seconds", type=float, default=4.0, help="time for each cell")
    parser.add_argument("--json", type=Path, help="write the shares here")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        batch, tokens, seconds = arguments.child
        return child(arguments.model, int(batch), int(tokens), float(seconds))
    profiles = []
    for cell in arguments.cells:
        batch, tokens = map(int, cell.split("x"))
        profiles.append(sample(arguments.model, batch, tokens, arguments.seconds))
    print(table(profiles))
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(profile) for profile in profiles], indent=1))


if __name__ == "__main__":
    main()

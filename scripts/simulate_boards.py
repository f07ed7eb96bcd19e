"""Simulates the inner loops of the ARM kernels on the cores of common boards with llvm-mca and writes docs/boards.md.

    scripts/install_tools.sh
    python scripts/simulate_boards.py            # or --check: fails when the page is out of date or a loop is too slow

Each unit is compiled as the wheel is, by g++ and by clang, disassembled, and its densest loop of products taken out.
The issue limit is what llvm-mca says the loop's arithmetic needs of the core's pipes, without loads, latencies and the
loop itself.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "boards.md"
ITERATIONS = 200
# Products per instruction; the others of a loop's arithmetic only add up.
PRODUCTS = {"smull": 8, "smlal": 8, "sadalp": 0, "addp": 0, "sdot": 16, "smmla": 32, "fmla": 4}
COMPILERS = {"g++": ["aarch64-linux-gnu-g++"], "clang": ["clang++", "--target=aarch64-linux-gnu"]}


@dataclass(frozen=True)
class Loop:
    """A loop to simulate: its unit, the functions it is in, and by core the share of the issue limit it must reach.

    ``count`` tells apart loops of one function by how often they have the instruction.
    """

    isa: str
    kernel: str
    function: str
    instruction: str
    cores: dict[str, float]
    count: int = 0


@dataclass(frozen=True)
class Row:
    """What one compiler made of a loop, on one core."""

    loop: Loop
    core: str
    compiler: str
    cycles: float
    limit: float
    products: int

    @property
    def efficiency(self) -> float:
        return self.limit / self.cycles


F32 = "product_rows_f32.*Li5E"
ATTENTION = "attend_i8|attention_i8"
LOOPS = [
    Loop("neon", "gemm_i8", "12product_rowsE", "smlal", {"cortex-a53": 0.85, "cortex-a72": 0.95}),
    Loop("dotprod", "gemm_i8", "product_half.*Li8E", "sdot", {"cortex-a55": 0.85, "cortex-a76": 0.95}),
    Loop("i8mm", "gemm_i8", "InterleavedELi6E", "smmla", {"neoverse-v1": 0.95}),
    Loop("neon", "attention values", ATTENTION, "smull", {"cortex-a53": 0.50, "cortex-a72": 0.90}, 32),
    Loop("dotprod", "attention scores", ATTENTION, "sdot", {"cortex-a55": 0.70, "cortex-a76": 0.80}, 64),
    Loop("dotprod", "attention values", ATTENTION, "sdot", {"cortex-a55": 0.48, "cortex-a76": 0.75}, 16),
    Loop("neon", "gemm_f32", F32, "fmla", {"cortex-a53": 0.40, "cortex-a72": 0.95}),
    Loop("dotprod", "gemm_f32", F32, "fmla", {"cortex-a55": 0.65, "cortex-a76": 0.95, "neoverse-v1": 0.95}),
]


def tool(*names: str) -> str:
    for name in names:
        if shutil.which(name):
            return name
    raise SystemExit(f"{names[0]} is missing; run scripts/install_tools.sh")


def compile_unit(isa: str, compiler: str, folder: Path) -> Path:
    """The object of one ISA, with the flags CMakeLists.txt gives it."""
    found = re.search(rf"add_isa\({isa} ([^)]*)\)", (ROOT / "CMakeLists.txt").read_text())
    if found is None:
        raise SystemExit(f"CMakeLists.txt: no add_isa({isa} …)")
    common = "-std=c++20 -O3 -DNDEBUG -fPIC -w -fno-exceptions -fno-rtti"
    common += " -ffp-contract=off -fno-math-errno -fno-trapping-math"
    path = folder / f"{isa}-{compiler}.o"
    source = ROOT / "csrc" / "isa" / f"kernels_{isa}.cpp"
    command, *target = COMPILERS[compiler]
    if compiler == "clang":
        command = tool(command, *(f"clang++-{version}" for version in range(30, 13, -1)))
    flags = [*common.split(), f"-I{ROOT / 'csrc'}", *found[1].split()]
    done = subprocess.run([command, *target, *flags, "-c", source, "-o", path], text=True, capture_output=True)
    if done.returncode != 0:
        raise SystemExit(f"{command} cannot compile {source}: {done.stderr[:500]}")
    return path


def loops(path: Path, function: str) -> Iterator[list[tuple[str, str]]]:
    """Instructions (mnemonic, operands) of the body of every innermost loop in the functions that match."""
    command = ["aarch64-linux-gnu-objdump", "-d", "--no-show-raw-insn", str(path)]
    listing = subprocess.run(command, text=True, capture_output=True, check=True).stdout
    for text in listing.split("\n\n"):
        lines = text.strip().splitlines()
        if not lines or not re.search(function, lines[0]):
            continue
        found = [re.match(r"\s*([0-9a-f]+):\s+(\S+)\s*([^/]*)", line) for line in lines]
        code = [(int(m[1], 16), m[2], m[3].strip()) for m in found if m]
        index = {address: i for i, (address, _, _) in enumerate(code)}
        spans = set()
        for i, (_, mnemonic, operands) in enumerate(code):
            target = re.search(r"([0-9a-f]+) <", operands) if re.match(r"b\.|cbn?z|tbn?z", mnemonic) else None
            if target and index.get(int(target[1], 16), len(code)) <= i:
                spans.add((index[int(target[1], 16)], i))
        for begin, end in spans:
            if not any(begin <= b and e <= end for b, e in spans - {(begin, end)}):
                yield [(mnemonic, operands) for _, mnemonic, operands in code[begin : end + 1]]


def operation(mnemonic: str) -> str:
    return mnemonic.rstrip("2") if mnemonic.rstrip("2") in PRODUCTS else ""


def simulate(code: list[tuple[str, str]], core: str) -> tuple[float, float]:
    """Cycles of an iteration and the reciprocal throughput that the pipes alone would allow."""
    simulator = tool(*(f"llvm-mca-{version}" for version in range(30, 13, -1)), "llvm-mca")
    text = ".loop:\n" + "\n".join(f"{m} {re.sub(r'[0-9a-f]+ <.*', '.loop', operands)}" for m, operands in code)
    options = ["-mtriple=aarch64-linux-gnu", "-mattr=+dotprod,+i8mm", f"-mcpu={core}", f"-iterations={ITERATIONS}"]
    done = subprocess.run([simulator, *options], input=text, text=True, capture_output=True, check=True)
    cycles = re.search(r"Total Cycles:\s+(\d+)", done.stdout)
    limit = re.search(r"Block RThroughput:\s+([\d.]+)", done.stdout)
    if cycles is None or limit is None:
        raise SystemExit(f"{simulator} printed no cycles for {core}: {done.stderr[:500]}")
    return int(cycles[1]) / ITERATIONS, float(limit[1])


def measure(loop: Loop, compiler: str, unit: Path) -> Iterator[Row]:
    """The loop of the most products an instruction among those that ``loop`` describes."""

    def density(code: list[tuple[str, str]]) -> float:
        found = sum(m.rstrip("2") == loop.instruction for m, _ in code)
        return found / len(code) if loop.count in (0, found) else 0.0

    bodies = sorted(loops(unit, loop.function), key=density)
    if not bodies or density(bodies[-1]) == 0:
        raise SystemExit(f"{loop.isa} {loop.kernel}, {compiler}: no loop of {loop.instruction}")
    body = bodies[-1]
    if any("[sp" in operands for _, operands in body):
        raise SystemExit(f"{loop.isa} {loop.kernel}, {compiler}: the inner loop spills registers to the stack")
    arithmetic = [(m, operands) for m, operands in body if operation(m)]
    products = sum(PRODUCTS[operation(m)] for m, _ in arithmetic)
    for core in loop.cores:
        yield Row(loop, core, compiler, simulate(body, core)[0], simulate(arithmetic, core)[1], products)


def rows(objects: dict[str, Path] | None = None) -> list[Row]:
    """All loops with all compilers; one core's rows stand together.

    ``objects`` are those of g++ by the stem of their source, if they were compiled before.
    """
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        units = {(loop.isa, "g++"): objects[f"kernels_{loop.isa}"] for loop in LOOPS} if objects else {}
        keys = dict.fromkeys((loop.isa, compiler) for loop in LOOPS for compiler in COMPILERS)
        missing = [key for key in keys if key not in units]
        units |= zip(missing, pool.map(lambda key: compile_unit(*key, Path(folder)), missing), strict=True)
        found = [row for loop in LOOPS for c in COMPILERS for row in measure(loop, c, units[loop.isa, c])]
    return sorted(found, key=lambda row: (LOOPS.index(row.loop), list(row.loop.cores).index(row.core)))


def too_slow(results: list[Row]) -> list[str]:
    return [
        f"{row.loop.isa} {row.loop.kernel} on {row.core}, {row.compiler}: {row.efficiency:.1%} of the issue limit, "
        f"less than {row.loop.cores[row.core]:.0%}"
        for row in results
        if row.efficiency < row.loop.cores[row.core]
    ]


def table(results: list[Row]) -> str:
    lines = [
        "| kernels | loop | core | issue limit: products per cycle | g++ | clang |",
        "| --- | --- | --- | ---: | ---: | ---: |",
    ]
    for gnu, clang in zip(results[::2], results[1::2], strict=True):
        lines.append(
            f"| {gnu.loop.isa} | {gnu.loop.kernel} | {gnu.core} | {gnu.products / gnu.limit:.1f} "
            f"| {gnu.efficiency:.1%} | {clang.efficiency:.1%} |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; fail when the page or a loop is wrong")
    check: bool = parser.parse_args().check
    results = rows()
    text = PAGE.read_text()
    begin, end = (text.index(f"<!-- {mark} -->") for mark in ("table", "/table"))
    new = text[:begin] + "<!-- table -->\n" + table(results) + text[end:]
    slow = too_slow(results)
    if check and new != text:
        slow.append("docs/boards.md is out of date; run scripts/simulate_boards.py")
    if not check:
        PAGE.write_text(new)
    print(table(results), *slow, sep="\n")
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())

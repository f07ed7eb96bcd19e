"""Simulates the inner loops of the ARM kernels on the cores of common boards with llvm-mca and writes docs/boards.md.

    scripts/install_tools.sh
    python scripts/simulate_boards.py            # or --check: fails when the page is out of date or a loop is too slow

Each unit is cross-compiled as the wheel is, disassembled, and its densest loop of products taken out. The issue limit
is what llvm-mca says the loop's arithmetic needs of the core's pipes, without loads, latencies and the loop itself.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "boards.md"
ITERATIONS = 200
# Products per instruction; the others of a loop's arithmetic only add up.
PRODUCTS = {"smull": 8, "smlal": 8, "sadalp": 0, "addp": 0, "sdot": 16, "smmla": 32, "fmla": 4}


@dataclass(frozen=True)
class Loop:
    """A loop to simulate: where it is, on which cores, and the share of the issue limit it must reach."""

    isa: str
    kernel: str
    instruction: str
    cores: dict[str, float]


@dataclass(frozen=True)
class Row:
    loop: Loop
    core: str
    cycles: float
    limit: float
    products: int

    @property
    def efficiency(self) -> float:
        return self.limit / self.cycles


LOOPS = [
    Loop("neon", "gemm_i8", "smlal", {"cortex-a53": 0.60, "cortex-a72": 0.95}),
    Loop("neon", "gemm_f32", "fmla", {"cortex-a53": 0.25, "cortex-a72": 0.95}),
    Loop("dotprod", "gemm_i8", "sdot", {"cortex-a55": 0.50, "cortex-a76": 0.95, "neoverse-v1": 0.95}),
    Loop("i8mm", "gemm_i8", "smmla", {"neoverse-v1": 0.65}),
    Loop("dotprod", "gemm_f32", "fmla", {"cortex-a55": 0.30, "cortex-a76": 0.95, "neoverse-v1": 0.90}),
]


def compile_unit(isa: str, folder: Path) -> Path:
    """The object of one ISA, with the flags CMakeLists.txt gives it."""
    text = (ROOT / "CMakeLists.txt").read_text()
    found = re.search(rf"add_isa\({isa} ([^)]*)\)", text)
    if found is None:
        raise SystemExit(f"CMakeLists.txt: no add_isa({isa} …)")
    common = "-std=c++17 -O3 -DNDEBUG -fPIC -w -fno-exceptions -fno-rtti"
    common += " -ffp-contract=off -fno-math-errno -fno-trapping-math"
    path = folder / f"{isa}.o"
    source = ROOT / "csrc" / "isa" / f"kernels_{isa}.cpp"
    flags = [*common.split(), f"-I{ROOT / 'csrc'}", *found[1].split()]
    subprocess.run(["aarch64-linux-gnu-g++", *flags, "-c", source, "-o", path], check=True)
    return path


def loops(path: Path, kernel: str) -> Iterator[list[tuple[str, str]]]:
    """Instructions (mnemonic, operands) of every backward branch's body in the tile functions of ``kernel``."""
    command = ["aarch64-linux-gnu-objdump", "-d", "--no-show-raw-insn", str(path)]
    listing = subprocess.run(command, text=True, capture_output=True, check=True).stdout
    tile = {"gemm_i8": r"gemm_i8_tile|TileI8", "gemm_f32": r"gemm_f32_tile|TileF32"}[kernel]
    for function in listing.split("\n\n"):
        lines = function.strip().splitlines()
        if not lines or not re.search(tile, lines[0]):
            continue
        found = [re.match(r"\s*([0-9a-f]+):\s+(\S+)\s*([^/]*)", line) for line in lines]
        code = [(int(m[1], 16), m[2], m[3].strip()) for m in found if m]
        index = {address: i for i, (address, _, _) in enumerate(code)}
        for i, (address, mnemonic, operands) in enumerate(code):
            target = re.search(r"([0-9a-f]+) <", operands) if re.match(r"b\.|cbn?z|b$", mnemonic) else None
            if target and int(target[1], 16) in index and int(target[1], 16) <= address:
                yield [(mnemonic, operands) for _, mnemonic, operands in code[index[int(target[1], 16)] : i + 1]]


def operation(mnemonic: str) -> str:
    return mnemonic.rstrip("2") if mnemonic.rstrip("2") in PRODUCTS else ""


def simulate(code: list[tuple[str, str]], core: str) -> tuple[float, float]:
    """Cycles of an iteration and the reciprocal throughput that the pipes alone would allow."""
    tools = [tool for tool in (f"llvm-mca-{version}" for version in range(30, 13, -1)) if shutil.which(tool)]
    if not tools:
        raise SystemExit("llvm-mca is missing; run scripts/install_tools.sh")
    text = ".loop:\n" + "\n".join(f"{m} {re.sub(r'[0-9a-f]+ <.*', '.loop', operands)}" for m, operands in code)
    options = ["-mtriple=aarch64-linux-gnu", "-mattr=+dotprod,+i8mm", f"-mcpu={core}", f"-iterations={ITERATIONS}"]
    done = subprocess.run([tools[0], *options], input=text, text=True, capture_output=True, check=True)
    cycles = re.search(r"Total Cycles:\s+(\d+)", done.stdout)
    limit = re.search(r"Block RThroughput:\s+([\d.]+)", done.stdout)
    if cycles is None or limit is None:
        raise SystemExit(f"llvm-mca printed no cycles for {core}: {done.stderr[:500]}")
    return int(cycles[1]) / ITERATIONS, float(limit[1])


def rows() -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        for loop in LOOPS:
            bodies = loops(compile_unit(loop.isa, Path(folder)), loop.kernel)
            body = max(bodies, key=lambda code: sum(m.startswith(loop.instruction) for m, _ in code) / len(code))
            if any("[sp" in operands for _, operands in body):
                raise SystemExit(f"{loop.isa} {loop.kernel}: the inner loop spills registers to the stack")
            arithmetic = [(m, operands) for m, operands in body if operation(m)]
            products = sum(PRODUCTS[operation(m)] for m, _ in arithmetic)
            for core in loop.cores:
                yield Row(loop, core, simulate(body, core)[0], simulate(arithmetic, core)[1], products)


def table(results: list[Row]) -> str:
    lines = [
        "| kernels | loop | core | products | cycles | issue limit | products per cycle | of the limit |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in results:
        lines.append(
            f"| {row.loop.isa} | {row.loop.kernel} | {row.core} | {row.products} | {row.cycles:.1f} | {row.limit:.1f} "
            f"| {row.products / row.cycles:.2f} | {row.efficiency:.1%} |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; fail when the page or a loop is wrong")
    check: bool = parser.parse_args().check
    results = list(rows())
    text = PAGE.read_text()
    begin, end = (text.index(f"<!-- {mark} -->") for mark in ("table", "/table"))
    new = text[:begin] + "<!-- table -->\n" + table(results) + text[end:]
    slow = [f"{r.loop.isa} {r.loop.kernel} on {r.core}: {r.efficiency:.1%}" for r in results]
    slow = [line for line, r in zip(slow, results, strict=True) if r.efficiency < r.loop.cores[r.core]]
    if check and new != text:
        slow.append("docs/boards.md is out of date; run scripts/simulate_boards.py")
    if not check:
        PAGE.write_text(new)
    print(table(results), *slow, sep="\n")
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())

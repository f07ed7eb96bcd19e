"""Looks at what the compiler made: spills in hot loops, symbols of ISA units, instructions outside them, portability.

    python scripts/check_binary.py [--compiler g++] [--table] [EXTENSION.so]

compiles csrc with the flags of CMakeLists.txt (nothing is linked), prints what is wrong and then exits with 1.
``--table`` prints every hot loop. Needs binutils; scripts/install_tools.sh installs it and clang.
"""

from __future__ import annotations

import argparse
import platform
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOT = {"i8": re.compile(r"\b(vpdpbusd|vpmaddubsw)\b"), "f32": re.compile(r"\bvfmadd\w+ps\b")}
VECTOR = re.compile(r"%[xyz]mm\d+")
STACK = re.compile(r"\(%r[sb]p\b")
JUMP = re.compile(r"\bj(?!mp)\w+\s+([0-9a-f]+)\b")  # a plain jmp back ends a cold block, not a loop
# g++ keeps the tiles apart, clang inlines them into TileI8::run and attend_i8 into attention_i8.
HOT = re.compile(r"(gemm|Tile|attend|attention)_?(i8|f32|I8|F32)(?:_tile)?<.*?Isa(?:, ([^>]*))?>")
LOADED_BY_KERNELS = {"memcpy", "memset", "memmove", "nearbyintf", "_GLOBAL_OFFSET_TABLE_"}

# What manylinux_2_28 has. Above it stand only names whose version depends on the build machine: glibc 2.34 joined
# libpthread and libc, and newer libstdc++ headers call two helpers that the manylinux tool chain links statically.
FLOORS = {"GLIBC": (2, 28), "GLIBCXX": (3, 4, 25), "CXXABI": (1, 3, 11), "GCC": (7, 0, 0)}
BUILD_MACHINE = re.compile(
    r"pthread_\w+|dl(sym|open|error|close)|__libc_single_threaded|_ZSt28__throw_bad_array_new_lengthv"
    r"|_ZNSt15__exception_ptr13exception_ptr\w+|_ZNSt7__cxx1119basic_ostringstreamIcSt11char_traitsIcESaIcEEC1Ev"
)


def run(*command: str | Path) -> str:
    return subprocess.run([str(c) for c in command], check=True, capture_output=True, text=True).stdout


# --- compiling --------------------------------------------------------------------------------------------------------


def units(compiler: str) -> dict[Path, list[str]]:
    """Flags of every source that needs no Python, as CMakeLists.txt states them."""
    cmake = (ROOT / "CMakeLists.txt").read_text()

    def options(pattern: str) -> list[str]:
        match = re.search(pattern, cmake)
        assert match is not None, f"CMakeLists.txt: no {pattern}"
        return shlex.split(match[1])

    common = [f"-I{ROOT / 'csrc'}", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-fvisibility-inlines-hidden"]
    common += options(r'CMAKE_CXX_FLAGS_RELEASE "(.*)"') + options(r"\nadd_compile_options\(([^)]*)\)")
    flags = {path: common for part in ("core", "runtime") for path in sorted((ROOT / f"csrc/{part}").glob("*.cpp"))}
    isa_flags = options(r"target_compile_options\(isa_\$\{name\} PRIVATE \$\{ARGN\} ([^)]*)\)")
    if "clang" not in compiler:
        isa_flags.append("-Wno-maybe-uninitialized")
    for name, own in re.findall(r"^\s*add_isa\((\w+)([^)]*)\)", cmake, re.MULTILINE):
        if ("-march=arm" in own) == (platform.machine() == "aarch64") or name == "scalar":
            flags[ROOT / f"csrc/isa/kernels_{name}.cpp"] = [*common, *own.split(), *isa_flags]
    return flags


def compile_units(compiler: str, directory: Path, only: str = "") -> dict[str, Path]:
    """Objects by the stem of their source, two at a time; ``only`` limits them to one part of csrc."""

    def build(item: tuple[Path, list[str]]) -> tuple[str, Path]:
        source, flags = item
        target = directory / f"{source.stem}.o"
        run(compiler, *flags, "-c", source, "-o", target)
        return source.stem, target

    chosen = [item for item in units(compiler).items() if only in str(item[0].parent.name)]
    with ThreadPoolExecutor(2) as pool:
        return dict(pool.map(build, chosen))


# --- hot loops --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Loop:
    """An innermost loop with products in it; loads and stores are vectors from and to the stack."""

    function: str
    dots: int
    instructions: int
    loads: int
    stores: int

    @property
    def product(self) -> bool:
        return self.function.startswith("product")

    @property
    def spills(self) -> bool:
        """A product has nothing on the stack. Attention keeps queries and weights there, and may load them."""
        return self.stores > 0 or (self.product and self.loads > 0)


def functions(listing: str) -> Iterator[tuple[str, list[str]]]:
    for block in re.split(r"\n\n", listing):
        head = re.match(r"[0-9a-f]+ <(.*)>:\n", block.lstrip("\n"))
        if head:
            yield head[1], block.lstrip("\n").splitlines()[1:]


def innermost(lines: list[str]) -> Iterator[list[str]]:
    at = {line.split(":")[0].strip(): i for i, line in enumerate(lines)}
    spans = set()
    for i, line in enumerate(lines):
        target = JUMP.search(line)
        if target and at.get(target[1], len(lines)) < i:
            spans.add((at[target[1]], i))
    for begin, end in spans:
        if not any(begin <= b and e <= end for b, e in spans - {(begin, end)}):
            yield lines[begin : end + 1]


def moves(lines: list[str]) -> tuple[int, int]:
    """Vector instructions that read from and that write to the stack; the destination comes last."""
    loads = stores = 0
    for line in lines:
        if VECTOR.search(line) and STACK.search(line):
            stored = line.rstrip().endswith(")")
            stores, loads = stores + stored, loads + (not stored)
    return loads, stores


def hot_loops(listing: str) -> list[Loop]:
    """From the output of ``objdump -dC``: in products and attention, loops that are mostly multiply-adds."""
    found = []
    for name, lines in functions(listing):
        hot = HOT.search(name)
        if not hot:
            continue
        kind = hot[2].lower()
        label = f"{'attention' if hot[1].startswith('att') else 'product'}_{kind}<{hot[3] or ''}>"
        for loop in innermost(lines):
            dots = sum(bool(DOT[kind].search(line)) for line in loop)
            if dots and is_product(loop):
                found.append(Loop(label, dots, len(loop), *moves(loop)))
    return sorted(found, key=lambda loop: (loop.function, -loop.dots))


def is_product(loop: list[str]) -> bool:
    """Neither the exponential's polynomial, which rounds and clamps, nor the scaling of a transposed result."""
    return not any(re.search(r"\bv(roundps|rndscaleps|maxps|minps|cvtps2dq|unpcklps)\b", line) for line in loop)


def disassemble(target: Path) -> str:
    return run("objdump", "-dC", "--no-show-raw-insn", target)


# --- symbols ----------------------------------------------------------------------------------------------------------


def wrong_symbols(target: Path, name: str) -> list[str]:
    """What an ISA unit shows to the linker beyond its table, or takes from elsewhere."""
    wrong = []
    for line in run("nm", "-C", target).splitlines():
        kind, symbol = line[17:].split(" ", 1)
        own = symbol == f"pocketformer::kernel_table_{name}()"
        if kind == "U" and symbol not in LOADED_BY_KERNELS:
            wrong.append(f"{name}: takes {symbol} from elsewhere")
        elif (kind.isupper() or kind in "wvu") and kind != "U" and not own:
            wrong.append(f"{name}: shows {symbol} ({kind}) to the linker")
    return wrong


def wide_instructions(target: Path) -> list[str]:
    """AVX or later, which not every x86-64 CPU has."""
    lines = disassemble(target).splitlines()
    return [line.strip() for line in lines if re.search(r"%[yz]mm\d|\tv[a-z]\w+ .*%xmm", line)]


def portability(extension: Path) -> list[str]:
    wrong = []
    for line in run("objdump", "-T", extension).splitlines():
        match = re.search(r"\*UND\*\s+\S+\s+\(?(GLIBCXX|GLIBC|CXXABI|GCC)_([\d.]+)\)?\s+(\S+)", line)
        if not match:
            continue
        version = tuple(int(part) for part in match[2].split("."))
        if version > FLOORS[match[1]] and not BUILD_MACHINE.fullmatch(match[3]):
            wrong.append(f"{extension.name}: {match[3]} needs {match[1]}_{match[2]}, which manylinux_2_28 has not")
    headers = run("readelf", "-lW", extension)
    if not re.search(r"GNU_STACK.* RW ", headers):
        wrong.append(f"{extension.name}: the stack is executable")
    if "TEXTREL" in run("readelf", "-dW", extension):
        wrong.append(f"{extension.name}: text relocations")
    if re.search(r"^\s*LOAD.* RWE ", headers, re.MULTILINE):
        wrong.append(f"{extension.name}: a segment is writable and executable")
    return wrong


def check(objects: dict[str, Path], loops: dict[str, list[Loop]]) -> list[str]:
    wrong = []
    for stem, target in objects.items():
        name = stem.removeprefix("kernels_")
        if name != stem:
            wrong += wrong_symbols(target, name)
        if stem not in loops:
            wrong += [f"{stem}: {line}" for line in wide_instructions(target)[:3]]
    for stem, found in loops.items():
        for loop in found:
            if loop.spills:
                wrong.append(f"{stem}: {loop.function} spills: {loop}")
    return wrong


def vector_units(objects: dict[str, Path]) -> dict[str, list[Loop]]:
    stems = [stem for stem in objects if stem.startswith("kernels_") and stem != "kernels_scalar"]
    return {stem: hot_loops(disassemble(objects[stem])) for stem in stems}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("extension", nargs="?", type=Path, help="a built _core to check for portability")
    parser.add_argument("--compiler", default="g++")
    parser.add_argument("--table", action="store_true", help="print every hot loop")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        objects = compile_units(arguments.compiler, Path(directory))
        loops = vector_units(objects)
        wrong = check(objects, loops)
    if arguments.extension is not None:
        wrong += portability(arguments.extension)
    if arguments.table:
        print("unit function dots instructions loads stores")
        for stem, found in loops.items():
            for loop in found:
                print(stem, loop.function, loop.dots, loop.instructions, loop.loads, loop.stores)
    print("\n".join(wrong) or "nothing wrong", file=sys.stderr if wrong else sys.stdout)
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())

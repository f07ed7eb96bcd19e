"""Looks at what the compiler made: spills in hot loops, symbols of ISA units, instructions outside them, portability.

    python scripts/check_binary.py [--compiler g++] [--machine aarch64] [--table] [EXTENSION.so]

compiles csrc with the flags of CMakeLists.txt (nothing is linked), prints what is wrong and then exits with 1.
``--table`` prints every hot loop; an unstripped extension is also searched for instructions above its baseline.
Needs binutils of the machine; scripts/install_tools.sh installs them, the cross compiler and clang.
"""

from __future__ import annotations

import argparse
import platform
import re
import shlex
import subprocess
import sys
import tempfile
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HERE = platform.machine()


@dataclass(frozen=True)
class Machine:
    """How the disassembly of one kind of CPU reads."""

    triplet: str
    dot: dict[str, re.Pattern[str]]  # the multiply-adds of products
    moves: re.Pattern[str]  # a vector to or from the stack
    store: re.Pattern[str]  # of those, the writing ones
    jump: re.Pattern[str]  # a conditional one and its target; a plain jump back ends a cold block, not a loop
    not_product: re.Pattern[str]  # rounding and clamping of the exponential, scaling of a transposed result
    above: re.Pattern[str]  # what not every CPU of the kind has


MACHINES = {
    "x86_64": Machine(
        "x86_64-linux-gnu",
        {"i": re.compile(r"\b(vpdpbusd|vpmaddubsw)\b"), "f32": re.compile(r"\bvfmadd\w+ps\b")},
        re.compile(r"^(?=.*%[xyz]mm\d+).*\(%r[sb]p\b"),
        re.compile(r"%r[sb]p\)\s*$"),  # the destination comes last; an indexed one is an array, no spill
        re.compile(r"\bj(?!mp)\w+\s+([0-9a-f]+)\b"),
        re.compile(r"\bv(roundps|rndscaleps|maxps|minps|cvtps2dq|unpcklps)\b"),
        re.compile(r"%[yz]mm\d|\tv[a-z]\w+ .*%xmm"),
    ),
    "aarch64": Machine(
        "aarch64-linux-gnu",
        {"i": re.compile(r"\t(sdot|smmla|smlal2?|smull2?)\b"), "f32": re.compile(r"\tfmla\b")},
        re.compile(r"\t(ld|st)[rpu1]\w*\s+\{?[qdv]\d+.*\[(sp|x29)\b"),
        re.compile(r"\tst"),
        re.compile(r"\t(?:b\.\w+|cbn?z|tbn?z)\s+(?:\w+, (?:#\d+, )?)?([0-9a-f]+)\b"),
        re.compile(r"\t(frint\w|fcvtn\w|fmaxn?m?|fminn?m?|[uz]zp\d|trn\d)\b"),
        re.compile(  # LSE atomics, dot products, half-precision arithmetic, SVE
            r"\t(cas|swp|ld(add|clr|set|eor|[su]max|[su]min)|st(add|clr|set|eor))[albh]*p?\s|\t([su]s?dot|[us]s?mmla)\s"
            r"|\tf(?!cvtl)\w+\s.*(\.[48]h\b|\bh\d+\b)|\bz\d+\.[bhsd]\b"
        ),
    ),
}
# g++ keeps the tiles apart, clang inlines them into TileI8::run and attend_i8 into attention_i8. The int4 product has
# two tiles of a height: one that looks weights up, and one of bytes; and two more where sums are narrow, and blocks of
# rows. Attention of few rows (attend_few) is left out: its bias at the last keys is an array on the stack, and of
# NEON's sixteen sums clang keeps two there.
HOT = re.compile(
    r"(gemm|Tile|attend|attention)_?(i[48]|f32|I[48]|F32)(?:_tile|_block)?(Bytes|Narrow(?:Bytes)?|Bounded)?<.*?Isa"
    r"(?:, [^,>]*?(Bytes|Nibbles|Indices)<[^>]*>)?(?:, ([^>]*))?>"
)
# An ISA's own inner product of so many rows and a panel, where the compiler keeps it apart from the tile.
OWN = re.compile(r"::product_\w+?(_f32)?(?:<(\d+)>)?\(")
LOADED_BY_KERNELS = {"memcpy", "memset", "memmove", "nearbyintf", "_GLOBAL_OFFSET_TABLE_"}

# What manylinux_2_28 has. Above it stand only names whose version depends on the build machine: glibc 2.34 joined
# libpthread and libc, and newer libstdc++ headers call three helpers that the manylinux tool chain links statically.
FLOORS = {"GLIBC": (2, 28), "GLIBCXX": (3, 4, 25), "CXXABI": (1, 3, 11), "GCC": (7, 0, 0)}
BUILD_MACHINE = re.compile(
    r"pthread_\w+|dl(sym|open|error|close)|__libc_single_threaded|_ZSt28__throw_bad_array_new_lengthv"
    r"|_ZNSt15__exception_ptr13exception_ptr\w+|_ZNSt7__cxx1119basic_ostringstreamIcSt11char_traitsIcESaIcEEC1Ev"
    r"|_ZNKRSt7__cxx1115basic_stringbufIcSt11char_traitsIcESaIcEE3strEv"
)


def run(*command: str | Path) -> str:
    return subprocess.run([str(c) for c in command], check=True, capture_output=True, text=True).stdout


# --- compiling --------------------------------------------------------------------------------------------------------


def units(compiler: str, machine: str) -> dict[Path, list[str]]:
    """Flags of every source that needs no Python, as CMakeLists.txt states them."""
    cmake = (ROOT / "CMakeLists.txt").read_text()

    def options(pattern: str) -> list[str]:
        match = re.search(pattern, cmake)
        assert match is not None, f"CMakeLists.txt: no {pattern}"
        return shlex.split(match[1])

    common = [f"-I{ROOT / 'csrc'}", "-std=c++20", "-fPIC", "-fvisibility=hidden", "-fvisibility-inlines-hidden"]
    common += options(r'CMAKE_CXX_FLAGS_RELEASE "(.*)"') + options(r"\nadd_compile_options\(([^)]*)\)")
    if machine == "aarch64":
        common += options(r"\n  add_compile_options\((-march=armv8-a [^)]*)\)")
    if "clang" in compiler:
        common += [f"--target={MACHINES[machine].triplet}", "-Wno-ignored-optimization-argument"]
    flags = {path: common for part in ("core", "runtime") for path in sorted((ROOT / f"csrc/{part}").glob("*.cpp"))}
    isa_flags = options(r"target_compile_options\(isa_\$\{name\} PRIVATE \$\{flags\} ([^)]*)\)")
    if "clang" not in compiler:
        isa_flags.append("-Wno-maybe-uninitialized")
    for name, own in re.findall(r"^\s*add_isa\((\w+)([^)]*)\)", cmake, re.MULTILINE):
        if ("-march=arm" in own) == (machine == "aarch64") or name == "scalar":
            if "clang" in compiler:
                own = own.replace("-fno-schedule-insns", "-mllvm -enable-misched=0")
            flags[ROOT / f"csrc/isa/kernels_{name}.cpp"] = [*common, *own.split(), *isa_flags]
    if "clang" in compiler:
        flags[ROOT / "csrc/isa/kernels_scalar.cpp"] += options(r"\(isa_scalar PRIVATE ([^)]*)\)")
    return flags


def compile_units(compiler: str, directory: Path, machine: str = HERE) -> dict[str, Path]:
    """Objects by the stem of their source, two at a time."""

    def build(item: tuple[Path, list[str]]) -> tuple[str, Path]:
        source, flags = item
        target = directory / f"{source.stem}.o"
        run(compiler, *flags, "-c", source, "-o", target)
        return source.stem, target

    with ThreadPoolExecutor(2) as pool:
        return dict(pool.map(build, units(compiler, machine).items()))


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
        """A product has nothing on the stack. Attention may use what it keeps there: queries, weights, outputs."""
        return self.stores > 0 or (self.product and self.loads > 0)


def functions(listing: str) -> Iterator[tuple[str, list[str]]]:
    for block in re.split(r"\n\n", listing):
        head = re.match(r"[0-9a-f]+ <(.*)>:\n", block.lstrip("\n"))
        if head:
            yield head[1], block.lstrip("\n").splitlines()[1:]


def innermost(lines: list[str], machine: Machine) -> Iterator[list[str]]:
    at = {line.split(":")[0].strip(): i for i, line in enumerate(lines)}
    spans = set()
    for i, line in enumerate(lines):
        target = machine.jump.search(line)
        if target and at.get(target[1], len(lines)) < i:
            spans.add((at[target[1]], i))
    for begin, end in spans:
        if not any(begin <= b and e <= end for b, e in spans - {(begin, end)}):
            yield lines[begin : end + 1]


def moves(lines: list[str], machine: Machine) -> tuple[int, int]:
    """Vector instructions that read from and that write to the stack."""
    found = [line for line in lines if machine.moves.search(line)]
    stores = sum(bool(machine.store.search(line)) for line in found)
    return len(found) - stores, stores


def hot_loops(listing: str, machine: str = "x86_64") -> list[Loop]:
    """From the output of ``objdump -dC``: in products and attention, loops that are mostly multiply-adds."""
    found, reads = [], MACHINES[machine]
    for name, lines in functions(listing):
        hot, own = HOT.search(name), OWN.search(name)
        if hot:
            kind = hot[2].lower()
            what = "attention" if hot[1].startswith("att") else "product"
            source = hot[3] or hot[4] or ""
            variant = "_bytes" if source == "Bytes" else "_narrow" if source[:6] in ("Narrow", "Indice") else ""
            if source == "Bounded" or "::Bounded" in (hot[5] or ""):
                variant = "_bounded"
            if "_block<" in name:
                variant = "_block"
            numbers = re.sub(r", \(anonymous namespace\)::[\w:]+", "", hot[5] or "")
            label = f"{what}_{kind}{variant}<{numbers}>"
        elif own:
            kind = "f32" if own[1] else "i8"
            label = f"product_{kind}<{own[2] or 2}, 1>"
        else:
            continue
        if not any("mov    %rsp,%rbp" in line for line in lines):
            lines = [line.replace("%rbp", "%general") for line in lines]  # here it points to no frame
        for loop in innermost(lines, reads):
            dots = sum(bool(reads.dot[kind.rstrip("48")].search(line)) for line in loop)
            if dots and not any(reads.not_product.search(line) for line in loop):
                found.append(Loop(label, dots, len(loop), *moves(loop, reads)))
    return sorted(found, key=lambda loop: (loop.function, -loop.dots))


def without_remainders(loops: Sequence[Loop]) -> list[Loop]:
    """Of each tile the loop with most products: a smaller one takes what its steps of several groups leave of K.

    Of a block's the shortest: a longer one takes weights apart, once for all rows, and may use the stack.
    """
    most: dict[str, int] = {}
    least: dict[str, int] = {}
    for loop in loops:
        most[loop.function] = max(loop.dots, most.get(loop.function, 0))
        least[loop.function] = min(loop.instructions, least.get(loop.function, loop.instructions))

    def counts(loop: Loop) -> bool:
        if "_block<" in loop.function:
            return loop.instructions == least[loop.function]
        return not loop.product or loop.dots == most[loop.function]

    return [loop for loop in loops if counts(loop)]


def disassemble(target: Path, machine: str = HERE, *options: str) -> str:
    return run(f"{MACHINES[machine].triplet}-objdump", "-d", "--no-show-raw-insn", *options, target)


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


def above_baseline(target: Path, machine: str = HERE) -> list[str]:
    """Instructions that not every CPU has, in objects: AVX or later; on ARM, what came after armv8.0."""
    return [line.strip() for line in disassemble(target, machine).splitlines() if MACHINES[machine].above.search(line)]


def isa_functions(extension: Path) -> dict[int, tuple[int, str]]:
    """By address the end and the ISA of the functions of the ISA units; from an unstripped extension."""
    found, isa = {}, ""
    for line in run("readelf", "-sW", extension).splitlines():
        fields = line.split()
        if len(fields) < 8:
            continue
        if fields[3] == "FILE":
            unit = re.fullmatch(r"kernels_(\w+)\.cpp", fields[7])
            isa = unit[1] if unit else ""
        # Nothing else of a unit is local to it: the linker also puts names that it hid behind the last file.
        elif fields[3] == "FUNC" and isa and "_GLOBAL__N_" in fields[7]:
            found[int(fields[1], 16)] = (int(fields[1], 16) + int(fields[2], 0), isa)
    return found


def isa_ranges(extension: Path) -> list[tuple[int, int]]:
    """Addresses of the functions of the ISA units but the scalar one; from an unstripped extension."""
    return sorted((begin, end) for begin, (end, isa) in isa_functions(extension).items() if isa != "scalar")


def outside_isa_units(extension: Path, machine: str = HERE) -> tuple[list[str], int]:
    """Of an unstripped extension: instructions above the baseline outside the ISA units, and how many are inside."""
    ranges = isa_ranges(extension)
    begins = [begin for begin, _ in ranges]
    outside, inside = [], 0
    for line in disassemble(extension, machine).splitlines():
        if MACHINES[machine].above.search(line):
            address = int(line.split(":")[0], 16)
            at = bisect_right(begins, address) - 1
            if at >= 0 and address < ranges[at][1]:
                inside += 1
            else:
                outside.append(line.strip())
    return outside, inside


def portability(extension: Path, ours: bool = True) -> list[str]:
    """What older systems lack, and what no extension should do; ``ours``: from scripts/build_wheels.sh, no excuses."""
    wrong = []
    for line in run("readelf", "--dyn-syms", "-W", extension).splitlines():
        name = line.split()[-1] if len(line.split()) >= 8 else ""
        if "UND" not in line.split()[6:7]:
            if name not in ("", "Name", f"PyInit_{extension.name.split('.')[0]}"):
                wrong.append(f"{extension.name}: shows {name} to other libraries")
            continue
        match = re.search(r"(\w+)@(GLIBCXX|GLIBC|CXXABI|GCC)_([\d.]+)", line)
        if not match:
            continue
        version = tuple(int(part) for part in match[3].split("."))
        if version > FLOORS[match[2]] and (ours or not BUILD_MACHINE.fullmatch(match[1])):
            wrong.append(f"{extension.name}: {match[1]} needs {match[2]}_{match[3]}, which manylinux_2_28 has not")
    headers = run("readelf", "-lW", extension)
    if not re.search(r"GNU_STACK.* RW ", headers):
        wrong.append(f"{extension.name}: the stack is executable")
    if "TEXTREL" in run("readelf", "-dW", extension):
        wrong.append(f"{extension.name}: text relocations")
    if re.search(r"^\s*LOAD.* RWE ", headers, re.MULTILINE):
        wrong.append(f"{extension.name}: a segment is writable and executable")
    return wrong


def check(objects: dict[str, Path], loops: dict[str, list[Loop]], machine: str) -> list[str]:
    wrong = []
    for stem, target in objects.items():
        name = stem.removeprefix("kernels_")
        if name != stem:
            wrong += wrong_symbols(target, name)
        if stem not in loops or stem == "kernels_neon":
            wrong += [f"{stem}: {line}" for line in above_baseline(target, machine)[:3]]
    for stem, found in loops.items():
        for loop in found:
            if loop.spills:
                wrong.append(f"{stem}: {loop.function} spills: {loop}")
    return wrong


def vector_units(objects: dict[str, Path], machine: str = HERE) -> dict[str, list[Loop]]:
    stems = [stem for stem in objects if stem.startswith("kernels_") and stem != "kernels_scalar"]
    return {stem: without_remainders(hot_loops(disassemble(objects[stem], machine, "-C"), machine)) for stem in stems}


def linked_units(extension: Path, machine: str = HERE) -> dict[str, list[Loop]]:
    """As ``vector_units``, of an unstripped extension: what its linker was given, whichever compiler that came from."""
    owners = isa_functions(extension)
    blocks: dict[str, list[str]] = {}
    for block in disassemble(extension, machine, "-C").split("\n\n"):
        head = re.match(r"\s*([0-9a-f]+) <", block)
        _, isa = owners.get(int(head[1], 16), (0, "scalar")) if head else (0, "scalar")
        if isa != "scalar":
            blocks.setdefault(f"kernels_{isa}", []).append(block.lstrip("\n"))
    return {stem: without_remainders(hot_loops("\n\n".join(found), machine)) for stem, found in blocks.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("extension", nargs="?", type=Path, help="a built _core to check for portability")
    parser.add_argument("--compiler", default="g++")
    parser.add_argument("--machine", default=HERE, choices=MACHINES)
    parser.add_argument("--table", action="store_true", help="print every hot loop")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        objects = compile_units(arguments.compiler, Path(directory), arguments.machine)
        loops = vector_units(objects, arguments.machine)
        wrong = check(objects, loops, arguments.machine)
    if arguments.extension is not None:
        wrong += portability(arguments.extension)
        if isa_ranges(arguments.extension):
            wrong += outside_isa_units(arguments.extension, arguments.machine)[0]
    if arguments.table:
        print("unit function dots instructions loads stores")
        for stem, found in loops.items():
            for loop in found:
                print(stem, loop.function, loop.dots, loop.instructions, loop.loads, loop.stores)
    print("\n".join(wrong) or "nothing wrong", file=sys.stderr if wrong else sys.stdout)
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())

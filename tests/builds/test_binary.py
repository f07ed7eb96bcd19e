"""What compilers make of csrc: no spills in hot loops, no ISA in reach of another, nothing older systems lack."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import check_binary
from check_binary import Loop
from helpers.wheel_builds import unstripped, wheel
from pocketformer import _core

MACHINES = ("x86_64", "aarch64")
Objects = Callable[[str], dict[str, Path]]
VECTOR_ISAS = {
    "x86_64": ("avx2", "avxvnni", "avxvnni_evex", "avx512vnni"),
    "aarch64": ("neon", "dotprod", "i8mm"),
}

# Products in an iteration of the largest tile's loop, at least.
TILES = {
    "avx2": 8,
    "avxvnni": 12,
    "avxvnni_evex": 12,
    "avx512vnni": 20,
    "neon": 32,
    "dotprod": 16,
    "i8mm": 20,
}

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="runs on x86-64 machines, from which it compiles for all"
)


@dataclass(frozen=True)
class HotLoops:
    """Of each ISA's unit for one kind of CPU."""

    machine: str
    units: dict[str, list[Loop]]

    def of_each_isa(self) -> Iterator[tuple[str, list[Loop]]]:
        for isa in VECTOR_ISAS[self.machine]:
            if isa != "avxvnni_evex" or f"kernels_{isa}" in self.units:  # wheels do without that twin of AVX-VNNI
                yield isa, self.units[f"kernels_{isa}"]


@pytest.fixture(scope="module", params=[(by, machine) for by in ("g++", "clang") for machine in MACHINES], ids="-".join)
def loops(request: pytest.FixtureRequest, gnu_objects: Objects) -> HotLoops:
    """By g++, and by the clang that builds the wheels: of what the wheels hold."""
    by, machine = request.param
    if by == "g++":
        return HotLoops(machine, check_binary.vector_units(gnu_objects(machine), machine))
    return HotLoops(machine, check_binary.linked_units(unstripped(wheel(f"manylinux_2_28_{machine}")), machine))


@pytest.mark.slow
def test_products_do_not_spill(loops: HotLoops) -> None:
    for isa, found in loops.of_each_isa():
        products = [loop for loop in found if loop.product]
        assert [loop for loop in products if loop.spills] == [], isa
        # The loop of the largest tile is among those that were looked at.
        for kind in ("product_i8", "product_i4", "product_f32"):
            assert max(loop.dots for loop in products if loop.function.startswith(kind)) >= TILES[isa], isa


@pytest.mark.slow
def test_attention_does_not_spill(loops: HotLoops) -> None:
    for isa, found in loops.of_each_isa():
        attention = [loop for loop in found if not loop.product]
        assert {loop.function.split("<")[0] for loop in attention} == {"attention_i8", "attention_f32"}
        assert [loop for loop in attention if loop.spills] == [], isa


@pytest.mark.slow
@pytest.mark.parametrize("machine", MACHINES)
def test_isa_units_show_their_table_only(machine: str, gnu_objects: Objects) -> None:
    """Or the linker could take a function that was built for AVX-512 for every CPU."""
    for isa in ("scalar", *VECTOR_ISAS[machine]):
        assert check_binary.wrong_symbols(gnu_objects(machine)[f"kernels_{isa}"], isa) == []


@pytest.mark.slow
@pytest.mark.parametrize("machine", MACHINES)
def test_instructions_above_the_baseline_are_in_isa_units_only(machine: str, gnu_objects: Objects) -> None:
    for stem, target in gnu_objects(machine).items():
        above = stem.removeprefix("kernels_") in set(VECTOR_ISAS[machine]) - {"neon"}
        assert bool(check_binary.above_baseline(target, machine)) == above, stem


def test_only_a_remainder_is_left_out() -> None:
    spilled = check_binary.Loop("product_i8<8, 1>", 32, 50, loads=3, stores=3)
    whole = check_binary.Loop("product_i8<8, 1>", 64, 90, loads=0, stores=0)
    other = check_binary.Loop("product_i8<7, 1>", 28, 50, loads=3, stores=3)
    rows = check_binary.Loop("product_i4_block<4, true>", 8, 37, loads=0, stores=0)
    apart = check_binary.Loop("product_i4_block<4, true>", 8, 119, loads=0, stores=2)
    assert check_binary.without_remainders([spilled, whole, other, apart, rows]) == [whole, other, rows]


def test_extension_is_portable() -> None:
    assert check_binary.portability(Path(_core.__file__), ours=False) == []


LISTING = """
0000000000000000 <void (anonymous namespace)::gemm_i8_tile<(anonymous namespace)::Isa, 1, 1>(Args const&, int, int)>:
   0:\tpush   %rbp
   1:\tmov    %rsp,%rbp
  10:\tvmovdqu (%rdi),%ymm0
  14:\tvpdpbusd %ymm0,%ymm1,%ymm2
  18:\tSPILL
  20:\tjne    10 <gemm+0x10>
  24:\tret
"""


@pytest.mark.parametrize(
    ("line", "loads", "stores"),
    [
        ("vmovdqa %ymm2,0x20(%rsp)", 0, 1),
        ("vmovdqa 0x20(%rsp),%ymm2", 1, 0),
        ("vpaddd -0x48(%rbp),%ymm1,%ymm2", 1, 0),
        ("vmovaps %ymm2,0x20(%rsp,%rcx,1)", 1, 0),  # an array: attention may have it, a product may not
        ("vmovdqu %ymm2,0x20(%rdi)", 0, 0),
        ("mov    %rax,0x20(%rsp)", 0, 0),
    ],
)
def test_spills_are_seen(line: str, loads: int, stores: int) -> None:
    (loop,) = check_binary.hot_loops(LISTING.replace("SPILL", line))
    assert (loop.dots, loop.loads, loop.stores) == (1, loads, stores)
    assert loop.spills == (loads + stores > 0)


def test_tiles_of_bounded_pairs_are_seen() -> None:
    found = LISTING.replace("Isa, 1, 1>", "Isa, 5, 1, (anonymous namespace)::Isa::Bounded>").replace("SPILL", "nop")
    inlined = found.replace("gemm_i8_tile<", "TileI8Bounded<").replace(", (anonymous namespace)::Isa::Bounded", "")
    assert [check_binary.hot_loops(listing)[0].function for listing in (found, inlined)] == [
        "product_i8_bounded<5, 1>"
    ] * 2


def test_a_general_register_is_no_stack() -> None:
    listing = LISTING.replace("mov    %rsp,%rbp", "mov    %rsi,%rbp").replace("SPILL", "vaddps 0x48(%rbp),%ymm1,%ymm2")
    (loop,) = check_binary.hot_loops(listing)
    assert not loop.spills


@pytest.mark.parametrize(
    ("line", "loads", "stores"),
    [
        ("str\tq3, [sp, #32]", 0, 1),
        ("stp\tq3, q4, [sp, #32]", 0, 1),
        ("ldp\tq3, q4, [x29, #32]", 1, 0),
        ("ldr\td3, [sp, #32]", 1, 0),
        ("st1\t{v3.16b}, [sp]", 0, 1),
        ("ldr\tx3, [sp, #32]", 0, 0),
        ("str\tq3, [x2, #32]", 0, 0),
    ],
)
def test_spills_on_arm_are_seen(line: str, loads: int, stores: int) -> None:
    listing = LISTING.replace("vpdpbusd %ymm0,%ymm1,%ymm2", "sdot\tv1.4s, v2.16b, v3.4b[0]").replace("SPILL", line)
    (loop,) = check_binary.hot_loops(listing.replace("jne    10", "b.ne\t10"), "aarch64")
    assert (loop.dots, loop.loads, loop.stores) == (1, loads, stores)


def test_shared_symbols_are_seen(tmp_path: Path) -> None:
    source, target = tmp_path / "unit.cpp", tmp_path / "unit.o"
    source.write_text("#include <vector>\nint f(const std::vector<int>& v, int i) { return v.at(i); }\n")
    check_binary.run("g++", "-O0", "-mavx2", "-c", source, "-o", target)
    wrong = check_binary.wrong_symbols(target, "unit")
    assert any("vector" in message and "shows" in message for message in wrong)
    assert any("elsewhere" in message for message in wrong)

"""What compilers make of csrc: no spills in hot loops, no ISA in reach of another, nothing older systems lack."""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path

import pytest

import check_binary
from check_binary import Loop
from pocketformer import _core

COMPILERS = ("g++", "clang++")
VECTOR_ISAS = ("avx2", "avxvnni", "avxvnni_evex", "avx512vnni")
TILES = {"avx2": 4, "avxvnni": 6, "avxvnni_evex": 6, "avx512vnni": 28}  # rows × panels of the largest

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="runs on x86-64 machines, whose ISAs it looks at"
)


def compiler(name: str) -> str:
    found = next((c for c in (name, f"{name}-19") if shutil.which(c)), None)
    if found is None or shutil.which("objdump") is None:
        message = f"{name} or binutils is missing; scripts/install_tools.sh installs them"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return found


@pytest.fixture(scope="module", params=COMPILERS)
def objects(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return check_binary.compile_units(compiler(request.param), tmp_path_factory.mktemp("objects"))


@pytest.fixture(scope="module")
def loops(objects: dict[str, Path]) -> dict[str, list[Loop]]:
    return check_binary.vector_units(objects)


@pytest.mark.parametrize("isa", VECTOR_ISAS)
def test_products_do_not_spill(loops: dict[str, list[Loop]], isa: str) -> None:
    products = [loop for loop in loops[f"kernels_{isa}"] if loop.product]
    assert [loop for loop in products if loop.spills] == []
    registers = 1 if isa == "avx512vnni" else 2
    for kind in ("product_i8", "product_f32"):  # the loop of the largest tile is among those that were looked at
        assert max(loop.dots for loop in products if loop.function.startswith(kind)) >= TILES[isa] * registers


@pytest.mark.parametrize("isa", VECTOR_ISAS)
def test_attention_does_not_spill(loops: dict[str, list[Loop]], isa: str) -> None:
    attention = [loop for loop in loops[f"kernels_{isa}"] if not loop.product]
    assert {loop.function.split("<")[0] for loop in attention} == {"attention_i8", "attention_f32"}
    assert [loop for loop in attention if loop.spills] == []


def test_isa_units_show_their_table_only(objects: dict[str, Path]) -> None:
    """Or the linker could take a function that was built for AVX-512 for every CPU."""
    for isa in ("scalar", *VECTOR_ISAS):
        assert check_binary.wrong_symbols(objects[f"kernels_{isa}"], isa) == []


def test_wide_instructions_are_in_isa_units_only(objects: dict[str, Path]) -> None:
    for stem, target in objects.items():
        assert bool(check_binary.wide_instructions(target)) == (stem.removeprefix("kernels_") in VECTOR_ISAS), stem


def test_extension_is_portable() -> None:
    compiler("g++")
    assert check_binary.portability(Path(_core.__file__)) == []


LISTING = """
0000000000000000 <void (anonymous namespace)::gemm_i8_tile<(anonymous namespace)::Isa, 1, 1>(Args const&, int, int)>:
   0:\tpush   %rbx
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
        ("vmovdqu %ymm2,0x20(%rdi)", 0, 0),
        ("mov    %rax,0x20(%rsp)", 0, 0),
    ],
)
def test_spills_are_seen(line: str, loads: int, stores: int) -> None:
    (loop,) = check_binary.hot_loops(LISTING.replace("SPILL", line))
    assert (loop.dots, loop.loads, loop.stores) == (1, loads, stores)
    assert loop.spills == (loads + stores > 0)


def test_shared_symbols_are_seen(tmp_path: Path) -> None:
    source, target = tmp_path / "unit.cpp", tmp_path / "unit.o"
    source.write_text("#include <vector>\nint f(const std::vector<int>& v, int i) { return v.at(i); }\n")
    check_binary.run(compiler("g++"), "-O0", "-mavx2", "-c", source, "-o", target)
    wrong = check_binary.wrong_symbols(target, "unit")
    assert any("vector" in message and "shows" in message for message in wrong)
    assert any("elsewhere" in message for message in wrong)

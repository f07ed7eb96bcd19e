"""Products of ISAs that this machine may not have equal the scalar ones, bit for bit.

AVX-512 and AVX-VNNI are compiled with their intrinsics as functions of SIMDe (tests/native/emulated), ARM's for an
emulated core. ``tests/native/same_products.cpp`` compares; where the machine has an ISA, test_kernels.py does too.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ARM = ("aarch64-linux-gnu-g++", "qemu-aarch64-static")
TOOLS = {
    "avx512vnni": (*("g++", "-mavx2 -mfma -mf16c -Itests/native/emulated"), ""),
    "avxvnni": (*("g++", "-mavx2 -mfma -mf16c -Itests/native/emulated"), ""),
    "neon": (ARM[0], "-march=armv8-a -fno-schedule-insns", f"{ARM[1]} -cpu cortex-a53"),
    "dotprod": (ARM[0], "-march=armv8.2-a+dotprod", f"{ARM[1]} -cpu cortex-a76"),
    "i8mm": (ARM[0], "-march=armv8.2-a+dotprod+i8mm -fno-schedule-insns", f"{ARM[1]} -cpu max,sve=off"),
}
COMMON = "-std=c++20 -DNDEBUG -ffp-contract=off -fno-math-errno -w -Itests/native/products -Icsrc"

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="runs on x86-64 machines, from which it compiles for all"
)


def missing(compiler: str, emulator: str, flags: str) -> str:
    for tool in (compiler, *emulator.split()[:1]):
        if shutil.which(tool) is None:
            return tool
    return "libsimde-dev" if "emulated" in flags and not Path("/usr/include/simde").is_dir() else ""


def run(command: str) -> str:
    done = subprocess.run(command.split(), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("isa", TOOLS)
def test_products_equal_the_scalar_ones(isa: str, tmp_path: Path) -> None:
    compiler, flags, emulator = TOOLS[isa]
    if lacking := missing(compiler, emulator, flags):
        message = f"{lacking} is missing; scripts/install_tools.sh installs it"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    for name, own in ((isa, flags), ("scalar", "")):
        source = f"csrc/isa/kernels_{name}.cpp"
        run(f"{compiler} {COMMON} -O2 {own} -fno-exceptions -fno-rtti -c {source} -o {tmp_path}/{name}.o")
    main = f"-DUNIT=kernel_table_{isa} tests/native/same_products.cpp"
    run(f"{compiler} {COMMON} -O1 -static {main} {tmp_path}/{isa}.o {tmp_path}/scalar.o -o {tmp_path}/same")
    assert "0 of 1404 cases differ" in run(f"{emulator} {tmp_path}/same")

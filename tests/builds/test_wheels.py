"""The wheels that users get: what they are called, what they ask of a system, what is in them, and that they run."""

from __future__ import annotations

import platform
import re
import subprocess
from pathlib import Path

import pytest

import check_binary
from helpers.wheel_builds import run, unpack, unstripped, wheel

# musllinux_1_2_aarch64 differs from both its neighbours in nothing that is not tested with one of them: minutes saved.
TARGETS = ("manylinux_2_28_x86_64", "manylinux_2_28_aarch64", "musllinux_1_2_x86_64")
SYSTEM = {  # libraries that every system of the kind has; nothing of a C++ library is among them
    "manylinux": r"lib(c|m|dl|pthread)\.so\.6|lib(dl|pthread)\.so\.[02]|ld-linux-(x86-64|aarch64)\.so\.[12]",
    "musllinux": r"libc\.so",
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="cross-builds on x86-64 machines"),
]


@pytest.mark.parametrize("target", TARGETS)
def test_what_a_wheel_asks_for(target: str, tmp_path: Path) -> None:
    built = wheel(target)
    print(f"\n{built.name}: {built.stat().st_size / 1e6:.2f} MB")
    assert built.stat().st_size <= 1.5e6
    assert re.fullmatch(rf"pocketformer-[\d.]+-(cp3\d+)-\1-{target}\.whl", built.name)
    core = unpack(built, tmp_path)
    (metadata,) = tmp_path.glob("*.dist-info/WHEEL")
    assert f"-{target}\n" in metadata.read_text()
    assert not list(tmp_path.rglob("*.pyx"))
    extensions = sorted(tmp_path.rglob("*.so"))
    assert [path.name.split(".")[0] for path in extensions] == ["_core", "_sampling", "_rounding"]
    assert core in extensions
    for extension in extensions:
        assert check_binary.portability(extension) == []
        needed = re.findall(r"NEEDED.*\[(.*)\]", run(["readelf", "-dW", str(extension)]))
        assert [name for name in needed if not re.fullmatch(SYSTEM[target.split("_")[0]], name)] == []
        assert ".symtab" not in run(["readelf", "-SW", str(extension)]), "not stripped"
        assert ".debug" not in run(["readelf", "-SW", str(extension)])


@pytest.mark.parametrize("target", TARGETS)
def test_instructions_above_the_baseline_are_in_isa_units(target: str, tmp_path: Path) -> None:
    built = wheel(target)
    machine = "aarch64" if target.endswith("aarch64") else "x86_64"
    assert text_section(unstripped(built), tmp_path) == text_section(unpack(built, tmp_path), tmp_path)
    outside, inside = check_binary.outside_isa_units(unstripped(built), machine)
    assert outside == []
    assert inside > 300
    for plain in ("_rounding", "_sampling"):
        assert check_binary.outside_isa_units(unstripped(built, plain), machine) == ([], 0)


def text_section(extension: Path, folder: Path) -> bytes:
    target = folder / "text"
    machine = "aarch64" if "aarch64" in extension.name else "x86_64"
    objcopy = f"{check_binary.MACHINES[machine].triplet}-objcopy"
    subprocess.run([objcopy, "-O", "binary", "--only-section=.text", extension, target], check=True)
    return target.read_bytes()


def test_runs_on_musl(tmp_path: Path) -> None:
    """Every symbol is found in musl, CPU and threads are chosen, and C++ exceptions arrive as Python's."""
    unpack(wheel("musllinux_1_2_x86_64"), tmp_path)
    root = run(["scripts/musl_root.sh"]).strip()
    code = """if True:
        from pocketformer import _core
        assert _core.isas()[-1] == "scalar" and _core.read_cpus()["threads"] >= 1
        try:
            _core.Kernels("8086")
        except ValueError as error:
            print(_core.isas()[0], error)"""
    from pocketformer import _core

    output = run([f"{root}/python", "-c", code], PYTHONPATH=str(tmp_path), LD_BIND_NOW="1", PYTHONHOME=root)
    assert output.startswith(_core.isas()[0])
    assert "isa: '8086' is unknown" in output

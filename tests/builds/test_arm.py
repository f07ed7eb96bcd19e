"""One file, one input, the same bytes on every CPU: the wheels, ARM and x86 without AVX, emulated, against this CPU.

scripts/install_tools.sh installs the cross compiler and the emulator; a test fails when they are missing.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.engines import feeds
from helpers.golden import GOLDEN
from helpers.graphs import MODEL, TEXT, TOKENIZER_JSON
from helpers.programs import LENGTHS, batch, encoder
from helpers.run_cases import run_cases
from helpers.wheel_builds import build_wheel, run, unpack, wheel
from pocketformer import _core
from pocketformer.graph import Graph
from pocketformer.packing import pack_graph
from pocketformer.pocketfile import write_pocket

pytestmark = pytest.mark.slow

# The emulated core, the table it must choose, and all that it can run, best first.
CPUS = {
    "cortex-a53": ["neon", "scalar"],
    "cortex-a76": ["dotprod", "neon", "scalar"],
    "max": ["i8mm", "dotprod", "neon", "scalar"],
}
# Where each ISA's golden digests are computed: once is enough, and emulation is slow.
GOLDEN_ISAS = {"cortex-a53": ["neon", "scalar"], "cortex-a76": ["dotprod"], "max": ["i8mm"]}
TEXT_OF_MINILM = "A cat sits on the mat."
EMBED = f"""
import hashlib, sys, pocketformer
model = pocketformer.load(sys.argv[1])
print(hashlib.sha256(model.encode([{TEXT_OF_MINILM!r}]).tobytes()).hexdigest())
"""
# numpy's newer wheels need SSE4.2; the library does not.
NUMPY_WITHOUT_SSE4 = "numpy==2.2.6"


def save(folder: Path, name: str, graph: Graph, batch: dict[str, Any], task: str) -> None:
    model = {**MODEL, "task": task}
    write_pocket(folder / f"{name}.pocket", pack_graph(graph), model=model, text=TEXT, tokenizer_json=TOKENIZER_JSON)
    np.savez(folder / name, **batch)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory, minilm_int8: Path) -> Path:
    """Small encoders: odd widths, biased and grouped attention, rotations, tails of every kind; and MiniLM in int8."""
    folder = tmp_path_factory.mktemp("cases")
    shapes: dict[str, dict[str, Any]] = {
        "odd": {},
        "relative": {"relative": True, "hidden": 48, "ffn": 96},
        "grouped": {"heads": 4, "kv_heads": 2, "head_dim": 32, "hidden": 128, "ffn": 200},
        "words": {"task": "fill_mask", "hidden": 64},
    }
    for weights in ("int8", "fp32"):
        for name, options in shapes.items():
            rows = {"selected": np.arange(0, sum(LENGTHS), 7)} if name == "words" else {}
            inputs = {**batch(LENGTHS), **rows}
            save(folder, f"{name}-{weights}", encoder(weights, **options), inputs, options.get("task", "embed"))
    shutil.copy(minilm_int8, folder / "minilm.pocket")
    ids = np.array([101, 1037, 4937, 7719, 2006, 1996, 13523, 1012, 102], np.int32)  # TEXT_OF_MINILM
    np.savez(folder / "minilm", **feeds(ids, [len(ids)], None, None))
    assert len(list(folder.glob("*.pocket"))) == 9
    return folder


@pytest.fixture(scope="module")
def expected(cases: Path) -> dict[str, str]:
    """Digests by case on this CPU, equal for all its instruction sets."""
    digests = run_cases(cases)
    for isa, results in digests.items():
        assert results == digests["scalar"], isa
    return digests["scalar"]


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    """The digests of kernels and graphs that every build must compute."""
    bits = json.loads(GOLDEN.read_text(encoding="utf-8"))
    return {part: bits[part] for part in ("kernels", "graphs")}


@pytest.fixture(scope="module")
def arm_root() -> Path:
    return Path(run(["scripts/arm_root.sh"]).strip())


@pytest.fixture(scope="module")
def arm_packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manylinux wheel, installed into a folder of its own."""
    folder = tmp_path_factory.mktemp("arm")
    unpack(wheel("manylinux_2_28_aarch64"), folder)
    return folder


@dataclass(frozen=True)
class Emulated:
    """Python on an emulated core, with the wheel and its dependencies alone."""

    cpu: str
    root: Path
    packages: Path

    @property
    def interpreter(self) -> str:
        return f"{self.root}/usr/bin/python3.11"

    def python(self, *arguments: str) -> str:
        """Standard output of a successful run."""
        return run(
            ["qemu-aarch64-static", "-cpu", self.cpu, "-L", str(self.root), self.interpreter, *arguments],
            PYTHONHOME=f"{self.root}/usr",
            PYTHONPATH=f"{self.packages}:{self.root}/site-packages",
            PYTHONDONTWRITEBYTECODE="1",
        )


@pytest.fixture(params=CPUS)
def core(request: pytest.FixtureRequest, arm_root: Path, arm_packages: Path) -> Emulated:
    return Emulated(request.param, arm_root, arm_packages)


def test_aarch64(core: Emulated, cases: Path, expected: dict[str, str], golden: dict[str, Any]) -> None:
    isas = GOLDEN_ISAS[core.cpu]
    result = json.loads(core.python("tests/helpers/run_cases.py", str(cases), *isas))
    assert result["default"] == CPUS[core.cpu][0]
    assert result["digests"] == {isa: expected for isa in CPUS[core.cpu]}
    assert result["golden"] == {isa: golden for isa in isas}


def test_aarch64_text(core: Emulated, cases: Path, expected: dict[str, str]) -> None:
    """From text to the embedding, tokenizer included."""
    assert core.python("-c", EMBED, str(cases / "minilm.pocket")).strip() == expected["minilm"]


def test_aarch64_kernels(core: Emulated) -> None:
    """The integer products of the table that the core chooses equal numpy's, partial tiles and tails of k included."""
    pytest_options = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--override-ini=pythonpath=tests scripts"]
    output = core.python(
        *pytest_options,
        "tests/kernels/test_kernels.py",
        "-k",
        f"(int8_product or panel_ranges or pool) and {CPUS[core.cpu][0]}",
    )
    assert re.search(r"\b\d+ passed", output), output
    assert "failed" not in output
    assert "skipped" not in output


def test_armv7(cases: Path, expected: dict[str, str], tmp_path: Path) -> None:
    """The source distribution's path on 32-bit boards: a cross build of the scalar kernels, on an emulated core."""
    root = Path(run(["scripts/arm_root.sh", "armhf"]).strip())
    unpack(build_wheel("linux_armv7l", root / "usr/include/python3.11"), tmp_path)
    libraries = root / "usr/lib/arm-linux-gnueabihf"
    command = ["qemu-arm-static", "-E", f"LD_LIBRARY_PATH={libraries}/blas:{libraries}/lapack", "-L", str(root)]
    output = run(
        [*command, str(root / "usr/bin/python3.11"), "tests/helpers/run_cases.py", str(cases)],
        PYTHONHOME=f"{root}/usr",
        PYTHONPATH=f"{tmp_path}:{root}/usr/lib/python3/dist-packages",
        PYTHONDONTWRITEBYTECODE="1",
    )
    assert json.loads(output) == {"default": "scalar", "digests": {"scalar": expected}}


def test_manylinux_x86_64(cases: Path, expected: dict[str, str], tmp_path: Path) -> None:
    """The wheel by clang in a clean environment: the bits of the build by this machine's compiler, on every ISA."""
    run([sys.executable, "-m", "venv", str(tmp_path)])
    python = f"{tmp_path}/bin/python"
    run([python, "-m", "pip", "install", "-q", str(wheel("manylinux_2_28_x86_64"))])
    result = json.loads(run([python, "tests/helpers/run_cases.py", str(cases)]))
    isas = [isa for isa in _core.isas() if isa != "avxvnni_evex"]  # wheels do without it
    assert result == {"default": isas[0], "digests": {isa: expected for isa in isas}}
    assert run([python, "-c", EMBED, str(cases / "minilm.pocket")]).strip() == expected["minilm"]


def test_x86_without_avx(cases: Path, expected: dict[str, str], tmp_path: Path) -> None:
    run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(tmp_path), NUMPY_WITHOUT_SSE4])
    package = Path(_core.__file__).parents[1]
    command = ["qemu-x86_64-static", "-cpu", "qemu64", sys.executable, "tests/helpers/run_cases.py", str(cases)]
    result = json.loads(run(command, PYTHONPATH=f"{tmp_path}:{package}", PYTHONDONTWRITEBYTECODE="1"))
    assert result == {"default": "scalar", "digests": {"scalar": expected}}

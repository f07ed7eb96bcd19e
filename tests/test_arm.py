"""One file, one input, the same bytes on every CPU: the aarch64 wheel and x86 without AVX, emulated, against this CPU.

scripts/install_tools.sh installs the cross compiler and the emulator; a test fails when they are missing.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models import model_folder
from pocket_helpers import MODEL, TEXT, TOKENIZER_JSON
from pocketformer.compress import compress
from pocketformer.compress.pack import pack_graph
from pocketformer.fetch import cache_folder
from pocketformer.graph import Graph
from pocketformer.pocketfile import write_pocket
from run_cases import run_cases
from runtime_helpers import LENGTHS, batch, encoder

ROOT = Path(__file__).parents[1]
# The emulated core, the table it must choose, and all that it can run, best first.
CPUS = {
    "cortex-a53": ["neon", "scalar"],
    "cortex-a76": ["dotprod", "neon", "scalar"],
    "max": ["i8mm", "dotprod", "neon", "scalar"],
}
TEXT_OF_MINILM = "A cat sits on the mat."
# numpy's newer wheels need SSE4.2; the library does not.
NUMPY_WITHOUT_SSE4 = "numpy==2.2.6"


def save(folder: Path, name: str, graph: Graph, batch: dict[str, Any]) -> None:
    write_pocket(folder / f"{name}.pocket", pack_graph(graph), model=MODEL, text=TEXT, tokenizer_json=TOKENIZER_JSON)
    np.savez(folder / name, **batch)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
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
            rows = {"rows": np.arange(0, sum(LENGTHS), 7)} if name == "words" else {}
            save(folder, f"{name}-{weights}", encoder(weights, **options), {**batch(LENGTHS), **rows})
    compress(model_folder("minilm"), folder / "minilm.pocket", weights="int8")
    ids = np.array([101, 1037, 4937, 7719, 2006, 1996, 13523, 1012, 102], np.int32)  # TEXT_OF_MINILM
    np.savez(folder / "minilm", ids=ids, offsets=np.array([0, len(ids)]))
    assert len(list(folder.glob("*.pocket"))) == 9
    return folder


@pytest.fixture(scope="module")
def expected(cases: Path) -> dict[str, str]:
    """Digests by case on this CPU, equal for all its instruction sets."""
    digests = run_cases(cases)
    for isa, results in digests.items():
        assert results == digests["scalar"], isa
    return digests["scalar"]


def run(command: list[str], **environment: str) -> str:
    """Standard output of a successful command."""
    done = subprocess.run(
        command, env={**os.environ, "PYTHON": sys.executable, **environment}, text=True, capture_output=True, cwd=ROOT
    )
    assert done.returncode == 0, f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def arm_root() -> Path:
    return Path(run(["scripts/arm_root.sh"]).strip())


def arm_wheel(arm_root: Path) -> Path:
    """The wheel of these sources: the build takes minutes, so the cache keeps the last one."""
    parts = ["csrc", "cmake", "python", "CMakeLists.txt", "pyproject.toml", "README.md", "scripts/build_arm_wheel.sh"]
    files = sorted(path for part in parts for path in [ROOT / part, *(ROOT / part).rglob("*")] if path.is_file())
    digest = hashlib.sha256()
    for path in files:
        if path.suffix not in (".pyc", ".so"):
            digest.update(f"{path.relative_to(ROOT)}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    cache = cache_folder() / "arm-wheel"
    folder = cache / digest.hexdigest()[:16]
    if not list(folder.glob("*.whl")):
        shutil.rmtree(cache, ignore_errors=True)
        run(["scripts/build_arm_wheel.sh", str(folder)], ARM_ROOT=str(arm_root))
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def arm_packages(arm_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The aarch64 wheel (POCKETFORMER_ARM_WHEEL or ``arm_wheel``'s), installed into a folder of its own."""
    folder = tmp_path_factory.mktemp("arm")
    given = os.environ.get("POCKETFORMER_ARM_WHEEL")
    wheel = Path(given) if given else arm_wheel(arm_root)
    assert wheel.stat().st_size < 3e6
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site-packages")
    return folder / "site-packages"


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


def test_aarch64(core: Emulated, cases: Path, expected: dict[str, str]) -> None:
    result = json.loads(core.python("tests/run_cases.py", str(cases)))
    assert result["default"] == CPUS[core.cpu][0]
    assert result["digests"] == {isa: expected for isa in CPUS[core.cpu]}


def test_aarch64_text(core: Emulated, cases: Path, expected: dict[str, str]) -> None:
    """From text to the embedding, tokenizer included."""
    code = f"""if True:
        import hashlib, pocketformer
        model = pocketformer.load({str(cases / "minilm.pocket")!r})
        print(hashlib.sha256(model.encode([{TEXT_OF_MINILM!r}]).tobytes()).hexdigest())"""
    assert core.python("-c", code).strip() == expected["minilm"]


def test_aarch64_kernels(core: Emulated) -> None:
    """The integer products of the table that the core chooses equal numpy's, partial tiles and tails of k included."""
    pytest_options = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--override-ini=pythonpath=tests scripts"]
    output = core.python(
        *pytest_options,
        "tests/test_kernels.py",
        "-k",
        f"(int8_product or panel_ranges or pool) and {CPUS[core.cpu][0]}",
    )
    assert re.search(r"\b\d+ passed", output), output
    assert "failed" not in output
    assert "skipped" not in output


def test_no_instruction_above_the_baseline(arm_packages: Path) -> None:
    """LSE atomics and half-precision or scalable arithmetic occur nowhere, checked at run time or not."""
    (core,) = (arm_packages / "pocketformer").glob("_core.*.so")
    listing = run(["aarch64-linux-gnu-objdump", "-d", "--no-show-raw-insn", str(core)])
    code = re.findall(r"^\s+[0-9a-f]+:\t(\S+)[ \t]*([^\n]*)$", listing, re.MULTILINE)
    assert sum(mnemonic == "sdot" for mnemonic, _ in code) > 64
    above = r"(cas|swp|ld(add|clr|set|eor|[su]max|[su]min)|st(add|clr|set|eor))[albh]*p?$"
    assert [mnemonic for mnemonic, _ in code if re.match(above, mnemonic)] == []
    assert [operands for _, operands in code if re.search(r"\bz\d+\.[bhsd]\b", operands)] == []
    assert [m for m, operands in code if m.startswith("f") and re.search(r"\.[48]h\b|\bh\d+\b", operands)] == []


def test_x86_without_avx(cases: Path, expected: dict[str, str], tmp_path: Path) -> None:
    import pocketformer._core

    run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(tmp_path), NUMPY_WITHOUT_SSE4])
    package = Path(pocketformer._core.__file__).parents[1]
    command = ["qemu-x86_64-static", "-cpu", "qemu64", sys.executable, "tests/run_cases.py", str(cases)]
    result = json.loads(run(command, PYTHONPATH=f"{tmp_path}:{package}", PYTHONDONTWRITEBYTECODE="1"))
    assert result == {"default": "scalar", "digests": {"scalar": expected}}

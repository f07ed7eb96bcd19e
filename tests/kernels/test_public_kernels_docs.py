"""What docs/kernels.md, the docstrings and the example of pocketformer.kernels show works; its bench measures."""

from __future__ import annotations

import doctest
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pocketformer import kernels
from pocketformer.cli import build_parser, main

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "kernels.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def test_python_blocks() -> None:
    """In order and in one process, as a reader would type them."""
    code = "".join(blocks("python"))
    assert code.count("kernels.") > 30
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_commands_are_understood() -> None:
    (shell,) = blocks("bash")
    for line in shell.splitlines():
        build_parser().parse_args(shlex.split(line)[1:])


def test_links() -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", PAGE):
        assert (ROOT / "docs" / link).exists(), link


def test_docstrings() -> None:
    assert doctest.testmod(kernels).attempted >= 5
    assert doctest.testmod(kernels).failed == 0
    mine = [getattr(kernels, name) for name in kernels.__all__]
    assert len(mine) >= 14
    assert [value for value in mine if not value.__doc__] == []


def test_bytes_that_the_page_claims() -> None:
    weight = np.zeros((1024, 1024), np.float32)
    found = re.findall(r"^\| `(\w+)`(?:, `group=(\d+)`)? \|[^|]*\| ([\d,]+) \|$", PAGE, re.MULTILINE)
    assert len(found) == 5
    for dtype, group, nbytes in found:
        assert kernels.pack(weight, dtype, int(group or 0) or None).nbytes == int(nbytes.replace(",", "")), dtype


def test_encoder_layer() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", ROOT / "examples" / "encoder_layer.py"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = re.findall(r"^(\w+): largest difference (\S+), least cosine (\S+)$", done.stdout, re.MULTILINE)
    (_, float_difference, _), (_, _, int8_cosine) = found
    assert [name for name, _, _ in found] == ["float32", "int8"]
    assert float(float_difference) < 2e-3  # the reference's GELU is the tanh approximation
    assert float(int8_cosine) > 0.999


def test_importing_the_package_does_not_import_them() -> None:
    code = (
        "import sys, pocketformer; assert 'pocketformer._core' not in sys.modules; print(pocketformer.kernels.isas())"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*arguments: object) -> str:
        code = main(["bench", "--kernels", "--seconds", "0.001", *map(str, arguments)])
        output = capsys.readouterr()
        assert code == 0, output.err
        return output.out

    return call


def test_bench(run: Any) -> None:
    options = ("--shapes", "3x32x64", "2x40x48", "--lengths", 20, "--threads", 1, 2)
    result = json.loads(run(*options, "--json"))
    rows = result["kernels"]
    assert {row["threads"] for row in rows} == {1, 2}
    products = [row for row in rows if row["kernel"] == "matmul"]
    assert {row["shape"] for row in products} == {"3 × 32 × 64", "2 × 40 × 48"}
    assert {row["dtype"] for row in products} == {"int8", "int4", "int4 / 32", "float32"}
    assert {row["kernel"] for row in rows} == {"matmul", "attention", "window ±256", "cache of 4096"}
    for row in rows:
        assert 0 < row["best"] <= row["median"]
        assert row["gmacs"] > 0
        assert row["peak_share"] == pytest.approx(row["gmacs"] / row["peak_gmacs"])
    assert "of peak" in run(*options)


@pytest.mark.parametrize("shape", ["3x4", "3x4x0", "axbxc", "3x4x5x6"])
def test_bad_shapes(shape: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "--kernels", "--shapes", shape])
    assert "is not of the form MxNxK, such as 64x1024x1024" in capsys.readouterr().err

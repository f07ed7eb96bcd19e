"""scripts/fuzz.sh: the kept corpus and a minute and a half of fuzzing under the sanitizers, memory and threads."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pocketformer import _core

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 90
TARGETS = ("program", "pocket", "safetensors", "tokenizer", "bindings")


def test_the_grammar_knows_every_operator() -> None:
    grammar = "".join(
        (ROOT / "fuzz" / name).read_text(encoding="utf-8") for name in ("decoder.h", "forms.h", "parts.h")
    )
    assert [entry["op"] for entry in _core.operators() if f'"{entry["op"]}"' not in grammar] == []


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="runs on x86-64, for which Atheris has wheels")
@pytest.mark.skipif(not (3, 11) <= sys.version_info < (3, 14), reason="runs with Python 3.11 to 3.13, as Atheris does")
def test_fuzzers_and_sanitizers() -> None:
    if shutil.which("clang++-19") is None:
        message = "clang++-19 is missing; scripts/install_tools.sh installs it"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    environment = os.environ | {"PYTHON": sys.executable}
    done = subprocess.run(
        [ROOT / "scripts/fuzz.sh", str(SECONDS)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    for target in TARGETS:
        found = re.search(rf"^{target}: (\d+) inputs, (\d+) in the corpus$", done.stdout, re.MULTILINE)
        assert found is not None, done.stdout
        assert int(found[1]) > 20  # more by far, but for a machine that is busy with other things
        assert int(found[2]) > 3
    assert "memory: done" in done.stdout
    assert "threads: done" in done.stdout


@pytest.mark.slow
def test_mutated_files() -> None:
    """Some of what fuzz/million.py reads by the hundred thousand, in memory that is bounded."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), *sys.path]),
        "PYTHONWARNINGS": "ignore",
    }
    command = [sys.executable, ROOT / "fuzz/million.py", "450", "7", "pocket", "safetensors", "gguf"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-5000:]
    counts = json.loads(done.stdout)
    assert counts["pocket accepted"] > 5
    assert counts["pocket refused"] > 50
    assert counts["gguf accepted"] > 5
    assert counts["gguf refused (CheckpointError)"] > 50
    assert counts["gguf refused (UnsupportedModelError)"] > 5

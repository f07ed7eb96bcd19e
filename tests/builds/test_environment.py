"""Environments are made of, and kept by, what the tables of pyproject.toml ask for."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import requirements

ROOT = Path(__file__).parents[2]
PYPROJECT = {
    "build-system": {"requires": ["builder>=1"]},
    "project": {
        "name": "example",
        "dependencies": ["numpy>=1"],
        "optional-dependencies": {
            "io": ["rich>=13", "numpy>=1"],
            "test": ["example[io, more]", "pytest>=8"],
            "more": ["torch==2"],
        },
    },
}


def test_tables() -> None:
    assert requirements.requirements(["project"], PYPROJECT) == ["numpy>=1"]
    assert requirements.requirements(["build", "project"], PYPROJECT) == ["builder>=1", "numpy>=1"]
    assert requirements.requirements(["test"], PYPROJECT) == ["numpy>=1", "pytest>=8", "rich>=13", "torch==2"]
    with pytest.raises(ValueError, match="table is 'tests'; use one of build, project, io, test, more"):
        requirements.requirements(["tests"], PYPROJECT)


def test_only_requirements_make_another_environment(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    shutil.copy(ROOT / "Makefile", tmp_path)
    page = tmp_path / "pyproject.toml"
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")

    def environments(content: str) -> list[str]:
        page.write_text(content, encoding="utf-8")
        command = ["make", "-s", "-C", str(tmp_path), "--eval", "show:;@echo $(test_venv) $(bench_venv)", "show"]
        # Under `make test` the variables of the make above would be heard: its options, and that it is one.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()

    def edited(pattern: str, replacement: str) -> str:
        content, count = re.subn(pattern, replacement, text)
        assert count
        return content

    before = environments(text)
    assert len(before) == 2
    assert environments(edited("line-length = .*", "line-length = 1")) == before
    after = environments(edited('"torch[^"]*"', '"torch"'))
    assert after[0] != before[0]
    assert after[1] != before[1]
    after = environments(edited('"mypy[^"]*"', '"mypy"'))
    assert after[0] != before[0]
    assert after[1] == before[1]

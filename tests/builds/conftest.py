"""What several modules look at: csrc as g++ compiles it, for this kind of CPU and for ARM."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import check_binary

COMPILERS = {"x86_64": "g++", "aarch64": "aarch64-linux-gnu-g++"}


@pytest.fixture(scope="session")
def gnu_objects(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Path]]:
    """Objects for a kind of CPU by the stem of their source, compiled when they are first asked for."""

    @functools.cache
    def objects(machine: str) -> dict[str, Path]:
        compiler = COMPILERS[machine]
        if shutil.which(compiler) is None or shutil.which("objdump") is None:
            message = f"{compiler} or binutils is missing; scripts/install_tools.sh installs them"
            if os.environ.get("CI"):
                pytest.fail(message)
            pytest.skip(message)
        return check_binary.compile_units(compiler, tmp_path_factory.mktemp(machine), machine)

    return objects

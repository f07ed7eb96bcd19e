"""What several modules look at: csrc as g++ compiles it, for this kind of CPU and for ARM."""

from __future__ import annotations

import functools
import os
import platform
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import check_binary

COMPILERS = {"x86_64": "g++", "aarch64": "aarch64-linux-gnu-g++"}
BUILT = check_binary.ROOT / "build" / "wheel" / "CMakeFiles"
"""Where ``make`` leaves the objects of the wheel of this machine."""


@pytest.fixture(scope="session")
def gnu_objects(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Path]]:
    """Objects for a kind of CPU by the stem of their source: the wheel's, or compiled when they are first asked for."""

    @functools.cache
    def objects(machine: str) -> dict[str, Path]:
        compiler = COMPILERS[machine]
        if shutil.which(compiler) is None or shutil.which("objdump") is None:
            message = f"{compiler} or binutils is missing; scripts/install_tools.sh installs them"
            if os.environ.get("CI"):
                pytest.fail(message)
            pytest.skip(message)
        if machine == platform.machine() and (found := built(compiler, machine)):
            return found
        return check_binary.compile_units(compiler, tmp_path_factory.mktemp(machine), machine)

    return objects


def built(compiler: str, machine: str) -> dict[str, Path]:
    """The wheel's objects, if all that the sources make is there and none is older than a source."""
    found = {}
    for source in check_binary.units(compiler, machine):
        place = f"*.dir/{source.relative_to(check_binary.ROOT)}.o"
        if (path := next(BUILT.glob(place), None)) is None:
            return {}
        found[source.stem] = path
    written = [path.stat().st_mtime for path in (check_binary.ROOT / "csrc").rglob("*") if path.is_file()]
    oldest = min(path.stat().st_mtime for path in found.values())
    return found if oldest > max(written) else {}

"""Wheels of these sources as users get them: building takes minutes, so the cache keeps the last ones."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from pocketformer.fetch import cache_folder

ROOT = Path(__file__).parents[2]
SOURCES = ["csrc", "cmake", "python", "CMakeLists.txt", "pyproject.toml", "README.md", "scripts/build_wheels.sh"]


def run(command: list[str], **environment: str) -> str:
    """Standard output of a successful command.

    An emulated one inherits no more than where to find programs: numpy's BLAS dies on an emulated CPU when a variable
    names the kernels of another.
    """
    kept = ("PATH", "HOME", "TMPDIR") if command[0].startswith("qemu-") else tuple(os.environ)
    inherited = {name: os.environ[name] for name in kept if name in os.environ}
    done = subprocess.run(
        command, env={**inherited, "PYTHON": sys.executable, **environment}, text=True, capture_output=True, cwd=ROOT
    )
    assert done.returncode == 0, f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def build_wheel(target: str, include: Path | None = None) -> Path:
    """The wheel for ``target`` and the Python whose headers lie in ``include``; else for this one."""
    digest = hashlib.sha256()
    for path in sorted(path for part in SOURCES for path in [ROOT / part, *(ROOT / part).rglob("*")]):
        if path.is_file() and path.suffix not in (".pyc", ".so"):
            digest.update(f"{path.relative_to(ROOT)}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    folder = cache_folder() / "wheels" / digest.hexdigest()[:16]
    for old in folder.parent.glob("*"):
        if old != folder:
            shutil.rmtree(old)
    if not list(folder.glob(f"*-{target}.whl")):
        environment = {} if include is None else {"PYTHON_INCLUDE": str(include)}
        run(["scripts/build_wheels.sh", "-o", str(folder), target], **environment)
    (wheel,) = folder.glob(f"*-{target}.whl")
    return wheel


def wheel(target: str) -> Path:
    """musl's for CPython 3.13, which scripts/musl_root.sh has; ARM's for Debian's Python; the others for this one."""
    if target.startswith("musllinux"):
        return build_wheel(target, Path(run(["scripts/musl_root.sh"]).strip()) / "include/python3.13")
    if target.endswith("aarch64"):
        return build_wheel(target, Path(run(["scripts/arm_root.sh"]).strip()) / "usr/include/python3.11")
    return build_wheel(target)


def unstripped(wheel: Path, name: str = "_core") -> Path:
    """The wheel's extension ``name`` with its symbols."""
    _, _, tag, _, target = wheel.stem.split("-")
    (extension,) = (wheel.parent / "symbols" / f"{tag}-{target}").glob(f"{name}.*.so")
    return extension


def unpack(wheel: Path, folder: Path) -> Path:
    """``folder`` with the wheel's files; returns its extension."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    (extension,) = (folder / "pocketformer").glob("_core.*.so")
    return extension

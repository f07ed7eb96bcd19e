"""Dependencies point down: which package may import which, and which folder of csrc may include which."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.graphs import MODEL, TEXT, tiny_graph
from pocketformer.packing import pack_graph
from pocketformer.pocketfile import write_pocket

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "python" / "pocketformer"

INCLUDES = {
    "core": {"core"},
    "kernels": {"kernels", "core"},
    "isa": {"isa", "kernels", "core"},
    "runtime": {"runtime", "kernels", "core"},
    "bindings": {"bindings", "runtime", "kernels", "core"},
}
CONTRACTS = {
    "isa/primitives.h": "kernels",  # what an ISA's header defines: algorithms are templates over it
    "kernels/table.h": "core",  # what an ISA exports: dispatch chooses one of these tables
}
"""Headers that only declare what two folders agree on, and the lower folder that may include them too."""


def imported(module: Path) -> Iterator[str]:
    """The modules of the package, as ``sources.config``, that ``module`` imports anywhere in its text."""
    package = ("pocketformer", *module.relative_to(PACKAGE).parent.parts)
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            stem = ".".join(filter(None, (*base, node.module)))
            names = [f"{stem}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name.removeprefix("pocketformer.") for name in names if name.startswith("pocketformer."))


def offenders(folder: str, *forbidden: str, but: tuple[str, ...] = ()) -> list[str]:
    modules = sorted((PACKAGE / folder).glob("*.py")) if folder else sorted(PACKAGE.glob("*.py"))
    assert modules
    return [
        f"{module.relative_to(PACKAGE)} imports {name}"
        for module in modules
        for name in imported(module)
        if name.startswith(forbidden) and not name.startswith(but)
    ]


def test_families_see_a_checkpoint_through_its_protocol() -> None:
    assert offenders("families", "sources", "compression", "tasks", "engine", but=("sources.source.",)) == []


def test_the_protocol_knows_no_source() -> None:
    assert set(imported(PACKAGE / "sources" / "source.py")) <= {"lazy.Float32", "sources.config.Config"}


@pytest.mark.parametrize("folder", ["sources", "families", "compression"])
def test_importing_knows_no_running(folder: str) -> None:
    assert offenders(folder, "tasks", "model", "engine", "commands", "cli") == []


def test_running_imports_neither_compression_nor_families_nor_sources(tmp_path: Path) -> None:
    path = tmp_path / "tiny.pocket"
    write_pocket(path, pack_graph(tiny_graph()), MODEL, TEXT, None)
    code = """
import json, sys, pocketformer
pocketformer.load(sys.argv[1], threads=1)([[1, 2, 3]])
print(json.dumps([name for name in sys.modules if name.startswith("pocketformer.")]))
"""
    run = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    loaded = json.loads(run.stdout)
    assert "pocketformer.pocketfile" in loaded
    assert [name for name in loaded if re.match(r"pocketformer\.(compression|families|sources|lazy)", name)] == []


def test_includes_point_down() -> None:
    found = []
    for file in sorted((ROOT / "csrc").rglob("*.*")):
        folder = file.relative_to(ROOT / "csrc").parts[0]
        for target in re.findall(r'#include "([^"]+)"', file.read_text(encoding="utf-8")):
            if target.split("/")[0] not in INCLUDES[folder] and CONTRACTS.get(target) != folder:
                found.append(f"{file.relative_to(ROOT)} includes {target}")
    assert found == []


def test_no_file_of_csrc_shares_its_name() -> None:
    names = [file.name for file in (ROOT / "csrc").rglob("*.*")]
    assert sorted({name for name in names if names.count(name) > 1}) == []

"""English texts that every Python carries: the docstrings of its standard library."""

from __future__ import annotations

import ast
import random
import sysconfig
from collections.abc import Iterator
from pathlib import Path


def _docstrings(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*.py")):
        if {"site-packages", "test", "tests"} & set(path.relative_to(folder).parts):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):  # lib2to3's own test data, for one, is not meant to parse
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = " ".join((ast.get_docstring(node) or "").split())
                if len(text) >= 40:
                    yield text


def texts(count: int, seed: int) -> list[str]:
    """``count`` different texts of 40 characters or more; another ``seed`` gives another choice."""
    found = list(dict.fromkeys(_docstrings(Path(sysconfig.get_paths()["stdlib"]))))
    return random.Random(seed).sample(found, count)

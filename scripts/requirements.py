"""Prints what tables of pyproject.toml ask for, one requirement a line: what environments are made of and keyed by.

    scripts/requirements.py TABLE [TABLE …]

TABLE is ``build`` (the build's own), ``project`` (what the library needs) or one of its extras. An extra that names the
project's extras stands for theirs.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    from pip._vendor import tomli as tomllib

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"


def requirements(tables: list[str], pyproject: dict[str, Any]) -> list[str]:
    """The requirements of ``tables`` without repetition, sorted. Raises ValueError for a table that does not exist."""
    project = pyproject["project"]
    extras: dict[str, list[str]] = project["optional-dependencies"]
    known = {"build": pyproject["build-system"]["requires"], "project": project["dependencies"]} | extras
    found: set[str] = set()
    for table in tables:
        if table not in known:
            raise ValueError(f"table is {table!r}; use one of {', '.join(known)}")
        for requirement in known[table]:
            own = re.fullmatch(rf"{re.escape(project['name'])}\[([\w, -]+)\]", requirement)
            inner = re.split(r"[, ]+", own[1]) if own else []
            found.update(requirements(inner, pyproject) if own else [requirement])
    return sorted(found)


if __name__ == "__main__":
    with PYPROJECT.open("rb") as file:
        try:
            print("\n".join(requirements(sys.argv[1:], tomllib.load(file))))
        except ValueError as error:
            sys.exit(str(error))

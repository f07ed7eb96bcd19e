"""Where a checkpoint came from and under which licence, as far as its folder says."""

from __future__ import annotations

import os
import re
from pathlib import Path

from .config import Config

_TEXTS = {
    "Apache License": "apache-2.0",
    "MIT License": "mit",
    "BSD 3-Clause": "bsd-3-clause",
    "Mozilla Public License": "mpl-2.0",
    "GNU AFFERO": "agpl-3.0",
    "GNU LESSER": "lgpl",
    "GNU GENERAL": "gpl",
    "CC0 1.0": "cc0-1.0",
}
"""What the first lines of a licence say, and its name on the hub."""

_REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def model_name(folder: Path) -> str:
    """What to call the model: the repository's name if ``folder`` lies in a hub cache, else the folder's own."""
    cached = _cached_repository(folder)
    return cached.rsplit("/", 1)[-1] if cached else Path(os.path.abspath(folder)).name


def repository(folder: Path, config: Config) -> str | None:
    """``owner/name``: of the hub cache that holds ``folder`` or its files, else what config.json was loaded from.

    After training ``_name_or_path`` is the model that training began with: it counts only where it ends in the
    folder's own name.
    """
    named = str(config.values.get("_name_or_path"))
    own = _REPOSITORY.fullmatch(named) and named.rsplit("/", 1)[-1].lower() == model_name(folder).lower()
    return _cached_repository(folder) or (named if own else None)


def _cached_repository(folder: Path) -> str | None:
    """From ``…/models--OWNER--NAME/snapshots/…``, also where the folder or its config.json is a link to there."""
    for place in (Path(os.path.abspath(folder)), folder.resolve(), (folder / "config.json").resolve()):
        for part in reversed(place.parts):
            if part.startswith("models--") and part != "models--":
                return part.removeprefix("models--").replace("--", "/", 1)
    return None


def license_of(folder: Path, config: Config) -> str | None:
    """As README.md's front matter names it, else config.json, else by the first lines of a LICENSE file."""
    front = _front_matter(folder / "README.md")
    named = front.get("license")
    if named == "other":
        named = front.get("license_name") or named
    stated = config.values.get("license")
    return named or (stated if isinstance(stated, str) and stated else None) or _license_file(folder)


def _front_matter(readme: Path) -> dict[str, str]:
    """The scalars between the first two ``---`` lines; of a list its items, joined by commas."""
    if not readme.is_file():
        return {}
    lines = readme.read_text(encoding="utf-8", errors="replace").removeprefix("\ufeff").splitlines()
    if not lines or lines[0].rstrip() != "---":
        return {}
    values: dict[str, str] = {}
    key = ""
    for line in lines[1:]:
        if line.rstrip() == "---":
            return values
        entry = re.match(r"([\w-]+):\s*(.*)", line)
        item = re.match(r"\s*-\s+(.+)", line)
        if entry:
            key = entry[1]
            values[key] = ", ".join(_scalar(text) for text in entry[2].strip().strip("[]").split(","))
        elif item and key:
            values[key] = ", ".join(filter(None, (values[key], _scalar(item[1]))))
    return {}  # the closing line is missing: no front matter


def _scalar(text: str) -> str:
    return text.split(" #")[0].strip().strip("'\"")


def _license_file(folder: Path) -> str | None:
    files = [path for path in sorted(folder.glob("*")) if re.match(r"(licen[cs]e|copying)\b", path.name, re.I)]
    for path in files:
        head = path.read_text(encoding="utf-8", errors="replace")[:1000]
        known = next((name for words, name in _TEXTS.items() if words.lower() in head.lower()), None)
        return known or path.name
    return None

"""What the scripts that make pages from code share."""

from __future__ import annotations

import difflib
from pathlib import Path


def update(page: Path, content: str, arguments: list[str]) -> int:
    """Writes ``content`` to ``page``; with ``--check`` prints how they differ instead. The exit status: 1 if so."""
    if arguments != ["--check"]:
        page.write_text(content, encoding="utf-8")
        return 0
    written = page.read_text(encoding="utf-8") if page.exists() else ""
    lines = difflib.unified_diff(written.splitlines(), content.splitlines(), page.name, "from code", lineterm="", n=1)
    print("\n".join(lines))
    return int(written != content)


def between(page: Path, marker: str, text: str) -> str:
    """The content of ``page`` with ``text`` between ``<!-- marker -->`` and ``<!-- /marker -->``.

    Raises ValueError when the page has no such place.
    """
    begin, end = f"<!-- {marker} -->\n", f"<!-- /{marker} -->"
    content = page.read_text(encoding="utf-8")
    before, found, rest = content.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"{page.name} has no place for {marker}; add the lines {begin.strip()} and {end}")
    return before + begin + text + end + after

"""Writes the operators of docs/format.md: each with its fields, as the runtime declares them.

scripts/format_page.py            writes them between the page's marks
scripts/format_page.py --check    says how they differ, and fails if they do
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from generated import between, update

PAGE = Path(__file__).parents[1] / "docs" / "format.md"


def operators(schema: Sequence[dict[str, Any]]) -> str:
    """A section for each operator of ``_core.operators()``: ``op``, ``doc`` and ``fields``."""
    return "\n".join(line for operator in schema for line in _operator(operator)) + "\n"


def _operator(operator: dict[str, Any]) -> Iterator[str]:
    yield f"\n### `{operator['op']}`\n"
    if doc := operator.get("doc"):
        yield f"{_sentence(doc)}\n"
    yield "| field | type | |"
    yield "|---|---|---|"
    yield from _fields(operator["fields"], "")


def _fields(fields: Sequence[dict[str, Any]], prefix: str) -> Iterator[str]:
    for field in fields:
        kind = ", ".join(f"`{choice}`" for choice in field["choices"]) if "choices" in field else field["type"]
        if "default" in field:
            kind += f"; default {json.dumps(field['default'], ensure_ascii=False)}"
        cells = (f"`{prefix}{field['name']}`", kind, field.get("doc", ""))
        yield f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"
        yield from _fields(field.get("fields", ()), f"{prefix}{field['name']}[].")


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + ("" if text.endswith(".") else ".")


def main(arguments: list[str]) -> int:
    from pocketformer import _core

    return update(PAGE, between(PAGE, "operators", operators(_core.operators())), arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

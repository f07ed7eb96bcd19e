"""Tables and progress for people: with rich where it is installed, plain otherwise."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable, Sequence


def table(title: str, headers: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Prints a table; columns whose cells are all numbers with or without a unit are aligned right."""
    cells = [[str(cell) for cell in row] for row in rows]
    right = [
        bool(cells) and all(row[i][:1].isdigit() or row[i][:1] in "-–" for row in cells) for i in range(len(headers))
    ]
    if sys.stdout.isatty() and importlib.util.find_spec("rich") is not None:
        _rich_table(title, headers, cells, right)
    else:
        _plain_table(title, headers, cells, right)


def note(text: str) -> None:
    """A line about what is going on, apart from the result."""
    print(text, file=sys.stderr, flush=True)


def megabytes(count: float) -> str:
    return f"{count / 1e6:.2f} MB" if count < 1e8 else f"{count / 1e6:.1f} MB"


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms"


def shorten(text: str, width: int = 60) -> str:
    """One line of at most ``width`` characters."""
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"


def _rich_table(title: str, headers: Sequence[str], cells: list[list[str]], right: list[bool]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(title=title, show_header=any(headers), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for header, number in zip(headers, right, strict=True):
        drawn.add_column(header, justify="right" if number else "left")
    for row in cells:
        drawn.add_row(*(Text(cell) for cell in row))
    Console().print(drawn)


def _plain_table(title: str, headers: Sequence[str], cells: list[list[str]], right: list[bool]) -> None:
    widths = [max(map(len, column)) for column in zip(headers, *cells, strict=True)]
    print(f"\n{title}")
    top = [headers, ["-" * width for width in widths]] if any(headers) else []
    for row in (*top, *cells):
        aligned = (
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(row, widths, right, strict=True)
        )
        print("  ".join(aligned).rstrip())

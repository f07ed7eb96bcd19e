"""Pages made from the code say what the code says."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

import api_page
import format_page
from generated import between, update


def test_api_page(capsys: pytest.CaptureFixture[str]) -> None:
    status = update(api_page.PAGE, api_page.page(), ["--check"])
    assert status == 0, f"run scripts/api_page.py\n{capsys.readouterr().out}"


def test_a_changed_page_is_seen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text("one\n<!-- mark -->\ntwo\n<!-- /mark -->\nthree\n", encoding="utf-8")
    content = between(page, "mark", "2\n")
    assert content == "one\n<!-- mark -->\n2\n<!-- /mark -->\nthree\n"
    assert update(page, content, ["--check"]) == 1
    assert "-two\n+2\n" in capsys.readouterr().out
    assert update(page, content, []) == 0
    assert update(page, content, ["--check"]) == 0
    with pytest.raises(ValueError, match=r"page.md has no place for other; add the lines <!-- other -->"):
        between(page, "other", "2\n")


SCHEMA = [
    {
        "op": "sum",
        "doc": "adds",
        "fields": [
            {"name": "in", "type": "name", "doc": "rows", "required": True},
            {"name": "kind", "type": "choice", "choices": ["all", "none"], "default": "all", "doc": "which | what"},
            {"name": "from", "type": "list", "doc": "parts", "fields": [{"name": "at", "type": "integer 0…9"}]},
            {"name": "bias", "type": "name", "default": None, "doc": "", "required": False},
        ],
    },
    {"op": "nothing", "fields": []},
]
OPERATORS = """
### `sum`

Adds.

| field | type | |
|---|---|---|
| `in` | name | rows |
| `kind` | `all`, `none`; default "all" | which &#124; what |
| `from` | list | parts |
| `from[].at` | integer 0…9 |  |
| `bias` | name; default null |  |

### `nothing`

| field | type | |
|---|---|---|
"""


def test_operators_from_their_schema() -> None:
    assert format_page.operators(SCHEMA) == OPERATORS


class Base:
    """Not shown."""

    def inherited(self, count: int) -> int:
        """Takes ``count``.

        Example:
            >>> 1 + 1
            2

        Raises:
            ValueError: ``count`` is
                negative.
        """
        return count


class Shown(Base):
    """What a page shows of a class."""

    def __init__(
        self, first_of_several_names: int, second_of_several_names: int, *, third_of_several_names: bool = True
    ) -> None:
        pass

    def __call__(self) -> None:
        """Does nothing."""

    @property
    def width(self) -> int:
        """Columns."""
        return 1


SHOWN = """## example

An example.

### Shown

```python
Shown(
    first_of_several_names: int,
    second_of_several_names: int,
    *,
    third_of_several_names: bool = True,
)
```

What a page shows of a class.

- `width: int`: Columns.

#### __call__

```python
Shown.__call__() -> None
```

Does nothing.

#### inherited

```python
Shown.inherited(count: int) -> int
```

Takes `count`.

```python
>>> 1 + 1
2
```

Raises

- `ValueError`: `count` is negative.
"""


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module of its own that the page shows."""
    module = ModuleType("example", "An example.")
    monkeypatch.setitem(sys.modules, "example", module)
    monkeypatch.setattr(api_page, "MODULES", {"example": ()})
    monkeypatch.setattr(Base, "__module__", "pocketformer.example")
    module.__dict__.update(__all__=["Shown"], Shown=Shown)
    return module


def test_what_a_page_shows(example: ModuleType) -> None:
    assert api_page.page() == f"{api_page.HEAD}\n{SHOWN}"


def test_a_missing_docstring_is_named(example: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Base.inherited, "__doc__", None)
    with pytest.raises(ValueError, match=r"Shown.inherited has no docstring; write one"):
        api_page.page()

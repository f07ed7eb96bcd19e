"""Pages made from the code say what the code says."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

import api_page


def test_api_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert api_page.main(["--check"]) == 0, f"run scripts/api_page.py\n{capsys.readouterr().out}"


def test_a_changed_docstring_is_seen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "api.md"
    page.write_text(api_page.PAGE.read_text(encoding="utf-8").replace("copies nothing", "copies all"), encoding="utf-8")
    monkeypatch.setattr(api_page, "PAGE", page)
    assert api_page.main(["--check"]) == 1
    assert "-Opens the pocket file `path`: maps it, checks it, copies all." in capsys.readouterr().out
    assert api_page.main([]) == 0
    assert api_page.main(["--check"]) == 0


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

"""Texts in the forms that callers have them, made lists; what would be read wrongly is refused with a hint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NoReturn, TypeAlias

import numpy as np

Pair: TypeAlias = tuple[str, str]
Text: TypeAlias = str | Pair
"""A text, or two that the model reads together."""


def as_list(texts: str | Iterable[str], name: str = "texts") -> tuple[list[str], bool]:
    """The texts as a list, and whether there was a single one.

    Raises TypeError for anything but strings; the message names the row.
    """
    if isinstance(texts, str):
        return [texts], True
    listed = _rows(name, texts)
    for i, text in enumerate(listed):
        if not isinstance(text, str):
            _refuse_row(name, i, text)
    return listed, False


def as_texts(texts: Text | Iterable[Text | list[str]], name: str = "texts") -> tuple[list[Text], bool]:
    """Like :func:`as_list`, but rows may be pairs: tuples, lists or arrays of two strings."""
    if isinstance(texts, str):
        return [texts], True
    listed = _rows(name, texts)
    if isinstance(texts, tuple) and len(listed) == 2 and all(isinstance(text, str) for text in listed):
        raise TypeError(f"{name} is a tuple of two strings; pass [(a, b)] for one pair or [a, b] for two texts")
    return [text if isinstance(text, str) else _pair(name, i, text) for i, text in enumerate(listed)], False


def _rows(name: str, texts: Any) -> list[Any]:
    kind = type(texts).__name__
    if isinstance(texts, bytes | bytearray):
        raise TypeError(f"{name} is {kind}; decode them to str")
    if isinstance(texts, Mapping):
        keys = [str(key) for key in texts][:2]
        remedy = '[(d["text"], d["text_pair"])]' if keys == ["text", "text_pair"] else "list(d.values())"
        raise TypeError(f"{name} is a {kind}, whose keys would be read as texts; pass {remedy}")
    if isinstance(texts, set | frozenset):
        raise TypeError(f"{name} is a {kind}, which has no order for the results to keep; pass a list")
    if hasattr(texts, "columns"):  # of pandas, polars and pyarrow
        raise TypeError(f'{name} is a {kind}, whose column names would be read as texts; pass a column: frame["text"]')
    if not isinstance(texts, Iterable) or (isinstance(texts, np.ndarray) and texts.ndim == 0):
        raise TypeError(f"{name} is {texts!r:.60}; pass a str or a list of them")
    return list(texts)


def _pair(name: str, i: int, row: Any) -> Pair:
    if isinstance(row, np.ndarray):  # of a table's columns
        row = row.tolist()
    if isinstance(row, tuple | list) and len(row) == 2 and all(isinstance(text, str) for text in row):
        return row[0], row[1]
    if isinstance(row, tuple | list):
        raise TypeError(f"{name}[{i}] is {row!r:.60}; a pair is two strings: (a, b)")
    _refuse_row(name, i, row)


def _refuse_row(name: str, i: int, row: Any) -> NoReturn:
    kind = type(row).__name__
    if _is_missing(row):
        raise TypeError(f"{name}[{i}]: a text is {kind} ({row!r}, a missing value); drop or fill such rows")
    if isinstance(row, Mapping):
        raise TypeError(
            f'{name}[{i}]: a text is {kind}; pass row["text"], or (row["text"], row["text_pair"]) for a pair'
        )
    if isinstance(row, tuple | list | np.ndarray):
        raise TypeError(f"{name}[{i}]: a text is {kind}; this task reads single texts, not pairs")
    raise TypeError(f"{name}[{i}]: a text is {kind}; pass str, or call the model on token ids")


def _is_missing(value: Any) -> bool:
    if value is None or type(value).__name__ in ("NAType", "NaTType"):  # of pandas; the first cannot be compared
        return True
    return isinstance(value, float | np.generic) and bool(value != value)  # only NaN differs from itself

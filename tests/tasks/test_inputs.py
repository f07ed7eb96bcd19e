"""Texts in forms that would be misread are refused, and the message names the row and the remedy."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import pytest

from pocketformer.tasks.inputs import as_list, as_texts
from pocketformer.tasks.text import check_unicode


class NAType:
    """pandas' missing value: whatever is compared with it is missing too, and neither true nor false."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> Any:
        return self

    def __ne__(self, other: object) -> Any:
        return self

    def __bool__(self) -> bool:
        raise TypeError("boolean value of NA is ambiguous")


class Table:
    columns = ("text",)

    def __iter__(self) -> Any:
        return iter(self.columns)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (b"a", r"texts is bytes; decode"),
        ({"text": "a", "text_pair": "b"}, r'pass \[\(d\["text"\], d\["text_pair"\]\)\]'),
        (OrderedDict(a="b"), r"a OrderedDict, whose keys .* list\(d\.values\(\)\)"),
        ({"a", "b"}, "a set, which has no order"),
        (frozenset("ab"), "frozenset"),
        (Table(), r'a Table, whose column names .* frame\["text"\]'),
        (None, "texts is None; pass a str"),
        (3, "texts is 3"),
        (["a", float("nan")], r"texts\[1\]: a text is float \(nan, a missing value\)"),
        (np.array(["a", np.nan], object), r"texts\[1\]: a text is float"),
        (["a", NAType()], r"texts\[1\]: a text is NAType \(.*, a missing value\); drop or fill"),
        (["a", np.datetime64("NaT")], r"texts\[1\]: a text is datetime64 \(.*, a missing value\)"),
        ([np.float32("nan")], r"texts\[0\]: a text is float32 \(.*, a missing value\)"),
        (np.array("a"), r"texts is array\('a'"),
        (["a", None], r"texts\[1\]: a text is NoneType"),
        (["a", 3], r"texts\[1\]: a text is int; pass str"),
        (["a", b"b"], r"texts\[1\]: a text is bytes"),
        ([{"text": "a"}], r'texts\[0\]: a text is dict; pass row\["text"\]'),
    ],
)
def test_refused(texts: Any, message: str) -> None:
    for read in (as_list, as_texts):
        with pytest.raises(TypeError, match=message):
            read(texts)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (("a", "b"), r"a tuple of two strings; pass \[\(a, b\)\] for one pair or \[a, b\]"),
        ([("a", "b", "c")], r"texts\[0\] is \('a', 'b', 'c'\); a pair is two strings"),
        (["a", ("a", 3)], r"texts\[1\] is \('a', 3\)"),
        (np.array([["a", "b", "c"]]), r"texts\[0\] is \['a', 'b', 'c'\]; a pair is two strings"),
        (np.array([["a", np.nan]], object), r"texts\[0\] is \['a', nan\]; a pair is two strings"),
    ],
)
def test_refused_pairs(texts: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        as_texts(texts)
    if not isinstance(texts, tuple):
        with pytest.raises(TypeError, match="reads single texts, not pairs"):
            as_list(texts)


def test_taken() -> None:
    assert as_list("a") == as_texts("a") == (["a"], True)
    for texts in (["a", "b"], iter("ab"), np.array(["a", "b"]), {"x": "a", "y": "b"}.values()):
        assert as_list(texts) == (["a", "b"], False)
    assert as_list(("a", "b")) == (["a", "b"], False)
    columns = np.array([["a", "b"], ["c", "d"]], object)
    assert as_texts(columns) == as_texts(columns.astype("U")) == ([("a", "b"), ("c", "d")], False)
    with pytest.raises(TypeError, match=r"texts\[0\]: a text is ndarray; this task reads single texts, not pairs"):
        as_list(columns)
    assert as_texts([("a", "b"), ["c", "d"], "e"]) == ([("a", "b"), ("c", "d"), "e"], False)


@pytest.mark.parametrize("text", ["bad \ud83d", ("fine", "\udc80x")])
def test_half_of_a_surrogate_pair(text: Any) -> None:
    with pytest.raises(ValueError, match=r"texts\[7\] holds '\\ud[8c][0-9a-f]+', half of a surrogate pair") as caught:
        check_unicode("texts[7]", text)
    assert str(caught.value).isascii()
    check_unicode("texts[0]", "😀")

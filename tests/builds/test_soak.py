"""The short form of scripts/soak.py: memory stays flat while sessions come and go, and while texts do."""

from __future__ import annotations

import pytest

import soak


@pytest.mark.slow
def test_memory_stays_flat() -> None:
    result = soak.soak(20_000)
    assert result["wrong"] == 0
    assert result["flat"], result


@pytest.mark.slow
def test_memory_stays_flat_while_texts_are_given_up() -> None:
    result = soak.soak_texts(400)
    assert result["wrong"] == 0
    assert result["flat"], result

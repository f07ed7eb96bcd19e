"""The short form of scripts/soak.py: memory stays flat while sessions come and go."""

from __future__ import annotations

import pytest

import soak


@pytest.mark.slow
def test_memory_stays_flat() -> None:
    result = soak.soak(20_000)
    assert result["wrong"] == 0
    assert result["flat"], result

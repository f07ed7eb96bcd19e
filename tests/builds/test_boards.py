"""The ARM products reach their share of what the cores of common boards can issue, by simulation."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

import simulate_boards
from simulate_boards import LOOPS, Loop, Row


@pytest.fixture(scope="module")
def results(gnu_objects: Callable[[str], dict[str, Path]]) -> list[Row]:
    return simulate_boards.rows(gnu_objects("aarch64"))


@pytest.mark.slow
def test_every_loop_reaches_its_share_of_the_issue_limit(results: list[Row]) -> None:
    assert simulate_boards.too_slow(results) == []
    assert len(results) == 2 * sum(len(loop.cores) for loop in LOOPS)


def test_integer_products_must_reach_95_percent_and_85_in_order() -> None:
    """What the thresholds themselves may not fall below."""
    for loop in LOOPS:
        if loop.kernel == "gemm_i8":
            for core, share in loop.cores.items():
                assert share >= (0.85 if core in ("cortex-a53", "cortex-a55") else 0.95)


@pytest.mark.slow
def test_the_page_says_what_the_simulation_says(results: list[Row]) -> None:
    """Within a point, so that another version of the simulator's models is not a failure."""
    page = simulate_boards.PAGE.read_text()
    written = page.split("<!-- table -->")[1].split("<!-- /table -->")[0].strip().splitlines()
    now = simulate_boards.table(results).strip().splitlines()
    number = re.compile(r"[\d.]+%?(?= \|)")
    assert [number.sub("", line) for line in written] == [number.sub("", line) for line in now]
    for old, new in zip(written[2:], now[2:], strict=True):
        shares = [[float(share[:-1]) for share in re.findall(r"[\d.]+%", line)] for line in (old, new)]
        assert shares[0] == pytest.approx(shares[1], abs=1.0), new


def test_a_slow_loop_is_seen() -> None:
    loop = Loop("neon", "gemm_i8", "product", "smlal", {"cortex-a53": 0.85})
    assert "84.0%" in simulate_boards.too_slow([Row(loop, "cortex-a53", "g++", 100.0, 84.0, 256)])[0]
    assert simulate_boards.too_slow([Row(loop, "cortex-a53", "g++", 100.0, 85.0, 256)]) == []

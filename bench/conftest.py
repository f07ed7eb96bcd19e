"""The fixture that every benchmark goes through: times beside the peaks of the same moment."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from pocketformer import _core
from pocketformer.perf.measure import timed

Measure = Callable[..., None]
PROBE_MS = 20


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--everything", action="store_true", help="the slow and the less telling cases as well")
    parser.addoption("--budget", type=float, default=0.2, metavar="S", help="seconds for each benchmark")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "everything: only with --everything")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--everything"):
        dropped = [item for item in items if item.get_closest_marker("everything")]
        config.hook.pytest_deselected(items=dropped)
        items[:] = [item for item in items if item not in dropped]


def seconds_each(call: Callable[[], Any], together: int = 100) -> float:
    """The least time of a short call on this thread's clock, of five times ``together``."""
    times = []
    for _ in range(5):
        start = time.thread_time()
        for _ in range(together):
            call()
        times.append((time.thread_time() - start) / together)
    return min(times)


@pytest.fixture
def measure(benchmark: Any, request: pytest.FixtureRequest) -> Measure:
    """``measure(call)`` repeats ``call`` for the budget and notes what it did in ``extra_info``.

    ``multiply_adds`` and ``bytes`` (read and written) are those of one call, ``empty`` the same call with nothing to
    do, whose time is subtracted where a share is taken. The peaks are the larger of a probe before and one after.
    """
    budget = request.config.getoption("--budget")

    def run(
        call: Callable[[], Any],
        *,
        multiply_adds: int = 0,
        bytes: int = 0,
        int8: bool = True,
        isa: str = "",
        threads: int = 1,
        empty: Callable[[], Any] | None = None,
        **extra: Any,
    ) -> None:
        probe = _core.probe_int8 if int8 else _core.probe_f32
        read = {"bytes": max(bytes, 1 << 16), "threads": threads}
        peaks = [probe(isa, PROBE_MS, threads)]
        reads = [_core.probe_bandwidth(PROBE_MS, **read)] if bytes else []
        overhead = seconds_each(empty) if empty else 0.0
        first = min(timed(call), timed(call))
        iterations = max(1, round(200e-6 / first))  # reading a clock takes up to 2 µs
        rounds = max(3, min(300, round(budget / (first * iterations))))
        benchmark.pedantic(call, rounds=rounds, iterations=iterations, warmup_rounds=1)
        peaks.append(probe(isa, PROBE_MS, threads))
        seconds = benchmark.stats.stats.median - overhead
        info: dict[str, Any] = {"isa": isa or _core.isas()[0], "threads": threads, "call_overhead": overhead, **extra}
        if multiply_adds:
            info |= {"multiply_adds": multiply_adds, "peak_gmacs": max(peaks)}
            info["peak_share"] = multiply_adds / 1e9 / max(peaks) / seconds
        if bytes:
            reads.append(_core.probe_bandwidth(PROBE_MS, **read))
            info |= {"bytes": bytes, "read_gbps": max(reads)}
            info["read_share"] = bytes / 1e9 / max(reads) / seconds
        benchmark.extra_info.update(info)

    return run

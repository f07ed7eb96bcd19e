"""The thread pool: shared by callers, quiet when idle, alive after a fork."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from helpers.programs import LENGTHS, batch, encoder, program
from helpers.timing import best_of
from pocketformer import _core

# Long enough to be caught running: some hundreds of milliseconds.
HEAVY = {"hidden": 64, "ffn": 512, "layers": 6, "max_length": 512}


@contextmanager
def running(session: _core.Session, **inputs: np.ndarray) -> Iterator[None]:
    """Runs again and again in another thread for as long as the block lasts."""
    stop = threading.Event()

    def loop() -> None:
        while not stop.is_set():
            session.run(inputs, threads=4)

    thread = threading.Thread(target=loop)
    thread.start()
    time.sleep(0.02)
    yield
    stop.set()
    thread.join()


def in_child(check: Callable[[], bool]) -> bool:
    """What ``check`` says in a forked child, which gets a minute: waiting for a lost thread has no end."""
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        os._exit(0 if check() else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_idle_threads_use_no_cpu() -> None:
    _core.Session(program(encoder("int8"))).run(batch(LENGTHS * 10), threads=8)

    def used_while_idle(seconds: float) -> float:
        before = time.process_time()
        time.sleep(seconds)
        return time.process_time() - before

    # Workers spin a moment before they sleep; on a busy machine that moment lasts until they have had their turn.
    assert best_of(lambda: used_while_idle(0.5), 0.005, most=10) <= 0.005


def test_four_python_threads_get_the_same_bits() -> None:
    compiled = program(encoder("int8"))
    inputs = batch(LENGTHS * 3)
    expected = _core.Session(compiled).run(inputs).tobytes()

    def work(_: int) -> bool:
        session = _core.Session(compiled)
        return all(session.run(inputs, threads=2).tobytes() == expected for _ in range(30))

    with ThreadPoolExecutor(4) as executor:
        assert all(executor.map(work, range(4)))


def test_one_session_refuses_two_threads_at_once() -> None:
    session = _core.Session(program(encoder("int8", **HEAVY)))
    inputs = batch((512,) * 20)

    def run_often() -> None:
        for _ in range(1000):
            session.run(batch((1,)))

    with running(session, **inputs), pytest.raises(RuntimeError, match="give each thread a Session of its own"):
        run_often()
    session.run(batch((1,)))


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # Python 3.12, of forking with threads
def test_fork_after_use() -> None:
    session = _core.Session(program(encoder("int8")))
    inputs = batch(LENGTHS)
    expected = session.run(inputs, threads=4).tobytes()

    def same() -> bool:
        return all(session.run(inputs, threads=4).tobytes() == expected for _ in range(5))

    assert in_child(lambda: same() and in_child(same))
    assert same()


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_fork_while_another_thread_runs() -> None:
    compiled = program(encoder("int8", **HEAVY))
    busy, own = _core.Session(compiled), _core.Session(compiled)
    inputs, small = batch((512,) * 4), batch((40, 3))
    expected = own.run(small, threads=4).tobytes()
    with running(busy, **inputs):
        for _ in range(5):
            assert in_child(lambda: all(s.run(small, threads=4).tobytes() == expected for s in (own, busy, own, busy)))
            assert own.run(small, threads=4).tobytes() == expected


def test_more_threads_than_cpus_finish() -> None:
    compiled = program(encoder("int8"))
    inputs = batch(LENGTHS * 10)
    expected = _core.Session(compiled).run(inputs).tobytes()
    for mode in ("rows", "columns"):
        assert _core.Session(compiled, mode).run(inputs, threads=64).tobytes() == expected


def test_a_signal_ends_a_long_run() -> None:
    def stop(*_: object) -> None:
        raise InterruptedError("stop")

    def run_long() -> None:
        for _ in range(100):
            session.run(batch((512,) * 8), threads=2)

    session = _core.Session(program(encoder("fp32", **HEAVY), "scalar"))
    small = batch((9,))
    expected = session.run(small).tobytes()
    previous = signal.signal(signal.SIGALRM, stop)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(InterruptedError):
            run_long()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert session.run(small, threads=2).tobytes() == expected


def write(root: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(root)


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({}, 0),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, 0),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "10000 100000\n"}, 1),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
                "sys/fs/cgroup/a/cpu.max": "300000 100000\n",
                "sys/fs/cgroup/cpu.max": "400000 100000\n",
            },
            3,
        ),
        ({"proc/self/cgroup": "0::/not/visible\n", "sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2),
        (
            {
                "proc/self/cgroup": "5:memory:/x\n4:cpu,cpuacct:/x\n",
                "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "250000\n",
                "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000\n",
            },
            3,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu:/x\n",
                "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000\n",
            },
            0,
        ),
        ({"proc/self/cgroup": "no colons\n\n:\n", "sys/fs/cgroup/cpu.max": "garbage\n"}, 0),
    ],
)
def test_cgroup_quota(tmp_path: Path, files: dict[str, str], cpus: int) -> None:
    assert _core.cgroup_cpus(write(tmp_path, files)) == cpus


def test_default_threads_respect_affinity() -> None:
    everything = os.sched_getaffinity(0)
    assert 1 <= _core.default_threads() <= len(everything)
    try:
        os.sched_setaffinity(0, {min(everything)})
        assert _core.default_threads() == 1
    finally:
        os.sched_setaffinity(0, everything)

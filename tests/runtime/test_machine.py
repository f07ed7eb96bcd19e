"""Cores, threads and instruction sets: what is found on boards that are not here, and what is chosen."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pocketformer
from pocketformer import _core
from pocketformer.commands import info
from pocketformer.perf.machine import describe_machine

ROOT = Path(__file__).parents[2]
CPU = "sys/devices/system/cpu"


def board(
    root: Path,
    cores: list[tuple[range, dict[str, object]]],
    threads_a_core: int = 1,
    **files: str,
) -> str:
    """A tree like /sys: each group of CPUs has the files given for it, by their path below the CPU's directory."""
    for ids, values in cores:
        for i in ids:
            first = i - i % threads_a_core
            siblings = f"{first}-{first + threads_a_core - 1}" if threads_a_core > 1 else str(i)
            for name, value in {"topology/thread_siblings_list": siblings, **values}.items():
                path = root / CPU / f"cpu{i}" / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(f"{value}\n")
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(root)


def capacity(value: int) -> dict[str, object]:
    return {"cpu_capacity": value}


def arm(mhz: int, part: int) -> dict[str, object]:
    """A core of a kernel that gives no capacity."""
    midr = 0x41 << 24 | 0xF << 16 | part << 4
    return {"cpufreq/cpuinfo_max_freq": mhz * 1000, "regs/identification/midr_el1": f"0x{midr:016x}"}


def mhz(value: int) -> dict[str, object]:
    return {"cpufreq/cpuinfo_max_freq": value * 1000}


A53, A55, A72, A76 = 0xD03, 0xD05, 0xD08, 0xD0B
RK3588 = [(range(4), capacity(414)), (range(4, 6), capacity(1024)), (range(6, 8), capacity(1000))]
BOARDS = {
    "pi5": ([(range(4), capacity(1024))], [0, 1, 2, 3]),
    "pi4-without-capacity": ([(range(4), arm(1500, A72))], [0, 1, 2, 3]),
    "pi3": ([(range(4), arm(1200, A53))], [0, 1, 2, 3]),
    "n100": ([(range(4), mhz(3400))], [0, 1, 2, 3]),
    "rk3588": (RK3588, [4, 5, 6, 7]),
    "rk3588-without-capacity": ([(range(4), arm(1800, A55)), (range(4, 8), arm(2400, A76))], [4, 5, 6, 7]),
    "rk3399": ([(range(4), capacity(381)), (range(4, 6), capacity(1024))], [4, 5]),
    "snapdragon": (  # a prime core, three large, four small
        [(range(4), capacity(325)), (range(4, 7), capacity(828)), (range(7, 8), capacity(1024))],
        [4, 5, 6, 7],
    ),
    "one-giant": ([(range(3), capacity(520)), (range(3, 4), capacity(1024))], [0, 1, 2, 3]),
    "turbo-differs": ([(range(2), mhz(5200)), (range(2, 8), mhz(5000))], list(range(8))),
    "nothing-known": ([(range(6), {})], list(range(6))),
    "some-unknown": ([(range(4), {}), (range(4, 8), capacity(1024))], list(range(8))),
}


@pytest.mark.parametrize("name", BOARDS)
def test_threads_of_a_board(tmp_path: Path, name: str) -> None:
    cores, chosen = BOARDS[name]
    everything = [i for ids, _ in cores for i in ids]
    found = _core.read_cpus(board(tmp_path, cores), everything)
    assert [cpu["id"] for cpu in found["cpus"]] == everything
    assert [cpu["id"] for cpu in found["cpus"] if cpu["chosen"]] == chosen
    assert found["threads"] == len(chosen)


def test_hybrid_of_two_core_types(tmp_path: Path) -> None:
    """Alder Lake: six performance cores of two threads, eight efficient ones; one thread for each of the six."""
    root = board(tmp_path, [(range(12), mhz(4900))], 2)
    board(tmp_path, [(range(12, 20), mhz(3600))], sys__devices__cpu_atom__cpus="12-19\n")
    found = _core.read_cpus(root, list(range(20)))
    assert [cpu["id"] for cpu in found["cpus"] if cpu["chosen"]] == [0, 2, 4, 6, 8, 10]
    assert _core.read_cpus(root, list(range(12, 20)))["threads"] == 8, "an affinity mask of efficient cores"


@pytest.mark.parametrize(
    ("allowed", "chosen"), [([0, 1, 2, 3], [0, 1, 2, 3]), ([2, 3, 4], [4]), ([5], [5]), ([0, 6, 7], [6, 7])]
)
def test_affinity_comes_first(tmp_path: Path, allowed: list[int], chosen: list[int]) -> None:
    found = _core.read_cpus(board(tmp_path, RK3588), allowed)
    assert [cpu["id"] for cpu in found["cpus"] if cpu["chosen"]] == chosen


def test_quota_limits_the_big_cluster(tmp_path: Path) -> None:
    root = board(tmp_path, RK3588, proc__self__cgroup="0::/\n")
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/cpu.max").write_text("250000 100000\n")
    found = _core.read_cpus(root, list(range(8)))
    assert (found["quota"], found["threads"]) == (3, 3)


def test_cores_that_were_unplugged(tmp_path: Path) -> None:
    """Two big cores are off: they are not counted, and their missing files do not hide the others' capacity."""
    root = board(tmp_path, [*RK3588[:2]])
    (tmp_path / CPU / "online").write_text("0-5\n")
    found = _core.read_cpus(root, list(range(8)))
    assert [cpu["id"] for cpu in found["cpus"] if cpu["chosen"]] == [4, 5]


@pytest.mark.parametrize("text", ["", "garbage", "-5", "0", "0-", "5-1", "99999999999999999999", "0x"])
def test_files_that_make_no_sense(tmp_path: Path, text: str) -> None:
    """As in a container that shows half of /sys."""
    root = board(tmp_path, [(range(2), {"cpu_capacity": text, "topology/thread_siblings_list": text})])
    (tmp_path / CPU / "online").write_text(text)
    assert 1 <= _core.read_cpus(root, [0, 1])["threads"] <= 2


def test_no_sys_at_all(tmp_path: Path) -> None:
    assert _core.read_cpus(str(tmp_path), [0, 1, 2])["threads"] == 3


def test_strong_cores_beyond_the_pool(tmp_path: Path) -> None:
    assert _core.read_cpus(str(tmp_path), list(range(1000)))["threads"] == 256


def test_threads_variable(monkeypatch: pytest.MonkeyPatch, minilm_int8: Path) -> None:
    monkeypatch.setenv("POCKETFORMER_THREADS", "7")
    assert pocketformer.load(minilm_int8).info()["threads"] == 7
    assert pocketformer.load(minilm_int8, threads=2).info()["threads"] == 2
    assert describe_machine()["threads_reason"] == "POCKETFORMER_THREADS asks for it"
    monkeypatch.setenv("POCKETFORMER_THREADS", "")
    assert _core.default_threads() == _core.read_cpus()["threads"]
    for wrong in ("0", "257", "many", "2.5", "-1", "3 cores"):
        monkeypatch.setenv("POCKETFORMER_THREADS", wrong)
        with pytest.raises(ValueError, match=f"POCKETFORMER_THREADS is '{re.escape(wrong)}'.*1 to 256"):
            _core.default_threads()


def test_isa_variable() -> None:
    missing = _core.missing_features()
    assert list(missing)[-1] == "scalar"
    assert [isa for isa, lacks in missing.items() if not lacks] == _core.isas()
    command = [sys.executable, "-c", "from pocketformer import _core; print(_core.Kernels().isa)"]
    for isa, lacks in missing.items():
        environment = {**os.environ, "POCKETFORMER_ISA": isa}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if lacks:
            assert f"does not support '{isa}', which needs {lacks}; unset POCKETFORMER_ISA" in done.stderr
        else:
            assert done.stdout.strip() == isa


def test_two_variables_are_all_that_running_reads() -> None:
    """The cache folder, which only downloads use, is the third of the package."""
    read = r"(?:getenv\(|environ(?:\.get\(|\[))\"(\w+)\""
    found = {}
    for path in [*ROOT.glob("csrc/**/*.*"), *Path(pocketformer.__file__).parent.glob("**/*.py")]:
        text = path.read_text()
        names = set(re.findall(read, text))
        assert len(re.findall(r"getenv\(|environ\b", text)) == len(re.findall(read, text)), path
        found.update(dict.fromkeys(names, path.name))
    assert set(found) == {"POCKETFORMER_ISA", "POCKETFORMER_THREADS", "POCKETFORMER_CACHE"}
    assert found["POCKETFORMER_CACHE"] == "fetch.py"


def test_machine_as_people_see_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    cache = {"level": "2", "type": "Unified", "size": "512K", "shared_cpu_list": "0"}
    files = {f"cache/index1/{name}": text for name, text in cache.items()}
    root = board(
        tmp_path,
        [(range(max(os.sched_getaffinity(0)) + 1), files)],
        proc__cpuinfo="processor: 0\nModel : Raspberry Pi 5 Model B\n",
    )
    machine = describe_machine(root)
    assert json.loads(json.dumps(machine)) == machine
    assert machine["cpu"] == "Raspberry Pi 5 Model B"
    assert machine["caches"] == [{"level": 2, "bytes": 512 << 10, "shared_by": "0"}]
    info.show({"machine": machine})
    shown = capsys.readouterr().out
    for text in ("Raspberry Pi 5", "L2 512 KiB", machine["isa"], "affinity mask", "no limit", "100%"):
        assert text in shown
    for isa in machine["missing"]:
        assert f"not {isa}" in shown


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        (["32K", "32K", "1024K", "32768K"], 32 << 20),
        (["64K", "2M"], 2 << 20),
        (["1G"], 1 << 30),
        ([], 0),  # device trees often leave caches out
        (["none"], 0),
        (["99999999999999999999G"], 0),
    ],
)
def test_the_largest_cache(tmp_path: Path, sizes: list[str], expected: int) -> None:
    first = min(os.sched_getaffinity(0))
    values: dict[str, object] = {f"cache/index{i}/size": size for i, size in enumerate(sizes)}
    assert _core.largest_cache(board(tmp_path, [(range(first, first + 1), values)])) == expected

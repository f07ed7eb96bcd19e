"""A full disk, a killed process, Ctrl-C: the old file stays whole, nothing is left behind, and the end comes soon."""

from __future__ import annotations

import errno
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from helpers.graphs import MODEL, TEXT, TOKENIZER_JSON, tiny_graph
from helpers.models import model_folder
from helpers.timing import best_of
from pocketformer.cli import main
from pocketformer.commands import info
from pocketformer.graph import Graph
from pocketformer.packing import pack_graph
from pocketformer.pocketfile import read_pocket, write_pocket

COMPRESS = "import sys; from pocketformer.cli import main; sys.exit(main(['compress', *sys.argv[1:]]))"
PROMPT = 0.5  # seconds from Ctrl-C to the end of a call, on a machine with a CPU to spare


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A pocket file in a folder of its own, to be replaced."""
    path = tmp_path / "folder" / "model.pocket"
    path.parent.mkdir()
    write_pocket(path, graph(1), MODEL, TEXT, TOKENIZER_JSON)
    return path


def graph(seed: int, **options: int) -> Graph:
    return pack_graph(tiny_graph(seed=seed, **options))


def alone(path: Path) -> bool:
    return os.listdir(path.parent) == [path.name]


@contextmanager
def small_files() -> Iterator[None]:
    """Files may not grow beyond 20,000 bytes; with the signal ignored, write() fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_file_that_may_not_grow(target: Path) -> None:
    old = target.read_bytes()
    with small_files(), pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
        write_pocket(target, graph(2), MODEL, TEXT, TOKENIZER_JSON)
    assert target.read_bytes() == old
    assert alone(target)


@pytest.mark.parametrize("call", ["write", "fsync", "link", "replace"])
def test_each_step_of_a_write_may_fail(target: Path, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No space left, wherever the system says so."""
    old = target.read_bytes()

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if call == "write":
        monkeypatch.setattr(np, "ascontiguousarray", fail)  # called between the writes
    else:
        monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="No space left"):
        write_pocket(target, graph(2), MODEL, TEXT, TOKENIZER_JSON)
    monkeypatch.undo()
    assert target.read_bytes() == old
    assert alone(target)


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="runs as root, who may mount")
def test_a_full_disk(tmp_path: Path) -> None:
    """The command line on a real file system of 200 kB."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", tmp_path], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("runs where the container may mount")
    try:
        path = tmp_path / "model.pocket"
        write_pocket(path, graph(1), MODEL, TEXT, TOKENIZER_JSON)
        old = path.read_bytes()
        done = subprocess.run(
            [sys.executable, "-c", COMPRESS, model_folder("minilm"), "-o", path, "--weights", "fp32"],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 1
        assert "No space left on device; free some and try again" in done.stderr
        assert done.stderr.count("\n") == 1
        assert path.read_bytes() == old
        assert alone(path)
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_the_command_line_explains_lack_of_memory(
    target: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: object) -> None:
        raise MemoryError("std::bad_alloc")

    monkeypatch.setattr(info, "execute", fail)
    assert main(["info", str(target)]) == 1
    assert capsys.readouterr().err == (
        "pocketformer: error: out of memory; close other programs, or give fewer or shorter texts at once\n"
    )


@pytest.mark.slow
def test_killed_at_any_time(target: Path) -> None:
    """kill −9 during a write: the old file or the new one, whole, and nothing beside it."""
    script = (
        "import sys; from files.test_faults import *\n"
        "old, new = (graph(seed, vocab=3000) for seed in (1, 2))\n"
        "print('ready', flush=True)\n"
        "while True:\n"
        "    for g in (new, old): write_pocket(sys.argv[1], g, MODEL, TEXT, TOKENIZER_JSON)\n"
    )
    write_pocket(target, graph(1, vocab=3000), MODEL, TEXT, TOKENIZER_JSON)
    contents, rng = {target.read_bytes()}, random.Random(0)
    write_pocket(target, graph(2, vocab=3000), MODEL, TEXT, TOKENIZER_JSON)
    contents.add(target.read_bytes())

    def left_behind() -> int:
        left = 0
        for _ in range(12):
            command = [sys.executable, "-c", script, str(target)]
            with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[1]) as writer:
                assert writer.stdout is not None
                writer.stdout.readline()
                time.sleep(rng.uniform(0.02, 0.1))
                writer.kill()
            assert target.read_bytes() in contents
            read_pocket(target)
            left += not alone(target)
            for other in target.parent.iterdir():  # killed between link and rename: a whole file under a hidden name
                if other != target:
                    assert other.read_bytes() in contents
                    other.unlink()
        return left

    # Rare, unless the disk keeps a writer between its two calls.
    assert best_of(left_behind, 3, most=3) <= 3


def interrupted(script: str, *arguments: str | Path) -> float:
    """Starts ``script``, sends Ctrl-C once it has said ``ready`` and run a while; seconds until it has said so."""
    code = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored in what a shell runs in the background
        "def work():\n"
        + "".join(f"    {line}\n" for line in script.splitlines())
        + "try:\n    work()\nexcept KeyboardInterrupt:\n    print('interrupted', flush=True)\n"
    )
    command = [sys.executable, "-c", code, *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.7)
        process.send_signal(signal.SIGINT)
        begin = time.monotonic()
        assert process.stdout.readline() == "interrupted\n"
        return time.monotonic() - begin


LONG_CALLS = {
    "one huge batch": "model = pocketformer.load(sys.argv[1], 1)\nready()\nmodel([[1] * 512] * 2000)",
    "encode": "model = pocketformer.load(sys.argv[1])\nready()\nmodel.encode(['word ' * 300] * 20000)",
    "compress": "ready()\nwhile True: pocketformer.compress(sys.argv[2], sys.argv[3])",
    "bench": "ready()\nmeasure(sys.argv[1], [512], [64], [1], 1000)",
    "probe": "ready()\n_core.probe_int8('', 60000)",
}


@pytest.mark.parametrize("call", LONG_CALLS)
def test_ctrl_c_ends_a_long_call(call: str, minilm_int8: Path, tmp_path: Path) -> None:
    script = (
        "import pocketformer\nfrom pocketformer import _core\nfrom pocketformer.perf.measure import measure\n"
        "ready = lambda: print('ready', flush=True)\n" + LONG_CALLS[call]
    )

    def wait() -> float:
        return interrupted(script, minilm_int8, model_folder("minilm"), tmp_path / "out.pocket")

    assert best_of(wait, PROMPT, most=8) <= PROMPT
    assert not any(tmp_path.iterdir()) or call == "compress"
    assert not list(tmp_path.glob(".*"))

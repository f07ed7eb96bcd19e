"""Every allocation fails in turn: MemoryError, or the call does without; the next call works."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import pocketformer
from helpers.graphs import MODEL, TEXT, TOKENIZER_JSON
from helpers.kernels import fresh, kernels
from helpers.programs import batch, encoder, packed
from pocketformer import _core
from pocketformer.packing import pack_graph
from pocketformer.pocketfile import write_pocket

NATIVE = Path(__file__).parents[1] / "native"


def calls(path: str) -> dict[str, Callable[[], object]]:
    graph = packed(encoder("int8"))
    compiled, inputs = _core.Program(graph.description(), graph.params), batch((3, 17))
    session = _core.Session(compiled)
    expected = session.run(inputs).tobytes()
    x, q, scale = fresh((3, 48)), fresh((3, 64), "u1"), fresh((3,))

    def forward() -> None:
        session.trim()
        assert session.run(inputs, threads=2).tobytes() == expected

    def refused() -> None:
        with pytest.raises(ValueError, match="rotate"):
            kernels("").quantize_rows(x, q, scale, 41, 2)

    return {
        "load": lambda: pocketformer.load(path),
        "program": lambda: _core.Program(graph.description(), graph.params),
        "session": lambda: _core.Session(compiled),
        "forward": forward,
        "arena_bytes": lambda: compiled.arena_bytes([1, 2, 3, 4, 5], 2),
        "kernel": lambda: kernels("").quantize_rows(x, q, scale, 40, 2),
        "refused": refused,
    }


def outcomes(call: Callable[[], object]) -> dict[str, int]:
    """How often ``call`` raised what, with its first, second … allocation failing."""
    fail = ctypes.CDLL(None).fail_allocation
    fail.argtypes, fail.restype = [ctypes.c_long], ctypes.c_long
    call()  # what is made once is there
    fail(-1)
    call()
    counts: dict[str, int] = {}
    for n in range(fail(-1)):
        fail(n)
        try:
            call()
            outcome = "fine"
        except BaseException as error:
            outcome = type(error).__name__
        fail(-1)
        counts[outcome] = counts.get(outcome, 0) + 1
        call()
    return counts


@pytest.mark.slow
def test_every_allocation_may_fail(tmp_path: Path) -> None:
    library, path = tmp_path / "allocations.so", tmp_path / "tiny.pocket"
    source = NATIVE / "allocations.cpp"
    subprocess.run(["g++", "-std=c++17", "-O1", "-shared", "-fPIC", "-o", library, source], check=True)
    write_pocket(path, pack_graph(encoder("int8")), MODEL, TEXT, TOKENIZER_JSON)
    paths = os.pathsep.join([str(NATIVE.parent), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"LD_PRELOAD": str(library), "PYTHONMALLOC": "malloc", "PYTHONPATH": paths}
    done = subprocess.run(
        [sys.executable, __file__, path], env=environment, capture_output=True, text=True, timeout=1800, check=False
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert results.keys() == calls(str(path)).keys()
    for name, counts in results.items():
        assert counts.keys() <= {"MemoryError", "fine"}, (name, counts)
        assert counts["MemoryError"] > 0, name
    assert results["program"]["MemoryError"] > 300, "the hooks count"


if __name__ == "__main__":
    print(json.dumps({name: outcomes(call) for name, call in calls(sys.argv[1]).items()}))

"""A process ends with its own status while a daemon thread is inside a call."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys, threading, time
import pocketformer
model = pocketformer.load(sys.argv[1], threads=int(sys.argv[2]))
model.encode("hello")
def work():
    while True:
        {call}
for _ in range(2):
    threading.Thread(target=work, daemon=True).start()
time.sleep(0.2)
sys.exit(3)
"""


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("call", ['model.encode(["hello world " * 25] * 16)', "model([[2] + [5] * 50 + [3]] * 16)"])
def test_exit_status(minilm_int8: Path, call: str, threads: int) -> None:
    command = [sys.executable, "-c", PROGRAM.format(call=call), str(minilm_int8), str(threads)]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    assert [(process.communicate()[1], process.returncode) for process in running] == [("", 3)] * 3

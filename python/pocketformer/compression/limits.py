"""What a compressed model may take: bytes of its file, memory while it runs, and time; and what a plan would take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .._core import Program
from ..graph import Array
from ..layout import ALIGNMENT
from ..perf.boards import Machine, machine
from ..perf.predict import keeps, predict_program
from .pipeline import Compression

LENGTH = 128
"""Tokens of the sequence that memory and latency are of, where none are named."""
BESIDE = 2_000_000
"""Bytes that a run takes beside file and working memory: the graph as Python holds it, tokens and results, pages that
are used in part, code that is first run, and what the kernel's count of pages, kept for each core since Linux 6.2, may
be off by. 0.4 to 1.05 MB were measured on two machines, for encoders of 15 and 80 MB and a decoder of 20 MB."""
UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
SIZES = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


@dataclass(frozen=True)
class Limits:
    """The most that a model may take; None: any. ``file_bytes`` of its file; ``memory_bytes`` of the file, mapped, and
    working memory; ``seconds`` of a run, as the cost model has it for ``board``.

    Memory and time are of ``batch`` images, or sequences of ``length`` tokens (0: 128, or as many as the model takes),
    on ``threads`` threads (0: all cores of the board).
    """

    file_bytes: int | None = None
    memory_bytes: int | None = None
    seconds: float | None = None
    board: str = "this"
    length: int = 0
    batch: int = 1
    threads: int = 0

    @property
    def runs(self) -> bool:
        """Whether a run must be foretold."""
        return self.memory_bytes is not None or self.seconds is not None

    def named(self) -> dict[str, float]:
        """The limits that there are, by the name of a plan's figure."""
        figures = {"file_bytes": self.file_bytes, "memory_bytes": self.memory_bytes, "seconds": self.seconds}
        return {name: limit for name, limit in figures.items() if limit is not None}


class Forecast:
    """What files would take in a run; the machine is probed once, at the first. ``longest`` is that of a sequence of
    tokens, ``pixels`` how many each image has where the model takes images.

    Raises ValueError for an unknown board, and lengths or threads that model or board do not have.
    """

    def __init__(self, limits: Limits, longest: int, pixels: int = 0) -> None:
        if pixels and limits.length:
            raise ValueError(f"length is {limits.length}, but the model takes images of one size; leave it out")
        if limits.batch < 1 or not 0 <= limits.length <= longest:
            raise ValueError(
                f"memory and latency of {limits.batch} × {limits.length} tokens were asked for; a run has at least one "
                f"sequence, of 1 to {longest} tokens"
            )
        self.image = bool(pixels)
        self.lengths = [pixels or limits.length or min(LENGTH, longest)] * limits.batch
        self.machine: Machine = machine(limits.board)
        self.threads = limits.threads or self.machine.cores

    def __call__(self, compression: Compression, file_bytes: int) -> tuple[int, float]:
        """Bytes of the mapped file, of working memory, of what a decoder keeps and of what is beside, and seconds."""
        tensors = {name: _untouched(slot.dtype, slot.shape) for name, slot in compression.slots.items()}
        for entries in (array for name, array in tensors.items() if name.endswith(".codebook")):
            entries[:] = np.arange(len(entries)) - len(entries) // 2  # the one thing in tensors that is checked
        program = Program(compression.target.description(), tensors)
        kept = keeps(compression.target)
        found = predict_program(program, file_bytes, self.machine, self.lengths, self.threads, kept, image=self.image)
        memory = sum(found["memory"][part] for part in ("file", "working", "cache"))
        return memory + BESIDE, found["seconds"]


def parse_size(text: str) -> int:
    """``14MB`` → 14,000,000: decimal units. Raises ValueError for anything else."""
    number = text.strip().upper()
    unit = next((unit for unit in ("KB", "MB", "GB", "B") if number.endswith(unit)), "")
    try:
        count = float(number.removesuffix(unit))
    except ValueError:
        count = 0.0
    if not 0 < count < 1e6 * SIZES["GB"]:
        raise ValueError(f"{text!r} is no size; write it such as 14MB, 900KB or 14000000 (MB = 1,000,000 bytes)")
    return int(count * SIZES.get(unit, 1))


def parse_seconds(text: str) -> float:
    """``8ms`` → 0.008. Raises ValueError for anything else."""
    number = text.strip().lower()
    unit = next((unit for unit in UNITS if number.endswith(unit)), "")
    try:
        count = float(number.removesuffix(unit))
    except ValueError:
        count = 0.0
    if not unit or not 0 < count < 1e6:
        raise ValueError(f"{text!r} is no time; write it such as 8ms, 0.5s or 900us")
    return count * UNITS[unit]


def _untouched(dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    """Zeros that start at a multiple of 64 bytes and take no memory before they are read."""
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    memory = np.zeros(size + ALIGNMENT, np.uint8)
    begin = -memory.ctypes.data % ALIGNMENT
    array: Array = memory[begin : begin + size].view(dtype).reshape(shape)
    return array

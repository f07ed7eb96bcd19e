"""The compiled runtime. Arrays must have exactly the dtype and shape given here and be C-contiguous."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

def isas() -> list[str]:
    """Names of the instruction sets that this build has and this CPU supports, best first."""

def default_threads() -> int:
    """CPUs that this process may use: its affinity mask, limited by the quota of its control groups."""

def cgroup_cpus(root: str = "") -> int:
    """The tightest control-group quota in CPUs, rounded up; 0 without one. ``root`` goes before /proc and /sys."""

class Program:
    """An immutable model, shared by any number of sessions and threads.

    ``graph`` holds ``ops``, ``output``, ``vocab_size``, ``type_vocab_size`` and ``max_length``; ``tensors`` the packed
    parameters (docs/format.md), each 64-byte aligned. They are used where they lie and kept alive; nothing is copied.
    An empty ``isa`` takes POCKETFORMER_ISA or the best one supported. Raises ValueError for anything that does not fit.
    """

    def __init__(self, graph: dict[str, Any], tensors: dict[str, NDArray[Any]], isa: str = "") -> None: ...
    @property
    def isa(self) -> str: ...
    @property
    def output_width(self) -> int: ...
    @property
    def output_domain(self) -> str:
        """``tokens``, ``sequences`` or ``rows``: what a row of the output stands for."""
    @property
    def max_length(self) -> int: ...
    def arena_bytes(
        self, lengths: list[int], threads: int, rows: int = 0, mode: str = "auto", block_rows: int = 0
    ) -> int:
        """Bytes that a new session with this ``mode`` and ``block_rows`` allocates to run such a batch."""

class Session:
    """The working memory of one caller at a time; any number of them share a program.

    ``mode`` is ``auto``, ``rows`` or ``columns`` and ``block_rows`` the rows a thread takes at a time (0: the planner's
    choice): how the work is divided, which never changes a bit of the result.
    """

    def __init__(self, program: Program, mode: str = "auto", block_rows: int = 0) -> None: ...
    def run(
        self,
        ids: NDArray[np.int32],
        offsets: NDArray[np.int64],
        types: NDArray[np.int32] | None = None,
        rows: NDArray[np.int64] | None = None,
        threads: int = 1,
        out: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """Runs a batch and returns float32 [tokens | sequences | rows, output_width], ``out`` if it is given.

        ``ids`` [tokens] holds all sequences end to end, ``offsets`` [sequences + 1] where each begins; ``types``
        [tokens] defaults to zeros; ``rows`` are the tokens that a ``select`` takes. The GIL is released. Raises
        ValueError when an argument does not fit the model, RuntimeError when another thread is in this session.
        """
    @property
    def arena_bytes(self) -> int:
        """Bytes held now; they grow to what the largest batch needed."""
    def trim(self) -> None:
        """Gives the memory back; the next run takes what it needs."""
    @property
    def profile(self) -> bool:
        """Whether runs are timed; setting it to True starts from zero."""
    @profile.setter
    def profile(self, on: bool) -> None: ...
    def phases(self) -> dict[str, float]:
        """Seconds by kind of step, summed over threads, since profiling was turned on."""

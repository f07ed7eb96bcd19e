"""A runner in a process of its own, which is stopped except while it is asked something."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from bench.peers.runners import RUNNERS

ROOT = Path(__file__).resolve().parents[2]


def default_cache() -> Path:
    """Where prepare.py keeps the models: $POCKETFORMER_CACHE/peers, or ~/.cache/pocketformer/peers."""
    return Path(os.environ.get("POCKETFORMER_CACHE", Path.home() / ".cache" / "pocketformer")) / "peers"


def benchmark_environment() -> dict[str, str]:
    """This environment without the variables that hold OpenBLAS to slower kernels than the CPU has."""
    return {k: v for k, v in os.environ.items() if k not in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")}


def say_skipped(name: str, reason: str) -> None:
    print(f"skipped {name}: {reason}", file=sys.stderr)


def available(cache: Path, wanted: Sequence[str] = (), skipped: Callable[[str, str], None] = say_skipped) -> list[str]:
    """Names of the runners that can run here (of ``wanted``, or of all); tells why each other one is skipped.

    Raises ValueError for a name that no runner has.
    """
    for name in wanted:
        if name not in RUNNERS:
            raise ValueError(f"runner {name!r} does not exist; choose from {', '.join(RUNNERS)}")
    names = []
    for name in wanted or RUNNERS:
        reason = RUNNERS[name]().missing(cache)
        if reason is None:
            names.append(name)
        else:
            skipped(name, reason)
    return names


class Child:
    """A process driven by JSON lines, whose first line is ``hello``. Between requests it is stopped (SIGSTOP).

    Some runtimes let their threads spin for milliseconds after a call, waiting for the next; a spinning
    neighbour would slow whoever is measured. Turning spinning off would slow the runtime itself. Stopping the
    process does neither.
    """

    def __init__(self, name: str, command: Sequence[str], environment: dict[str, str]) -> None:
        self.name = name
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment
        )
        self.hello: Any = self._reply()
        self._process.send_signal(signal.SIGSTOP)

    def ask(self, request: dict[str, Any], limit: float | None = None) -> Any:
        """The reply. Raises TimeoutError where there is none after ``limit`` seconds; the process is then closed."""
        assert self._process.stdin is not None
        self._process.send_signal(signal.SIGCONT)
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        reply = self._reply(limit)
        self._process.send_signal(signal.SIGSTOP)
        return reply

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _reply(self, limit: float | None = None) -> Any:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], limit)[0]:
            self.close()
            raise TimeoutError(f"{self.name} has not answered within {limit:g} s")
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} died with exit code {self._process.wait()}; its last words are above")
        return json.loads(line)


class Peer(Child):
    """One runner's process; it says its version first."""

    def __init__(self, name: str, cache: Path, threads: int) -> None:
        worker = ["-W", "ignore", "-m", "bench.peers.worker", name, str(cache.resolve()), str(threads)]
        super().__init__(name, [sys.executable, *worker], benchmark_environment())
        self.version: str = self.hello

    def measure(self, ids: list[list[int]], *, seconds: float, least: int, clock: str = "wall") -> list[float]:
        """Seconds of each call; see worker.measure."""
        request = {"do": "measure", "ids": ids, "seconds": seconds, "least": least, "clock": clock}
        times: list[float] = self.ask(request)
        return times

    def embed(self, ids: list[list[int]]) -> list[list[float]]:
        """Embeddings [sequences, width]."""
        rows: list[list[float]] = self.ask({"do": "embed", "ids": ids})
        return rows


class Peers:
    """Several peers, closed together: ``with Peers(names, cache, threads) as peers: …``."""

    def __init__(self, names: Iterable[str], cache: Path, threads: int) -> None:
        self._peers: list[Peer] = []
        try:
            for name in names:
                self._peers.append(Peer(name, cache, threads))
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def __enter__(self) -> list[Peer]:
        return self._peers

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for peer in self._peers:
            peer.close()

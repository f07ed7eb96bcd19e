"""The child process of ``bench.peers.decoding``, driven by JSON lines: ``… RUNNER FILE CACHE THREADS CAPACITY``.

A runner reads prompts and decodes one token after the other. It takes the GGUF file (ours: the pocket file made of it).
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

CHUNK = 512
"""Tokens of a prompt that run together."""


class Ours:
    """pocketformer on the integers of the GGUF file."""

    PACKAGE = "pocketformer.engine"

    def __init__(self, path: Path, cache: Path, threads: int, capacity: int) -> None:
        from pocketformer.engine import Engine

        self._engine = Engine(path, threads)
        self._cache = self._engine.cache(capacity, min(CHUNK, capacity))
        self.vocabulary = self._engine.file.graph.vocab_size
        self._out = np.empty((1, self._engine.width), np.float32)
        self._row = np.zeros(1, np.int64)

    @staticmethod
    def vocabulary_seconds(path: Path) -> float:
        """What a load takes for words; this one reads none."""
        return 0.0

    def clear(self) -> None:
        self._cache.truncate(0)

    def read(self, ids: Any) -> None:
        from pocketformer.tasks import score

        score.read(self._engine, ids, self._cache)

    def decode(self, ids: Any) -> None:
        self._engine.run([ids], rows=self._row, caches=[self._cache], out=self._out)

    def fill(self, ids: Any) -> None:
        self.clear()
        self.read(ids)


class LlamaCpp:
    """llama.cpp through its C interface: fp16 keys and values, all logits of the last token computed, none copied."""

    PACKAGE = "llama_cpp"
    FLASH = 0  # LLAMA_FLASH_ATTN_TYPE_DISABLED

    def __init__(self, path: Path, cache: Path, threads: int, capacity: int) -> None:
        import llama_cpp

        self._api: Any = llama_cpp
        llama_cpp.llama_backend_init()
        self._model = self._api.llama_model_load_from_file(str(path).encode(), self._api.llama_model_default_params())
        options = self._api.llama_context_default_params()
        options.n_ctx, options.n_batch, options.n_ubatch = capacity, CHUNK, CHUNK
        options.n_threads = options.n_threads_batch = threads
        options.flash_attn_type, options.swa_full = self.FLASH, False
        self._context = self._api.llama_init_from_model(self._model, options)
        self._memory = self._api.llama_get_memory(self._context)
        self.vocabulary = self._api.llama_vocab_n_tokens(self._api.llama_model_get_vocab(self._model))
        self._states = cache / f"{path.stem}-{llama_cpp.__version__}-{self.FLASH}"

    @staticmethod
    def vocabulary_seconds(path: Path) -> float:
        """What a load takes for words: one that reads nothing else."""
        import llama_cpp

        options = llama_cpp.llama_model_default_params()
        options.vocab_only = True
        begin = time.perf_counter()
        llama_cpp.llama_model_load_from_file(str(path).encode(), options)
        return time.perf_counter() - begin

    def clear(self) -> None:
        self._api.llama_memory_clear(self._memory, True)

    def read(self, ids: Any) -> None:
        for begin in range(0, len(ids), CHUNK):
            self.decode(ids[begin : begin + CHUNK])

    def decode(self, ids: Any) -> None:
        tokens = (ctypes.c_int32 * len(ids))(*ids.tolist())
        if self._api.llama_decode(self._context, self._api.llama_batch_get_one(tokens, len(ids))) != 0:
            raise RuntimeError(f"llama.cpp could not decode {len(ids)} tokens")
        self._api.llama_get_logits_ith(self._context, -1)  # waits for them

    def fill(self, ids: Any) -> None:
        """Takes what an earlier run has read of long prompts: reading 4,096 tokens takes up to a minute."""
        self.clear()
        kept = f"{self._states}-{len(ids)}".encode()
        tokens, count = (ctypes.c_int32 * len(ids))(*ids.tolist()), ctypes.c_size_t()
        if os.path.exists(kept):
            if self._api.llama_state_load_file(self._context, kept, tokens, len(ids), ctypes.byref(count)):
                return
            os.unlink(kept)
        self.clear()
        self.read(ids)
        self._api.llama_state_save_file(self._context, kept, tokens, len(ids))


class LlamaCppFlash(LlamaCpp):
    FLASH = 1


RUNNERS: dict[str, type[Ours] | type[LlamaCpp]] = {
    "pocketformer": Ours,
    "llama.cpp": LlamaCpp,
    "llama.cpp, flash attention": LlamaCppFlash,
}


def memory() -> dict[str, int]:
    """Bytes: the most that was in memory, and what is there now beside mapped files."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(fields[name].split()[0]) * 1024 for name in ("VmHWM", "RssAnon")}


def prompt(tokens: int, vocabulary: int) -> Any:
    """Random token ids, the same each time."""
    return np.random.default_rng(0).integers(0, min(vocabulary, 32000), tokens, dtype=np.int32)


def prefill(runner: Any, tokens: int, repeat: int) -> list[float]:
    """Seconds of each reading of a prompt, up to the logits behind it."""
    ids, times = prompt(tokens, runner.vocabulary), []
    for _ in range(repeat):
        runner.clear()
        begin = time.perf_counter()
        runner.read(ids)
        times.append(time.perf_counter() - begin)
    return times


def decode(runner: Any, context: int, steps: int) -> list[float]:
    """Seconds of each token behind a prompt of ``context`` tokens, the first of them left out."""
    ids, times = prompt(context, runner.vocabulary), []
    runner.fill(ids)
    for _ in range(steps + 1):
        begin = time.perf_counter()
        runner.decode(ids[:1])
        times.append(time.perf_counter() - begin)
    return times[1:]


def main() -> None:
    name, path, cache, threads, capacity = sys.argv[1:]
    replies = os.fdopen(os.dup(1), "w")  # libraries print to standard output
    os.dup2(2, 1)
    kind = RUNNERS[name]
    importlib.import_module(kind.PACKAGE)
    begin = time.perf_counter()
    runner = kind(Path(path), Path(cache), int(threads), int(capacity))
    hello = {"load": time.perf_counter() - begin, "vocabulary": kind.vocabulary_seconds(Path(path))}
    print(json.dumps(hello), file=replies, flush=True)
    do: dict[str, Callable[..., Any]] = {"prefill": prefill, "decode": decode}
    for line in sys.stdin:
        request = json.loads(line)
        what = request.pop("do")
        print(json.dumps(memory() if what == "memory" else do[what](runner, **request)), file=replies, flush=True)


if __name__ == "__main__":
    main()

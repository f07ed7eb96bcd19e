"""pocketformer.kernels reads and writes nothing beyond an array: each ends where the process's memory ends."""

from __future__ import annotations

import ctypes
import mmap
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pocketformer import _core, kernels
from pocketformer.graph import Array

FOLDER, MODULE = Path(__file__).parent, Path(__file__).stem
_libc = ctypes.CDLL(None, use_errno=True)
_held: list[mmap.mmap] = []


def guarded(shape: tuple[int, ...], dtype: Any = np.float32, seed: int = 0) -> Array:
    """Random values whose last byte is the last before a page that may not be touched."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    pages = -(-size // mmap.PAGESIZE)
    memory = mmap.mmap(-1, (pages + 1) * mmap.PAGESIZE)
    _held.append(memory)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    if _libc.mprotect(ctypes.c_void_p(start + pages * mmap.PAGESIZE), mmap.PAGESIZE, 0):
        raise OSError(ctypes.get_errno(), "mprotect")
    array: Array = np.frombuffer(memory, dtype, int(np.prod(shape)), pages * mmap.PAGESIZE - size).reshape(shape)
    rng = np.random.default_rng((seed, *shape))
    array[...] = rng.standard_normal(shape) if dtype == np.float32 else rng.integers(-127, 128, shape)
    return array


def products(isa: str) -> None:
    with kernels.using(isa):
        for m, n, k in ((1, 1, 1), (1, 17, 5), (3, 16, 16), (35, 39, 33), (18, 40, 200)):
            x, bias, multiply, residual = (guarded(s) for s in ((m, k), (n,), (m, n), (m, n)))
            for dtype in ("int8", "float32"):
                w = kernels.pack(guarded((n, k), seed=1), dtype)  # type: ignore[arg-type]
                for threads in (1, 3):
                    out = guarded((m, n))
                    kernels.matmul(x, w, bias, "gelu", multiply, residual, threads=threads, out=out)
                    kernels.matmul(x, w, bias, residual=out, threads=threads, out=out)
            w = kernels.pack(guarded((n, k)))
            kernels.matmul_int8(guarded((m, k), np.int8), w, out=guarded((m, n), np.int32))
            kernels.quantize(x, like=w)


def attention(isa: str) -> None:
    with kernels.using(isa):
        for tokens, heads, kv_heads, head_dim in ((1, 1, 1, 1), (5, 4, 2, 20), (40, 2, 2, 16), (131, 6, 3, 33)):
            q, k, v = (guarded((tokens, h, head_dim)) for h in (heads, kv_heads, kv_heads))
            bias = guarded((heads, 7))
            for dtype in ("int8", "float32"):
                kernels.attention(q, k, v, window=9, bias=bias, dtype=dtype, out=guarded(q.shape), threads=2)  # type: ignore[arg-type]
                kernels.attention(guarded((3, heads, head_dim)), k, v, dtype=dtype)  # type: ignore[arg-type]
            cache = kernels.KeyValueCache(kv_heads, head_dim, tokens)
            for token in range(tokens):
                cache.append(guarded((1, kv_heads, head_dim)), guarded((1, kv_heads, head_dim)))
                if token % 16 == 0:
                    cache.attend(guarded((1, heads, head_dim)), out=guarded((1, heads, head_dim)))
            cache.attend(q, out=guarded(q.shape))


def rows(isa: str) -> None:
    with kernels.using(isa):
        for width in (1, 15, 16, 33, 1025):
            x, weight, bias = guarded((3, width)), guarded((width,)), guarded((width,))
            kernels.layer_norm(x, weight, bias)
            kernels.rms_norm(x, weight)
            kernels.gelu(x)
            kernels.softmax(x)
        for head_dim in (2, 16, 33):
            kernels.rope(guarded((3, 2, head_dim)), np.arange(3, dtype=np.int32), np.ones(1, np.float32))


@pytest.mark.parametrize("isa", _core.isas())
@pytest.mark.parametrize("name", ["products", "attention", "rows"])
def test_nothing_beyond_an_array_is_touched(name: str, isa: str) -> None:
    code = f"import sys; sys.path[:0] = [{str(FOLDER)!r}]; from {MODULE} import {name}; {name}({isa!r})"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stderr}"


def test_a_step_beyond_would_be_seen() -> None:
    code = (
        f"import sys, ctypes; sys.path[:0] = [{str(FOLDER)!r}]; from {MODULE} import guarded;"
        "a = guarded((3, 5)); ctypes.string_at(a.ctypes.data + a.nbytes - 1, 1); print('inside', flush=True);"
        "ctypes.string_at(a.ctypes.data + a.nbytes, 1)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("inside\n", -11)

"""A call's arguments, made of a fuzzer's bytes: such as fit, with up to three of them then spoilt.

Spoilt is another dtype, shape, layout, alignment or type, a number far away. What fits runs on arrays that end where
their memory ends, so that the address sanitizer sees a step beyond.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
from atheris import FuzzedDataProvider

from pocketformer.graph import Array

_libc = ctypes.CDLL(None)
_libc.free.argtypes = [ctypes.c_void_p]

NUMBERS = (0, 1, -1, 2, 3, 15, 16, 17, 64, 127, 128, 129, 256, 2**24, 2**24 + 1, 2**31 - 1, 2**31, 2**32, 2**63 - 1)
FLOATS = (0.0, 1.0, -1.0, 1e-30, 1e30, float("inf"), float("-inf"), float("nan"))
GROUPS = (16, 32, 48, 64, 128)
ACTIVATIONS = ("none", "gelu", "gelu_tanh", "relu", "silu", "tanh")


def exact(shape: tuple[int, ...], dtype: Any) -> Array:
    """An aligned array at the end of its block."""
    dtype = np.dtype(dtype)
    size = int(np.prod(shape)) * dtype.itemsize
    pointer = ctypes.c_void_p()
    if _libc.posix_memalign(ctypes.byref(pointer), 64, max(size, 1)):
        raise MemoryError
    assert pointer.value is not None
    memory = (ctypes.c_char * max(size, 1)).from_address(pointer.value)
    weakref.finalize(memory, _libc.free, pointer)
    return np.frombuffer(memory, np.uint8, size).view(dtype).reshape(shape)


class Call:
    """One call's choices, taken from the fuzzer's bytes."""

    def __init__(self, content: bytes) -> None:
        self.bytes = FuzzedDataProvider(content)

    def upto(self, low: int, high: int) -> int:
        return int(self.bytes.ConsumeIntInRange(low, high))

    def pick(self, *options: Any) -> Any:
        return options[self.upto(0, len(options) - 1)]

    def array(self, *shape: int, dtype: Any = np.float32, high: int | None = None) -> Array:
        """Random values; integers below ``high``."""
        array = exact(shape, dtype)
        rng = np.random.default_rng(self.upto(0, 255))
        if array.dtype.kind == "f":
            array[...] = rng.standard_normal(shape) * self.pick(1, 1, 1, 1e-30, 1e30)
            if array.size and self.upto(0, 9) == 9:
                array.flat[rng.integers(array.size)] = self.pick(*FLOATS)
        elif high is not None:
            array[...] = rng.integers(0, high, shape)
        else:
            info = np.iinfo(array.dtype)
            array[...] = rng.integers(max(info.min, -127), min(info.max, 255) + 1, shape)
        return array

    def number(self) -> int | float:
        return self.pick(*NUMBERS, *(-n for n in NUMBERS[3:])) if self.upto(0, 3) else self.pick(*FLOATS)

    def spoilt(self, value: Any) -> Any:
        if not isinstance(value, np.ndarray):
            return self.pick(self.number(), None, "", "mean", [], value, True)
        way = self.upto(0, 13)
        if way == 0:
            return value.astype(self.pick("f8", "f4", "i1", "u1", "i4", "i8", "f2", "?", "c8", "O", ">f4", ">i4"))
        if way == 1:
            return value[..., ::2]
        if way == 2:
            return np.asfortranarray(value)
        if way == 3:
            return np.broadcast_to(value.reshape(-1)[:1], value.shape)
        if way == 4:
            raw = np.zeros(value.nbytes + 64, np.uint8)
            return raw[1 : 1 + value.nbytes].view(value.dtype).reshape(value.shape)
        if way == 5:
            value.flags.writeable = False
            return value
        if way == 6:
            return self.pick(value.reshape(-1), value[None], value.reshape(-1, 1), value[:0], value[1:], value[:-1])
        if way == 7:
            return np.empty((self.pick(0, 2**24, 2**24 + 1, 2**40), 0), value.dtype)
        if way == 8:
            return self.pick(None, value.tolist(), "x", value.tobytes(), np.float32(1), memoryview(value), object())
        if way == 9:
            return value.view(np.ma.MaskedArray)
        shape = list(value.shape)
        shape[self.upto(0, len(shape) - 1)] = self.pick(0, 1, 2, 15, 16, 17, 48, 64, 65, 128)
        return exact(tuple(shape), value.dtype) if np.prod(shape) < 1 << 20 else None

    def __call__(self, function: Callable[..., Any], arguments: dict[str, Any]) -> None:
        for _ in range(max(0, self.upto(0, 7) - 4)):
            name = self.pick(*arguments)
            arguments[name] = self.spoilt(arguments[name])
        function(**arguments)

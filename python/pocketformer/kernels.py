"""The kernels on plain arrays: packed products, int8 attention, a quantized key-value cache, convolutions, norms and
activations.

Arrays are C-contiguous float32 and may have any shape; padding, alignment and packing happen inside. Results are new
arrays, or ``out`` where one is given. They are the same bits for any number of threads, on every instruction set, and
as in a model that runs the same layer. The GIL is released while a kernel runs.

Nothing is converted in silence: another dtype, layout or shape, NaN and infinity raise ValueError, and the message
names the argument, its value and the remedy. ``threads=None`` takes as many threads as the work occupies, at most one
for each strong core (``POCKETFORMER_THREADS`` sets another number). docs/kernels.md shows the layouts and how to
measure.

Example:
    >>> import numpy as np
    >>> from pocketformer import kernels
    >>> w = kernels.pack(np.ones((32, 64), np.float32))
    >>> kernels.matmul(np.ones((2, 64), np.float32), w).shape
    (2, 32)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from operator import index
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from . import _core, grids
from .grids import Activation, Floats, depthwise, resize, unfold
from .layout import hadamard_block
from .patterns import Blocks, Reach, Window, reach

__all__ = [
    "Blocks",
    "KeyValueCache",
    "Weight",
    "Window",
    "attention",
    "conv2d",
    "depthwise",
    "gelu",
    "isas",
    "layer_norm",
    "matmul",
    "matmul_int8",
    "pack",
    "quantize",
    "resize",
    "rms_norm",
    "rope",
    "silu",
    "softmax",
    "unfold",
    "using",
]

Dtype: TypeAlias = Literal["int8", "int4", "float16", "float32"]

UNIFORM: NDArray[np.int8] = np.arange(-8, 8, dtype=np.int8) * np.int8(15)
"""The codebook of int4 weights unless another is given: evenly spaced, with zero."""


# --- products ---------------------------------------------------------------------------------------------------------


class Weight(_core.Weight):
    """A weight [n, k] as the kernels read it; ``pack`` makes one. Immutable, and shared freely among threads.

    Attributes:
        shape: ``(n, k)``: outputs and inputs.
        dtype: ``int8``, ``int4``, ``float16`` or ``float32``.
        nbytes: bytes of codes, scales and sums, padding included.
        scale: float32 [n], with a ``group`` [n, k // group]; None for float32.
        group: inputs that share a scale, or None: one scale for each output.
        rotate: the block of the Hadamard rotation that products apply to their input, or 0.
        bounded_pairs: whether the codes of inputs 2j and 2j + 1 are bounded, as ``pack`` says.
    """

    def dequantize(self) -> Floats:
        """The weight [n, k] that it stands for, rotated back."""
        return super().dequantize()

    def __repr__(self) -> str:
        group = "" if self.group is None else f", group={self.group}"
        return f"Weight(shape={self.shape}, dtype={self.dtype!r}{group}, rotate={self.rotate}, nbytes={self.nbytes})"


def pack(
    weight: Floats,
    dtype: Dtype = "int8",
    group: int | None = None,
    rotate: int | Literal["auto"] = "auto",
    codebook: NDArray[np.int8] | None = None,
    *,
    bounded_pairs: bool = False,
) -> Weight:
    """Rounds ``weight`` float32 [n, k] to the nearest and lays it out for the kernels.

    ``int8`` has one scale for each output. ``int4`` holds indices into ``codebook``, 16 ascending int8 values within
    ±127 (default ``UNIFORM``), with one scale for each output or, with a ``group`` of 16, 32, 64 or 128 that divides
    k, for each group of inputs. ``rotate`` is the block of a Walsh-Hadamard rotation (QuaRot, arXiv 2404.00456),
    which spreads outliers of the *input*: a power of two up to 128 that divides k, 0 for none, or ``auto``, the
    largest. A float16 weight is rounded to that (at most 65504) and multiplied as float32, as a float32 weight is,
    and neither is rotated.

    With ``bounded_pairs`` the codes of an int8 weight that stand side by side, of inputs 2j and 2j + 1, add up to at
    most 128 in magnitude: products of AVX2 without VNNI then need no sign and take three quarters of the time, others
    are as fast as ever, and all are as exact. Each output has the scale of least squared error among eight, and pairs
    beyond the bound become what is near them on it; the squared error is about twice that of plain int8.
    """
    if rotate == "auto":
        rotate = 0 if dtype in ("float16", "float32") or np.ndim(weight) != 2 else hadamard_block(np.shape(weight)[1])
    if dtype == "int4" and codebook is None:
        codebook = UNIFORM
    return Weight(weight, dtype, group or 0, rotate, codebook, bounded_pairs)


def matmul(
    x: Floats,
    w: Weight,
    bias: Floats | None = None,
    activation: Activation | None = None,
    multiply: Floats | None = None,
    residual: Floats | None = None,
    *,
    threads: int | None = None,
    out: Floats | None = None,
) -> Floats:
    """``activation(x · wᵀ + bias) * multiply + residual``: float32 [..., k] → [..., n].

    ``bias`` is float32 [n]; ``multiply`` and ``residual`` have the shape of the result. ``residual`` may be ``out``
    where neither ``multiply`` nor an activation is given. Rows of ``x`` are rotated and rounded to int8 as ``w``
    asks, each with a scale of its own, so that no row's result depends on the others.
    """
    return _core.matmul(x, w, bias, activation, multiply, residual, threads, out)


def quantize(x: Floats, like: Weight, *, threads: int | None = None) -> tuple[NDArray[np.int8], Floats]:
    """``x`` float32 [..., k] as a product with ``like`` rounds it: int8 [..., k] within ±127, a scale float32 [...].

    With ``like.rotate`` the integers are those of the rotated rows.
    """
    return _core.quantize(x, like, threads)


def matmul_int8(
    q: NDArray[np.int8],
    w: Weight,
    *,
    threads: int | None = None,
    out: NDArray[np.int32] | None = None,
) -> NDArray[np.int32]:
    """The integer product alone: int8 [..., k] within ±127 times the codes of an int8 weight → int32 [..., n], exact.

    With ``q, s = quantize(x, like=w)``, ``matmul(x, w)`` is ``matmul_int8(q, w) * w.scale * s[..., None]`` up to
    rounding.
    """
    return _core.matmul_int8(q, w, threads, out)


# --- attention --------------------------------------------------------------------------------------------------------


def attention(
    q: Floats,
    k: Floats,
    v: Floats,
    causal: bool = False,
    window: Reach = None,
    bias: Floats | None = None,
    offsets: NDArray[np.int64] | None = None,
    dtype: Literal["int8", "float32"] = "int8",
    *,
    pattern: Window | Blocks | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    threads: int | None = None,
    out: Floats | None = None,
) -> Floats:
    """``softmax(scale · q · kᵀ + bias) · v`` by heads: q [tokens, heads, head_dim] → [tokens, heads, head_dim].

    ``k`` and ``v`` are [keys, kv_heads, head_dim]; heads // kv_heads heads share one of theirs. Queries are the last
    of the keys' positions, so that the last rows of a causal sequence can be asked for alone; without ``causal``,
    ``window`` and ``bias`` there may be more of them than keys. ``offsets`` int64 [sequences + 1] makes a batch of
    sequences end to end of the rows (then there are as many keys as queries); no token sees another sequence, none is
    padded.

    ``causal``: a query sees no later position. ``window``: it sees positions at most so far away, both ends included,
    or ``(before, after)`` with None for any distance. ``pattern`` is a :class:`Window` with more to say, or
    :class:`Blocks`; time is that of the keys that a pattern names. ``bias`` float32 [heads, 2·d + 1] is added to the
    scores by distance: entry d + (query − key), clamped to its ends. ``scale`` defaults to head_dim ** -0.5.
    ``softcap`` c makes c · tanh(s / c) of each score s, as Gemma 2 does; it goes with no bias. ``dtype`` ``int8``
    rounds q, k and v to one scale for each token and head and the weights of each 128 keys to 7 bits; ``float32``
    rounds nothing.
    """
    chosen: dict[str, Any] = {}
    if pattern is not None and window is not None:
        raise ValueError(f"window is {window!r} beside a pattern, which says what is seen; leave one out")
    if isinstance(pattern, Window):
        if causal and pattern.globals:
            raise ValueError(f"causal is True beside {pattern.globals} global positions, which see all; leave one out")
        less = 0 if pattern.inclusive else 1
        before, after = (None if n is None else n - less for n in (pattern.before, pattern.after))
        window = before, after
        chosen = {"step": pattern.dilation, "globals": pattern.globals}
    elif isinstance(pattern, Blocks):
        begins = np.cumsum([0, *map(len, pattern.keys)], dtype=np.int64)
        blocks = np.fromiter(map(index, chain.from_iterable(pattern.keys)), np.int64)
        chosen = {"block": pattern.size, "begins": begins, "blocks": blocks}
    elif pattern is not None:
        raise ValueError(f"pattern is {pattern!r:.80}; pass kernels.Window, kernels.Blocks or None")
    left, right = reach(causal, window)
    return _core.attention(q, k, v, left, right, bias, offsets, dtype, scale, threads, out, softcap=softcap, **chosen)


class KeyValueCache:
    """Keys and values of one layer and one sequence, rounded to int8 as they arrive; for one thread at a time.

    ``capacity`` tokens of ``kv_heads`` heads of ``head_dim`` fit; untouched ones take no memory. With a ``window`` a
    query sees positions at most so far before its own, and any number of tokens may pass: those that no later query
    sees make room, and ``capacity − window`` may be appended at a time. The cache keeps the instruction set that was
    in use when it was made.

    Example:
        >>> import numpy as np
        >>> cache = KeyValueCache(kv_heads=2, head_dim=64, capacity=256)
        >>> k = v = np.ones((10, 2, 64), np.float32)
        >>> cache.append(k, v)
        >>> cache.attend(np.ones((1, 4, 64), np.float32)).shape  # the last token's queries
        (1, 4, 64)
    """

    __slots__ = ("_cache",)

    def __init__(self, kv_heads: int, head_dim: int, capacity: int, window: int | None = None) -> None:
        self._cache = _core.KeyValueCache(kv_heads, head_dim, capacity, window)

    def append(self, k: Floats, v: Floats) -> None:
        """Adds tokens: float32 [tokens, kv_heads, head_dim] each. Raises ValueError when they do not fit."""
        self._cache.append(k, v)

    def attend(
        self,
        q: Floats,
        causal: bool = True,
        window: Reach = None,
        bias: Floats | None = None,
        *,
        scale: float | None = None,
        threads: int | None = None,
        out: Floats | None = None,
    ) -> Floats:
        """``attention`` of the last tokens' queries [tokens, heads, head_dim] over all that is kept.

        A ``window`` here narrows the cache's own.
        """
        left, right = reach(causal, window)
        return self._cache.attend(q, left, right, bias, scale, threads, out)

    def truncate(self, length: int) -> None:
        """Forgets all but the first ``length`` tokens. Raises ValueError when a window has dropped what they see."""
        self._cache.truncate(length)

    def fork(self) -> KeyValueCache:
        """A copy that goes its own way: the shared prefix of several continuations is computed once."""
        copy = KeyValueCache.__new__(KeyValueCache)
        copy._cache = self._cache.fork()
        return copy

    @property
    def length(self) -> int:
        """Tokens appended so far."""
        return self._cache.length

    @property
    def capacity(self) -> int:
        """Tokens that fit."""
        return self._cache.capacity

    @property
    def window(self) -> int | None:
        """How far back a query sees, or None: to the start."""
        return self._cache.window

    @property
    def nbytes(self) -> int:
        """Bytes of keys, values and scales when all are in use."""
        return self._cache.nbytes

    @property
    def isa(self) -> str:
        """The instruction set that it was made with."""
        return self._cache.isa


# --- grids of pixels --------------------------------------------------------------------------------------------------


def conv2d(
    x: Floats,
    w: Weight,
    size: int | tuple[int, int],
    stride: int = 1,
    padding: int = 0,
    bias: Floats | None = None,
    activation: Activation | None = None,
    residual: Floats | None = None,
    *,
    threads: int | None = None,
    out: Floats | None = None,
) -> Floats:
    """A convolution: [images, height, width, channels] → [images, rows, columns, outputs].

    ``w`` is the packed kernel, ``pack(kernel.transpose(0, 2, 3, 1).reshape(outputs, -1))`` of one [outputs, channels,
    height, width] as torch has it. It is the product of windows by :func:`unfold`, which are in memory together, and
    what :func:`matmul` adds; an int8 product has one scale a window. Of one pixel it is the product alone.
    """
    channels = grids.checked(x)[3]
    height, width = grids.pair("size", size)
    if w.shape[1] != height * width * channels:
        raise ValueError(
            f"w has {w.shape[1]} inputs; windows of {height} × {width} over {channels} channels have "
            f"{height * width * channels}, lines first and channels last"
        )
    plain = (height, width, stride, padding) == (1, 1, 1, 0)
    rows = x if plain else unfold(x, (height, width), stride, padding, threads=threads)
    return matmul(rows, w, bias, activation, residual=residual, threads=threads, out=out)


# --- rows -------------------------------------------------------------------------------------------------------------


def layer_norm(x: Floats, weight: Floats, bias: Floats | None = None, eps: float = 1e-5) -> Floats:
    """``(x − mean) / sqrt(variance + eps) * weight + bias`` of the last axis: [..., width] → [..., width]."""
    return _core.layer_norm(x, weight, bias, eps)


def rms_norm(x: Floats, weight: Floats, eps: float = 1e-6) -> Floats:
    """``x / sqrt(mean(x²) + eps) * weight`` of the last axis: [..., width] → [..., width]."""
    return _core.rms_norm(x, weight, eps)


def rope(
    x: Floats,
    positions: NDArray[np.int32] | None = None,
    frequencies: Floats | None = None,
    *,
    base: float = 10000.0,
    factor: float = 1.0,
) -> Floats:
    """Rotary position embedding (arXiv 2104.09864) of queries or keys: [tokens, heads, head_dim] → the same.

    Channels i and i + n of a head turn by ``positions`` int32 [tokens] (default: 0, 1, 2, …) times ``frequencies``
    float32 [n], as Hugging Face's models pair them; channels from 2·n on stay. ``frequencies`` default to
    ``base ** (−2i / head_dim)`` for all of the head; those of YaRN, NTK or Llama 3 are passed ready, and ``factor`` is
    YaRN's, on sine and cosine.
    """
    if positions is None:
        positions = np.arange(len(x), dtype=np.int32)
    if frequencies is None:
        width = np.shape(x)[-1]
        frequencies = (base ** (-np.arange(0, width - width % 2, 2) / width)).astype(np.float32)
    return _core.rope(x, positions, frequencies, factor)


def gelu(x: Floats, approximate: Literal["none", "tanh"] = "none") -> Floats:
    """``x · Φ(x)``, off by at most 2e-6 for |x| ≤ 9; ``tanh`` is the approximation of the first BERT and GPT."""
    if approximate not in ("none", "tanh"):
        raise ValueError(f"approximate is {approximate!r}; it must be none or tanh")
    return _core.activate(x, "gelu" if approximate == "none" else "gelu_tanh")


def silu(x: Floats) -> Floats:
    """``x / (1 + exp(−x))``."""
    return _core.activate(x, "silu")


def softmax(x: Floats) -> Floats:
    """``exp(x) / Σ exp(x)`` over the last axis, as exact for large values: [..., width] → [..., width]."""
    return _core.softmax(x)


# --- instruction sets -------------------------------------------------------------------------------------------------


def isas() -> list[str]:
    """Instruction sets that this build has and this CPU supports, best first; the first is used unless one is named."""
    return _core.isas()


@contextmanager
def using(isa: str) -> Iterator[None]:
    """Within the block, calls of this thread use the kernels of ``isa``: slower, or as fast, but the same bits.

    Raises ValueError when this build does not have it or this CPU lacks what it needs.
    """
    before = _core.choose_isa(isa)
    try:
        yield
    finally:
        _core.choose_isa(before)

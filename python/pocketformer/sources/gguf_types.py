"""The number formats of GGUF tensors, and their values as float32.

A quantized row is a sequence of blocks; a block holds one or two half-precision factors and its values in a few bits
each. Layouts and arithmetic, each product and sum rounded to float32, are those of ggml (ggml-quants.c), so that the
values are bit by bit those that llama.cpp computes with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..lazy import Float32

Blocks = NDArray[np.uint8]

_K = 256  # values in a block of a K-quant


@dataclass(frozen=True)
class BlockType:
    """``size`` values lie in ``bytes`` bytes; ``decode`` makes float32 ``[blocks, size]`` of ``[blocks, bytes]``."""

    name: str
    size: int
    bytes: int
    decode: Callable[[Blocks], Float32]

    def rows(self, raw: Blocks) -> Float32:
        """Rows ``[n, bytes of a row]`` as float32 ``[n, k]``."""
        values = self.decode(np.ascontiguousarray(raw).reshape(-1, self.bytes))
        return values.reshape(len(raw), -1)


def _plain(dtype: str) -> Callable[[Blocks], Float32]:
    return lambda blocks: blocks.view(dtype).astype(np.float32)


def _bf16(blocks: Blocks) -> Float32:
    return (blocks.view("<u2").astype(np.uint32) << 16).view(np.float32)


def halves(blocks: Blocks, begin: int) -> NDArray[np.float16]:
    """The float16 at byte ``begin`` of each block, as ``[blocks, 1]``."""
    return np.ascontiguousarray(blocks[:, begin : begin + 2]).view("<f2")


def _half(blocks: Blocks, begin: int) -> Float32:
    return halves(blocks, begin).astype(np.float32)


def fields(packed: Blocks, run: int, bits: int) -> Blocks:
    """Fields of ``bits`` each out of every run of ``run`` bytes: the lowest of all bytes, then the next, and so on."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    runs = packed.reshape(len(packed), -1, 1, run)
    return ((runs >> shifts) & np.uint8((1 << bits) - 1)).reshape(len(packed), -1)


def fifth_bits(blocks: Blocks, begin: int) -> Blocks:
    """Bit i of the 32-bit word at byte ``begin``, as 16 or 0, for value i."""
    bits = np.unpackbits(np.ascontiguousarray(blocks[:, begin : begin + 4]), axis=1, bitorder="little")
    return bits << np.uint8(4)


def _signed(values: Blocks, offset: int) -> Float32:
    return values.astype(np.float32) - np.float32(offset)


def _q8_0(blocks: Blocks) -> Float32:
    return _half(blocks, 0) * blocks[:, 2:].view(np.int8).astype(np.float32)


def _q4_0(blocks: Blocks) -> Float32:
    return _half(blocks, 0) * _signed(fields(blocks[:, 2:], 16, 4), 8)


def _q4_1(blocks: Blocks) -> Float32:
    return _half(blocks, 0) * fields(blocks[:, 4:], 16, 4).astype(np.float32) + _half(blocks, 2)


def _q5_0(blocks: Blocks) -> Float32:
    return _half(blocks, 0) * _signed(fields(blocks[:, 6:], 16, 4) | fifth_bits(blocks, 2), 16)


def _q5_1(blocks: Blocks) -> Float32:
    values = fields(blocks[:, 8:], 16, 4) | fifth_bits(blocks, 4)
    return _half(blocks, 0) * values.astype(np.float32) + _half(blocks, 2)


def sixes(packed: Blocks) -> tuple[Blocks, Blocks]:
    """Eight scales and eight minima of 6 bits out of 12 bytes.

    Bytes 0–3 hold scales 0–3 and bytes 4–7 minima 0–3 in their low six bits. Of scale and minimum 4–7 the low four bits
    are the halves of bytes 8–11, and the upper two bits are those that bytes 0–3 and 4–7 have left.
    """
    scale, minimum, low = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    upper = np.uint8(0x30)
    scales = np.concatenate([scale & np.uint8(63), (low & np.uint8(15)) | ((scale >> np.uint8(2)) & upper)], axis=1)
    minima = np.concatenate([minimum & np.uint8(63), (low >> np.uint8(4)) | ((minimum >> np.uint8(2)) & upper)], axis=1)
    return scales, minima


def _scaled_groups(blocks: Blocks, values: Blocks) -> Float32:
    """Q4_K and Q5_K: groups of 32 with factors d·scale and dmin·minimum."""
    scales, minima = sixes(blocks[:, 4:16])
    factor = (_half(blocks, 0) * scales.astype(np.float32))[:, :, None]
    offset = (_half(blocks, 2) * minima.astype(np.float32))[:, :, None]
    grouped = values.reshape(len(blocks), 8, 32).astype(np.float32)
    return (factor * grouped - offset).reshape(len(blocks), _K)


def _q4_k(blocks: Blocks) -> Float32:
    return _scaled_groups(blocks, fields(blocks[:, 16:], 32, 4))


def _q5_k(blocks: Blocks) -> Float32:
    fifth = fields(blocks[:, 16:48], 32, 1)
    return _scaled_groups(blocks, fields(blocks[:, 48:], 32, 4) | (fifth << np.uint8(4)))


def _q6_k(blocks: Blocks) -> Float32:
    values = fields(blocks[:, :128], 64, 4) | (fields(blocks[:, 128:192], 32, 2) << np.uint8(4))
    scales = blocks[:, 192:208].view(np.int8).astype(np.float32)
    factor = (_half(blocks, 208) * scales)[:, :, None]
    return (factor * _signed(values, 32).reshape(len(blocks), 16, 16)).reshape(len(blocks), _K)


TYPES: dict[int, BlockType] = {
    0: BlockType("F32", 1, 4, _plain("<f4")),
    1: BlockType("F16", 1, 2, _plain("<f2")),
    30: BlockType("BF16", 1, 2, _bf16),
    8: BlockType("Q8_0", 32, 34, _q8_0),
    2: BlockType("Q4_0", 32, 18, _q4_0),
    3: BlockType("Q4_1", 32, 20, _q4_1),
    6: BlockType("Q5_0", 32, 22, _q5_0),
    7: BlockType("Q5_1", 32, 24, _q5_1),
    12: BlockType("Q4_K", _K, 144, _q4_k),
    13: BlockType("Q5_K", _K, 176, _q5_k),
    14: BlockType("Q6_K", _K, 210, _q6_k),
}
"""The formats that are read, by their number in the file."""

_OTHERS = {
    **{4: "Q4_2", 5: "Q4_3", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS"},
    **{
        18: "IQ3_XXS",
        19: "IQ1_S",
        20: "IQ4_NL",
        21: "IQ3_S",
        22: "IQ2_S",
        23: "IQ4_XS",
        24: "I8",
        25: "I16",
        26: "I32",
    },
    **{27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4", 41: "Q1_0"},
}
NAMES: dict[int, str] = {**{number: block.name for number, block in TYPES.items()}, **_OTHERS}
"""Every format that GGUF has or had."""

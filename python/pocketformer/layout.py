"""Shapes of packed tensors (docs/format.md, "Tensors of a weight"); their counterpart is csrc/kernels/table.h."""

from __future__ import annotations

from math import gcd

LANES = 16
"""Output channels of one panel."""
GROUP = 4
"""Inputs that an int8 panel keeps side by side: the operand of one 4-way dot product."""
ALIGNMENT = 64
"""Every tensor starts at, and spans, a multiple of this many bytes: one cache line, one AVX-512 register."""
MAX_INT8_K = (2**31 - 1) // (255 * 128)
"""Longest int8 dot product whose int32 sum cannot overflow, whatever the bytes of a file are."""
MAX_SKIPPED_K = 16384
"""Inputs of the widest linear whose zeros the kernels list."""
MAX_PAIR = 128
"""What the magnitudes of two int8 weights side by side, of inputs 2j and 2j + 1, add up to at most where a weight's
``bounded_pairs`` says so: times activations of 255 they fit 16 bits."""
MAX_HEAD_DIM = 256
"""Bounds the stack scratch of the attention kernels."""
MAX_HADAMARD = 128
"""Largest rotation block that the compressor chooses."""
MOST_GROUPS, LONGEST_JOINED = 512, 4096
"""Groups of a channel whose scales are float16, and inputs of one whose values have 5 or 6 bits."""
BLOCK = 256
"""Inputs that share the float16 of a two-level scale."""
BITS = {"f32": 32, "f16": 16, "i8": 8, "i7": 7, "i6": 6, "i5": 5, "i4": 4, "i3": 3}
"""Of a stored number, by format; below 8 it is an index into a codebook."""


def round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def int8_panels(n: int, k: int) -> tuple[int, int, int, int]:
    return (round_up(n, LANES) // LANES, round_up(k, GROUP) // GROUP, LANES, GROUP)


def int4_panels(n: int, k: int) -> tuple[int, int, int, int]:
    return (round_up(n, LANES) // LANES, round_up(k, 2 * GROUP) // (2 * GROUP), LANES, GROUP)


def high_panels(n: int, k: int, bits: int) -> tuple[int, int, int, int]:
    """Of the bits above the fourth: a byte has those of 8 / (bits − 4) groups of four inputs."""
    step = 8 // (bits - 4) * GROUP
    return (round_up(n, LANES) // LANES, round_up(k, step) // step, LANES, GROUP)


def group_panels(n: int, groups: int, itemsize: int) -> tuple[int, int, int]:
    """Of what each group of inputs has a number of; more panels than channels need where lines of 64 bytes ask so."""
    return (table_rows(round_up(n, LANES) // LANES, groups * LANES, itemsize), groups, LANES)


def fp32_panels(n: int, k: int) -> tuple[int, int, int]:
    return (round_up(n, LANES) // LANES, k, LANES)


def fp16_panels(n: int, k: int) -> tuple[int, int, int]:
    """More than channels need where lines of 64 bytes ask so."""
    return group_panels(n, k, 2)


def table_rows(rows: int, width: int, itemsize: int) -> int:
    """Rows of a table stored by rows: the least number ≥ ``rows`` that makes its bytes a multiple of 64."""
    return round_up(rows, ALIGNMENT // gcd(ALIGNMENT, width * itemsize))


def table_columns(width: int, bits: int) -> int:
    """Bytes of a table's row of indices of ``bits`` bits: 16 of them fill 2 · ``bits``."""
    return round_up(width, LANES) // 8 * bits


def codebook_size(bits: int) -> int:
    """Bytes of the codebook of indices of ``bits`` bits."""
    return round_up(1 << bits, ALIGNMENT)


def attention_bias_width(max_length: int) -> int:
    return round_up(2 * max_length - 1, LANES)


def hadamard_block(k: int) -> int:
    """The largest power of two that divides ``k``, at most 128; 0 when there is none above 1."""
    block = min(k & -k, MAX_HADAMARD)
    return block if block > 1 else 0

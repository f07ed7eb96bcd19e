"""Machines as the cost model sees them: common boards by their data sheets, and this one by its probes."""

from __future__ import annotations

from dataclasses import dataclass

from .. import _core


@dataclass(frozen=True)
class Machine:
    """Speeds of one core in billions a second, and what all of its cores share.

    ``int8_peak`` and ``f32_peak`` are multiply-adds a second that the pipes allow, ``pairs_peak`` those of int8 where
    the weights' pairs are bounded; the shares are what the product's inner loops reach of them, in attention what
    scores and P·V reach. ``element_share`` is how well the phases without products use the pipes. ``cache_bytes`` is
    the largest cache; ``bandwidth`` is GB/s that reads from memory reach.
    """

    name: str
    isa: str
    cores: int
    int8_peak: float
    f32_peak: float
    pairs_peak: float
    int8_share: float
    f32_share: float
    attention_share: float
    element_share: float
    cache_bytes: int
    bandwidth: float
    call_seconds: float
    barrier_seconds: float


@dataclass(frozen=True)
class Core:
    """A core: kernels, multiply-adds a cycle (docs/boards.md, issue limits) and shares of them."""

    isa: str
    int8: float
    f32: float
    int8_share: float
    f32_share: float
    attention_share: float
    element_share: float


MIB = 1 << 20
PAIRED = ("avx2",)
"""ISAs that have a product of their own for bounded pairs: ``kBoundedPairs`` of csrc/isa."""
# int8, fp32 and attention shares are simulated: docs/boards.md. fp32 per cycle: 128-bit multiply-adds, one on A53 and
# A72, two on A76 (ARM, Cortex-A76 Software Optimization Guide). Element shares are assumed: an in-order core waits for
# its loads. Gracemont: assumed, one 256-bit VPDPBUSD or multiply-add a cycle, and shares near the measured machine's.
_A53 = Core("neon", 16 / 3, 4, 0.86, 0.42, 0.55, 0.5)
_A72 = Core("neon", 8, 4, 0.99, 0.99, 0.85, 1.0)
_A76 = Core("dotprod", 32, 8, 0.96, 0.99, 0.85, 1.0)
_GRACEMONT = Core("avxvnni", 32, 8, 0.90, 0.90, 0.60, 1.0)


def _board(name: str, core: Core, cores: int, ghz: float, cache: int, bandwidth: float) -> Machine:
    # A call from Python takes 20 µs and a barrier 1.5 µs on a core of 3.7 GHz that does four things at once; boards are
    # slower by clock and, roughly, by half the width.
    slower = 3.7 / ghz * (4 if core is _A53 else 2)
    return Machine(
        name,
        core.isa,
        cores,
        core.int8 * ghz,
        core.f32 * ghz,
        core.int8 * ghz,  # no board's kernels have another product of bounded pairs
        core.int8_share,
        core.f32_share,
        core.attention_share,
        core.element_share,
        cache,
        bandwidth,
        20e-6 * slower,
        1.5e-6 * slower,
    )


# Clocks, cores and caches: Raspberry Pi documentation ("Processors"), Rockchip RK3588 data sheet, Intel ARK. Bandwidth
# is what reads reach, not what the memory's data sheet says.
BOARDS = {
    # LPDDR2-900, 32 bits: 3.6 GB/s by data sheet, of which 60% assumed.
    "pi3": _board("Raspberry Pi 3B", _A53, 4, 1.2, MIB // 2, 2.2),
    # STREAM copy 5.5 GB/s (sci-pi.org.uk).
    "pi4": _board("Raspberry Pi 4B", _A72, 4, 1.8, MIB, 5.5),
    # llama.cpp reads 9.8 to 10.6 GB/s of weights while decoding (ggml-org/llama.cpp issue 26484).
    "pi5": _board("Raspberry Pi 5", _A76, 4, 2.4, 2 * MIB, 10.0),
    # 17 to 22 GB/s (turingpi.com, RK1 benchmarks). The four big cores; the little ones would make them wait.
    "rk3588": _board("RK3588, its four A76", _A76, 4, 2.4, 3 * MIB, 17.0),
    # DDR5-4800, one channel: 38.4 GB/s by data sheet, of which 60% assumed. 2.9 GHz on four cores within 6 W assumed.
    "n100": _board("Intel N100", _GRACEMONT, 4, 2.9, 6 * MIB, 23.0),
}


def machine(name: str) -> Machine:
    """The board ``name``, or for ``this`` this machine. Raises ValueError for a name that is not known."""
    if name == "this":
        return this_machine()
    if name not in BOARDS:
        raise ValueError(f"board is {name!r}; use one of {', '.join(BOARDS)}, or this for this machine")
    return BOARDS[name]


def this_machine(isa: str = "", milliseconds: int = 50) -> Machine:
    """This machine, its peaks and bandwidth probed now; takes about ten times ``milliseconds``."""
    isa = isa or _core.Kernels().isa
    int8 = _core.probe_int8(isa, milliseconds)
    pairs = _core.probe_int8(isa, milliseconds, bounded_pairs=True) if isa in PAIRED else int8
    arm = {"neon": _A72, "dotprod": _A76, "i8mm": _A76}.get(isa, _GRACEMONT)
    return Machine(
        "this machine",
        isa,
        _core.default_threads(),
        int8,
        _core.probe_f32(isa, milliseconds),
        max(pairs, int8),
        0.94 if isa == "avx512vnni" else arm.int8_share,
        0.82 if isa == "avx512vnni" else arm.f32_share,
        0.78 if isa == "avx512vnni" else arm.attention_share,
        1.0,
        _core.largest_cache() or MIB,
        _core.probe_bandwidth(8 * milliseconds),
        20e-6,
        1.5e-6,
    )

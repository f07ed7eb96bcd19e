// The contract an ISA header fulfils. It defines one struct `Isa` in an anonymous namespace; the kernels are templates
// over it (kernels/*.h) and are compiled once per ISA by isa/kernels_<name>.cpp with that ISA's flags. Everything lives
// in the anonymous namespace, so that no symbol built for one CPU can be picked by the linker for another.
//
// Types: F = 16 floats, I = 16 int32, B = 16 groups of 4 bytes, M = 16 booleans ("virtual" vectors: one register on
// AVX-512, two on AVX2, four on NEON, the compiler's own in the scalar build).
//
//   kName, kActivationOffset      "avx2"; 0 or 128 (docs/format.md): what dot4's first operand is biased by
//   kGemmRows, kGemmPanels        register tile of the int8 product, rows × panels of 16 channels, with its reason
//   kGemmRowsF32                  rows of the fp32 product's tile
//   kGemmRowsI4                   rows of the int4 product's tile while it looks weights up
//   kNarrowSums, kGemmRowsNarrow  products with indices of 4 to 6 bits are added in 16 bits, in a tile of so many rows
//   kRowPanels                    panels that one row of it takes at once
//   kTotalsInRegisters            that tile's floats have registers beside its integers
//   kLookedUpRows                 rows from which an int4 panel is looked up beforehand; 0: never
//   kGemmStepF32                  values of k that the fp32 product takes in one step; 1: fma after fma
//   kGemmGroups                   k-groups of four that the int8 product takes in one step; 1: dot4 after dot4
//   kAttentionChains              keys or channels that attention takes at once; divides 16
//   kBoundedPairs                 weights of bounded pairs are multiplied by dot4 of Isa::Bounded, in a tile of its
//                                 kGemmRows, with rows that its broadcast_b offsets by its kActivationOffset
//   kAttentionProducts            attention takes scores by product and values by dot4_elements
//
//   load store zero set1          F from/to float*, unaligned
//   load_partial store_partial    the first n of 16 lanes (0 ≤ n ≤ 16), zeros elsewhere; touches no memory beyond them
//   load_i8                       16 signed bytes → F
//   load_f16                      the bits of 16 finite fp16 → F, exact, subnormal ones too
//   add sub mul div sqrt          IEEE, one rounding each
//   fma(a, b, c)                  a·b + c with one rounding, on every ISA
//   max min abs                   finite operands; of two zeros either
//   round                         to nearest even, |x| < 2^31
//   scale2(x, n)                  x·2^n, n integral in [−126, 126], result normal
//   to_i32 to_f32                 nearest even
//   xor_lanes<D>(x)               lane i ← lane i^D, D ∈ {1, 2, 4, 8}
//   alternate<D>()                F: −1 in lanes with bit D, else +1
//   reduce_add                    fixed tree: lanes i+8, then i+4, i+2, i+1
//   reduce_max, reduce_add_i32    exact, any order
//   transpose(F (&)[16])          16 × 16
//   store_sums4(p, a, b, c, d)    sums of all lanes of four I → 4 int32; exact, any order
//   set1_i32 zero_i32 add_i32 load_i32 shift_left<S>
//   shift_right<S>                of non-negative I
//   between(lo, hi, j)            M: lo ≤ j < hi;   select(m, a, b)
//   pin(x)                        an empty statement that has x in a register: stops g++ 12 from preparing x for its
//                                 use after a loop inside the loop, which spills the accumulators
//   load_b broadcast_b            64 bytes; 4 bytes repeated 16 times
//   store_b
//   repeat16 lookup(table, i)     16 bytes repeated 4 times; table[i] for indices 0 … 15
//   low_nibbles high_nibbles      of each byte
//   dot4(acc, a, w)               acc + Σ of 4 products a·w; a = activation + offset, w in −127…127; exact
//   dot4_p(acc, a, w)             the same with a in 0…127, no offset
//   dot2_narrow(acc, w, a)        only where kNarrowSums, S being two sums of 16 bits in each lane: acc + two products
//                                 w·a each, w in 0…63, a in −127…127
//   multiply_narrow(w, a)         likewise, the products alone;   add_narrow(a, b)
//   widen_narrow(acc)             I: the sum of the two;   widen_narrow(acc, ones) with the ones of 16 bits that takes
//   join<S, M>(i, upper)          likewise: i | upper·2^S & M in each byte, S being negative for the other way; the
//   bits
//                                 that M leaves come from the same byte
//   product<R>(acc[R], a, lda, w, groups)  only where kGemmGroups > 1: adds the product of R rows and one panel over
//                                 `groups`, a multiple of kGemmGroups
//   product_f32<R>(acc[R], a, lda, w, k)   only where kGemmStepF32 > 1: the same in fp32, k a multiple of kGemmStepF32
//   dot4_elements<N>(acc[N], p, w) only where kAttentionProducts: acc[i] + Σ p · the i-th four bytes of w, 16 in all
//   pack4(a, b, c, d)             low bytes of four I side by side in each group → B
//   store_bytes(p, x)             low byte of 16 lanes → 16 bytes
//   pack64(a, b, c, d)            64 lanes within −127…127 one after the other → B
//   bias(x)                       adds kActivationOffset to every byte of B
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

// Kernels must be inlined into the unit compiled for their ISA.
#define POCKETFORMER_INLINE inline __attribute__((always_inline))
// The same for a lambda: late inlining would leave the arrays it captures in memory.
#define POCKETFORMER_LAMBDA __attribute__((always_inline))

namespace {

// fn(0), fn(1), … fn(N − 1) with the index as a constant.
template <int... Is, class Fn>
POCKETFORMER_INLINE void unroll(std::integer_sequence<int, Is...>, Fn&& fn) {
  (fn(std::integral_constant<int, Is>{}), ...);
}
template <int N, class Fn>
POCKETFORMER_INLINE void unroll(Fn&& fn) {
  unroll(std::make_integer_sequence<int, N>{}, fn);
}

}  // namespace

// SDOT (armv8.2 and later): 16 products an instruction. Shared by dotprod and i8mm.
#pragma once

#include "isa/neon.h"

namespace {

struct DotProd : Neon {
  // 4 rows of 4 registers + 4 activations of 4 k-groups + 12 for weights in flight, of 32. Six rows would save loads,
  // which are not the limit, and g++ 12 then moves accumulators about.
  static constexpr int kGemmRows = 4;
  static constexpr int kGemmPanels = 1;
  static constexpr int kGemmGroups = 4;

  static POCKETFORMER_INLINE I dot4(I acc, B x, B w) { return each<I>(vdotq_s32, acc, w, x); }
  static POCKETFORMER_INLINE I dot4_p(I acc, B x, B w) { return dot4(acc, x, w); }

  // Activations by element: a broadcasting load takes a slot of the vector pipes that the products need.
  template <int Rows>
  static POCKETFORMER_INLINE void product(I (&acc)[Rows], const uint8_t* a, size_t lda, const int8_t* w, int groups) {
    for (; groups > 0; groups -= 4, a += 16, w += 256) {
      int8x16_t x[Rows];
      unroll<Rows>([&](auto r) POCKETFORMER_LAMBDA { x[r] = vreinterpretq_s8_u8(vld1q_u8(a + r * lda)); });
      unroll<16>([&](auto i) POCKETFORMER_LAMBDA {
        constexpr int group = i / 4, q = i % 4;
        const int8x16_t weight = vld1q_s8(w + 16 * i);
        unroll<Rows>([&](auto r) POCKETFORMER_LAMBDA {
          int32x4_t& sum = quarter<q>(acc[r]);
          sum = vdotq_laneq_s32(sum, weight, x[r], group);
        });
      });
    }
  }
};

}  // namespace

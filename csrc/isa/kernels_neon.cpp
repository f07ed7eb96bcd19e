// armv8.0 (Cortex-A53, A72): no integer dot product; 8-bit products widen to 16 bits and are added in pairs.
#include "isa/neon.h"

namespace {

struct Isa : Neon {
  static constexpr const char* kName = "neon";
  // 2 rows of 8 registers of half sums + 4 activations + 8 for weights and products in flight, of 32.
  static constexpr int kGemmRows = 2;
  static constexpr int kGemmPanels = 1;
  static constexpr int kGemmGroups = 2;

  // Two products of values within ±127 sum to at most 32,258 and fit 16 bits; the third would not.
  static POCKETFORMER_INLINE I dot4(I acc, B x, B w) {
    return each<I>(
        [](int32x4_t s, int8x16_t p, int8x16_t q) POCKETFORMER_LAMBDA {
          return vpadalq_s16(s, vpaddq_s16(vmull_s8(vget_low_s8(p), vget_low_s8(q)), vmull_high_s8(p, q)));
        },
        acc, x, w);
  }
  static POCKETFORMER_INLINE I dot4_p(I acc, B x, B w) { return dot4(acc, x, w); }

  // The same byte of two k-groups first, then neighbours: three instructions for 16 products instead of dot4's four. A
  // channel's sum is in two lanes until the end.
  template <int Rows>
  static POCKETFORMER_INLINE void product(I (&acc)[Rows], const uint8_t* a, size_t lda, const int8_t* w, int groups) {
    int32x4_t half[8 * Rows];  // [channel/2][row]
    unroll<8 * Rows>([&](auto i) POCKETFORMER_LAMBDA { half[i] = vdupq_n_s32(0); });
    for (; groups > 0; groups -= 2, a += 8) {
      int8x16_t x[2 * Rows];
      unroll<2 * Rows>([&](auto i) POCKETFORMER_LAMBDA { x[i] = broadcast_b(a + (i / 2) * lda + 4 * (i % 2)).a; });
      unroll<2>([&](auto h) POCKETFORMER_LAMBDA {
        // Eight channels at a time: 4·Rows chains hide the latencies.
        int8x16_t w0[2], w1[2];
        unroll<2>([&](auto q) POCKETFORMER_LAMBDA { w0[q] = vld1q_s8(w + 16 * q), w1[q] = vld1q_s8(w + 64 + 16 * q); });
        w += h == 0 ? 32 : 96;
        int16x8_t pair[4 * Rows];  // [channel/2][row]
        unroll<2 * Rows>([&](auto i) POCKETFORMER_LAMBDA {
          constexpr int q = i / Rows, r = i % Rows, at = 2 * q * Rows + r;
          pair[at] = vmull_s8(vget_low_s8(x[2 * r]), vget_low_s8(w0[q]));
          pair[at + Rows] = vmull_high_s8(x[2 * r], w0[q]);
        });
        unroll<2 * Rows>([&](auto i) POCKETFORMER_LAMBDA {
          constexpr int q = i / Rows, r = i % Rows, at = 2 * q * Rows + r;
          pair[at] = vmlal_s8(pair[at], vget_low_s8(x[2 * r + 1]), vget_low_s8(w1[q]));
          pair[at + Rows] = vmlal_high_s8(pair[at + Rows], x[2 * r + 1], w1[q]);
        });
        // Keeps the halves apart: g++ 12 would load all weights first and spill sums.
        __asm__("" : "+r"(w), "+w"(pair[0]));
        unroll<4 * Rows>(
            [&](auto i) POCKETFORMER_LAMBDA { half[4 * Rows * h + i] = vpadalq_s16(half[4 * Rows * h + i], pair[i]); });
      });
    }
    unroll<4 * Rows>([&](auto i) POCKETFORMER_LAMBDA {
      constexpr int q = i % 4, r = i / 4;
      int32x4_t& sum = quarter<q>(acc[r]);
      sum = vaddq_s32(sum, vpaddq_s32(half[2 * q * Rows + r], half[(2 * q + 1) * Rows + r]));
    });
  }
};

}  // namespace

#include "kernels/export.h"
POCKETFORMER_EXPORT_KERNELS(neon)

// SMMLA (armv8.6 and optional before): two rows by two channels by eight values of k, 32 products an instruction.
#include "isa/dotprod.h"

namespace {

struct Isa : DotProd {
  static constexpr const char* kName = "i8mm";
  // 3 pairs of rows × 8 registers of sums + 3 of activations + 4 of weights, of 32.
  static constexpr int kGemmRows = 6;
  static constexpr int kGemmGroups = 2;

  // Two k-groups of the packed layout interleave to eight consecutive values of two channels: 8 more instructions a
  // step, shared by all rows. An odd last row is paired with itself.
  template <int Rows>
  static POCKETFORMER_INLINE void product(I (&acc)[Rows], const uint8_t* a, size_t lda, const int8_t* w, int groups) {
    constexpr int kPairs = (Rows + 1) / 2;
    int32x4_t sum[8 * kPairs];  // [channel/2][pair]: row 0 of two channels, row 1 of them
    unroll<8 * kPairs>([&](auto i) POCKETFORMER_LAMBDA { sum[i] = vdupq_n_s32(0); });
    for (; groups > 0; groups -= 2, a += 8, w += 128) {
      int8x16_t x[kPairs];
      unroll<kPairs>([&](auto p) POCKETFORMER_LAMBDA {
        constexpr int second = 2 * p + 1 < Rows ? 2 * p + 1 : 2 * p;
        x[p] = vreinterpretq_s8_u8(vcombine_u8(vld1_u8(a + 2 * p * lda), vld1_u8(a + second * lda)));
      });
      unroll<4>([&](auto q) POCKETFORMER_LAMBDA {
        const int32x4_t w0 = vreinterpretq_s32_s8(vld1q_s8(w + 16 * q)),
                        w1 = vreinterpretq_s32_s8(vld1q_s8(w + 64 + 16 * q));
        const int8x16_t lo = vreinterpretq_s8_s32(vzip1q_s32(w0, w1)), hi = vreinterpretq_s8_s32(vzip2q_s32(w0, w1));
        unroll<kPairs>([&](auto p) POCKETFORMER_LAMBDA {
          constexpr int at = 2 * q * kPairs + p;
          sum[at] = vmmlaq_s32(sum[at], x[p], lo);
          sum[at + kPairs] = vmmlaq_s32(sum[at + kPairs], x[p], hi);
        });
      });
    }
    unroll<4 * Rows>([&](auto i) POCKETFORMER_LAMBDA {
      constexpr int q = i % 4, r = i / 4, at = 2 * q * kPairs + r / 2;
      const int64x2_t lo = vreinterpretq_s64_s32(sum[at]), hi = vreinterpretq_s64_s32(sum[at + kPairs]);
      int32x4_t& total = quarter<q>(acc[r]);
      total = vaddq_s32(total, vreinterpretq_s32_s64(r % 2 == 0 ? vzip1q_s64(lo, hi) : vzip2q_s64(lo, hi)));
    });
  }
};

}  // namespace

#include "kernels/export.h"
POCKETFORMER_EXPORT_KERNELS(i8mm)

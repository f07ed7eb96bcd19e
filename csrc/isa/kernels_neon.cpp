// armv8.0 (Cortex-A53, A72): no integer dot product; 8-bit products widen to 16 bits and are added in pairs.
#include "isa/neon.h"

namespace {

struct Isa : Neon {
  static constexpr const char* kName = "neon";
  static constexpr int kGemmRows = 2;
  static constexpr int kGemmPanels = 1;
  static constexpr int kGemmGroups = 4;

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
    if (groups == 0) return;
    static_assert(Rows == 1 || Rows % 2 == 0);
    alignas(16) int32_t sums[2][8 * Rows];
    for (int h = 0; h < 2; ++h) {
      if constexpr (Rows == 1) product_row(sums[h], a, w + 32 * h, groups);
      unroll<Rows / 2>([&](auto p) POCKETFORMER_LAMBDA {
        product_rows(sums[h] + 16 * p, a + 2 * p * lda, a + (2 * p + 1) * lda, w + 32 * h, groups / 4);
      });
    }
    add_halves<Rows>(acc, sums);
  }

  static constexpr bool kAttentionProducts = true;
  template <int N>
  static POCKETFORMER_INLINE void dot4_elements(I (&acc)[N], B p, const int8_t* w) {
    int32x4_t x = vreinterpretq_s32_s8(vld1q_s8(w));
    unroll<N>([&](auto i) POCKETFORMER_LAMBDA {
      const int8x16_t v = vreinterpretq_s8_s32(vdupq_laneq_s32(x, i));
      I& sum = acc[i];
      int16x8_t lo[4], hi[4];
      unroll<4>([&](auto q) POCKETFORMER_LAMBDA {
        lo[q] = vmull_s8(vget_low_s8(quarter<q>(p)), vget_low_s8(v)), hi[q] = vmull_high_s8(quarter<q>(p), v);
      });
      // Four chains at a time, each step of all before the next: in order none waits for the one before.
      __asm__(""
              : "+w"(lo[0]), "+w"(lo[1]), "+w"(lo[2]), "+w"(lo[3]), "+w"(hi[0]), "+w"(hi[1]), "+w"(hi[2]), "+w"(hi[3]));
      unroll<4>([&](auto q) POCKETFORMER_LAMBDA { lo[q] = vpaddq_s16(lo[q], hi[q]); });
      __asm__("" : "+w"(lo[0]), "+w"(lo[1]), "+w"(lo[2]), "+w"(lo[3]));
      unroll<4>([&](auto q) POCKETFORMER_LAMBDA { quarter<q>(sum) = vpadalq_s16(quarter<q>(sum), lo[q]); });
      // Nor the next channel before: two at a time are more than the registers hold.
      __asm__("" : "+w"(x), "+w"(sum.a), "+w"(sum.b), "+w"(sum.c), "+w"(sum.d));
    });
  }

  // One row and half a panel.
  static void product_row(int32_t* sums, const uint8_t* a, const int8_t* w, int groups) {
    int32x4_t half[4];
    unroll<4>([&](auto i) POCKETFORMER_LAMBDA { half[i] = vdupq_n_s32(0); });
    for (; groups > 0; groups -= 2, a += 8, w += 128) {
      const int8x16_t x0 = broadcast_b(a).a, x1 = broadcast_b(a + 4).a;
      unroll<2>([&](auto q) POCKETFORMER_LAMBDA {
        const int8x16_t w0 = vld1q_s8(w + 16 * q), w1 = vld1q_s8(w + 64 + 16 * q);
        const int16x8_t lo = vmlal_s8(vmull_s8(vget_low_s8(x0), vget_low_s8(w0)), vget_low_s8(x1), vget_low_s8(w1));
        const int16x8_t hi = vmlal_high_s8(vmull_high_s8(x0, w0), x1, w1);
        half[2 * q] = vpadalq_s16(half[2 * q], lo);
        half[2 * q + 1] = vpadalq_s16(half[2 * q + 1], hi);
      });
    }
    unroll<2>([&](auto q) POCKETFORMER_LAMBDA { vst1q_s32(sums + 4 * q, vpaddq_s32(half[2 * q], half[2 * q + 1])); });
  }

  static void product_rows(int32_t* sums, const uint8_t* row0, const uint8_t* row1, const int8_t* w, int steps);
};

// Two rows and half a panel, four k-groups a step, in the order that the in-order Cortex-A53 wants: eight chains, so
// that none waits for the six cycles of the one before, and the next step's loads among the products, each as soon as
// its registers are free. LD1 of two registers and LD4R of four take long enough not to finish before the products that
// were issued before them, which the core would make them wait for.
//   v0–v7 half sums [row][channel/2], v8–v15 products, v16–v23 weights [k-group][channel/4], v24–v31 rows' [k-group]
#define SMULL(p, x, w) "smull v" #p ".8h, v" #x ".8b, v" #w ".8b\n"
#define SMULL2(p, x, w) "smull2 v" #p ".8h, v" #x ".16b, v" #w ".16b\n"
#define SMLAL(p, x, w) "smlal v" #p ".8h, v" #x ".8b, v" #w ".8b\n"
#define SMLAL2(p, x, w) "smlal2 v" #p ".8h, v" #x ".16b, v" #w ".16b\n"
#define SADALP(s, p) "sadalp v" #s ".4s, v" #p ".8h\n"
#define WEIGHTS(v, next, at) "ld1 {v" #v ".16b, v" #next ".16b}, [%[" #at "]]\n"
#define ROW0(at) "ld4r {v24.4s, v25.4s, v26.4s, v27.4s}, [%[" #at "]]\n"
#define ROW1(at) "ld4r {v28.4s, v29.4s, v30.4s, v31.4s}, [%[" #at "]]\n"
#define ADVANCE(at, bytes) "add %[" #at "], %[" #at "], #" #bytes "\n"
// Two k-groups with activations x0, x1 of row 0 and y0, y1 of row 1, weights w0, u0 and w1, u1; what is loaded after
// the first products, between the rows' second ones, and after them.
// clang-format off
#define TWO_GROUPS(x0, x1, y0, y1, w0, u0, w1, u1, first, between, second)        \
  SMULL(8, x0, w0) SMULL2(9, x0, w0) SMULL(10, x0, u0) SMULL2(11, x0, u0)         \
  SMULL(12, y0, w0) SMULL2(13, y0, w0) SMULL(14, y0, u0) SMULL2(15, y0, u0) first \
  SMLAL(8, x1, w1) SMLAL2(9, x1, w1) SMLAL(10, x1, u1) SMLAL2(11, x1, u1) between \
  SMLAL(12, y1, w1) SMLAL2(13, y1, w1) SMLAL(14, y1, u1) SMLAL2(15, y1, u1) second \
  SADALP(0, 8) SADALP(1, 9) SADALP(2, 10) SADALP(3, 11)                           \
  SADALP(4, 12) SADALP(5, 13) SADALP(6, 14) SADALP(7, 15)
// clang-format on
#define STEP(w0, w1, w2, w3, a0, a1)                                                       \
  TWO_GROUPS(24, 25, 28, 29, 16, 17, 18, 19, WEIGHTS(16, 17, w0), "", WEIGHTS(18, 19, w1)) \
  TWO_GROUPS(26, 27, 30, 31, 20, 21, 22, 23, WEIGHTS(20, 21, w2), ROW0(a0), ROW1(a1) WEIGHTS(22, 23, w3))
#define LAST_STEP                                        \
  TWO_GROUPS(24, 25, 28, 29, 16, 17, 18, 19, "", "", "") \
  TWO_GROUPS(26, 27, 30, 31, 20, 21, 22, 23, "", "", "")
#define ZERO(v) "movi v" #v ".4s, #0\n"
#define FOLD(v, lo, hi) "addp v" #v ".4s, v" #lo ".4s, v" #hi ".4s\n"

__attribute__((noinline)) void Isa::product_rows(int32_t* sums, const uint8_t* row0, const uint8_t* row1,
                                                 const int8_t* w, int steps) {
  // Pointers for two steps, because LD1 has no offset and each addition takes half a cycle.
  const int8_t *w0 = w, *w1 = w + 64, *w2 = w + 128, *w3 = w + 192, *u0 = w + 512, *u1 = w + 576, *u2 = w + 640,
               *u3 = w + 704;
  const uint8_t *x0 = row0, *x1 = row1, *y0 = row0 + 32, *y1 = row1 + 32;
  int pairs = (steps - 1) / 2;
  const int odd = (steps - 1) % 2;
  __asm__ volatile(
      ZERO(0) ZERO(1) ZERO(2) ZERO(3) ZERO(4) ZERO(5) ZERO(6) ZERO(7)
      ROW0(x0) ROW1(x1) WEIGHTS(16, 17, w0) WEIGHTS(18, 19, w1) WEIGHTS(20, 21, w2) WEIGHTS(22, 23, w3)
      ADVANCE(w0, 256) ADVANCE(w1, 256) ADVANCE(w2, 256) ADVANCE(w3, 256) ADVANCE(x0, 16) ADVANCE(x1, 16)
      "cbz %w[odd], 1f\n"
      STEP(w0, w1, w2, w3, x0, x1)
      ADVANCE(w0, 256) ADVANCE(w1, 256) ADVANCE(w2, 256) ADVANCE(w3, 256) ADVANCE(x0, 16) ADVANCE(x1, 16)
      ADVANCE(u0, 256) ADVANCE(u1, 256) ADVANCE(u2, 256) ADVANCE(u3, 256) ADVANCE(y0, 16) ADVANCE(y1, 16)
      "1: cbz %w[pairs], 3f\n"
      "2:\n"
      STEP(w0, w1, w2, w3, x0, x1)
      STEP(u0, u1, u2, u3, y0, y1)
      ADVANCE(w0, 512) ADVANCE(w1, 512) ADVANCE(w2, 512) ADVANCE(w3, 512) ADVANCE(x0, 32) ADVANCE(x1, 32)
      ADVANCE(u0, 512) ADVANCE(u1, 512) ADVANCE(u2, 512) ADVANCE(u3, 512) ADVANCE(y0, 32) ADVANCE(y1, 32)
      "subs %w[pairs], %w[pairs], #1\n"
      "b.ne 2b\n"
      "3:\n"
      LAST_STEP
      FOLD(0, 0, 1) FOLD(1, 2, 3) FOLD(2, 4, 5) FOLD(3, 6, 7)
      "stp q0, q1, [%[sums]]\n stp q2, q3, [%[sums], #32]\n"
      : [w0] "+r"(w0), [w1] "+r"(w1), [w2] "+r"(w2), [w3] "+r"(w3), [x0] "+r"(x0), [x1] "+r"(x1), [u0] "+r"(u0),
        [u1] "+r"(u1), [u2] "+r"(u2), [u3] "+r"(u3), [y0] "+r"(y0), [y1] "+r"(y1), [pairs] "+r"(pairs)
      : [odd] "r"(odd), [sums] "r"(sums)
      : "memory", "cc", "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8", "v9", "v10", "v11", "v12", "v13", "v14",
        "v15", "v16", "v17", "v18", "v19", "v20", "v21", "v22", "v23", "v24", "v25", "v26", "v27", "v28", "v29", "v30",
        "v31");
}

}  // namespace

#include "kernels/export.h"
POCKETFORMER_EXPORT_KERNELS(neon)

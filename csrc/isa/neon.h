// NEON as every 64-bit ARM core has it (armv8.0): four registers are one virtual vector. kernels_neon.cpp,
// kernels_dotprod.cpp and kernels_i8mm.cpp derive `Isa` from this base and add the integer products.
#pragma once

#include <arm_neon.h>

#include "isa/primitives.h"

namespace {

struct Neon {
  // Named members, not arrays: g++ 12 keeps an array of arrays in memory.
  struct F {
    float32x4_t a, b, c, d;
  };
  struct I {
    int32x4_t a, b, c, d;
  };
  struct B {
    int8x16_t a, b, c, d;
  };
  struct M {
    uint32x4_t a, b, c, d;  // all ones or all zeros in each lane
  };

  static constexpr int kActivationOffset = 0;
  static constexpr int kAttentionChains = 4;  // 16 registers of accumulators + 4 of the query + broadcasts, of 32
  static constexpr bool kBoundedPairs = false;
  // 5 rows of 4 registers + 5 of activations + 4 of weights, of 32: 20 chains hide a latency of 7 on two pipes.
  static constexpr int kGemmRowsF32 = 5;
  static constexpr int kGemmStepF32 = 4;
  // 4 × 4 registers of sums + 4 weights + an activation, the codebook and the mask, of 32.
  static constexpr int kGemmRowsI4 = 4;
  static constexpr int kRowPanels = 4;
  static constexpr bool kNarrowSums = false;
  static constexpr bool kTotalsInRegisters = false;
  static constexpr int kLookedUpRows = 4;

  // fn on each quarter of the operands.
  template <class R, class Fn, class... X>
  static POCKETFORMER_INLINE R each(Fn fn, const X&... x) {
    return {fn(x.a...), fn(x.b...), fn(x.c...), fn(x.d...)};
  }

  static POCKETFORMER_INLINE F load(const float* p) {
    return {vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)};
  }
  static POCKETFORMER_INLINE void store(float* p, F x) {
    vst1q_f32(p, x.a);
    vst1q_f32(p + 4, x.b);
    vst1q_f32(p + 8, x.c);
    vst1q_f32(p + 12, x.d);
  }
  static POCKETFORMER_INLINE F zero() { return set1(0.0f); }
  static POCKETFORMER_INLINE F set1(float x) {
    const float32x4_t v = vdupq_n_f32(x);
    return {v, v, v, v};
  }
  static POCKETFORMER_INLINE F load_partial(const float* p, int n) {
    if (n == 16) return load(p);
    alignas(16) float lanes[16] = {};
    for (int i = 0; i < n; ++i) lanes[i] = p[i];
    return load(lanes);
  }
  static POCKETFORMER_INLINE void store_partial(float* p, F x, int n) {
    if (n == 16) return store(p, x);
    alignas(16) float lanes[16];
    store(lanes, x);
    for (int i = 0; i < n; ++i) p[i] = lanes[i];
  }
  static POCKETFORMER_INLINE F load_i8(const int8_t* p) {
    const int8x16_t x = vld1q_s8(p);
    const int16x8_t lo = vmovl_s8(vget_low_s8(x)), hi = vmovl_high_s8(x);
    return to_f32({vmovl_s16(vget_low_s16(lo)), vmovl_high_s16(lo), vmovl_s16(vget_low_s16(hi)), vmovl_high_s16(hi)});
  }
  static POCKETFORMER_INLINE F load_f16(const uint16_t* p) {
    const float16x8_t lo = vreinterpretq_f16_u16(vld1q_u16(p)), hi = vreinterpretq_f16_u16(vld1q_u16(p + 8));
    return {vcvt_f32_f16(vget_low_f16(lo)), vcvt_high_f32_f16(lo), vcvt_f32_f16(vget_low_f16(hi)),
            vcvt_high_f32_f16(hi)};
  }

  template <int Rows>
  static POCKETFORMER_INLINE void product_f32(F (&acc)[Rows], const float* a, size_t lda, const float* w, int k) {
    if (k == 0) return;
    alignas(16) float sums[16 * Rows];
    unroll<Rows>([&](auto r) POCKETFORMER_LAMBDA { store(sums + 16 * r, acc[r]); });
    product_rows_f32<Rows>(sums, a, lda, w, k);
    unroll<Rows>([&](auto r) POCKETFORMER_LAMBDA { acc[r] = load(sums + 16 * r); });
  }

  // sum += w · x[Lane], and a load; volatile, so that every compiler keeps the order.
  template <int Lane>
  static POCKETFORMER_INLINE void multiply_add(float32x4_t& sum, float32x4_t w, float32x4_t x) {
    __asm__ volatile("fmla %0.4s, %1.4s, %2.s[%3]" : "+w"(sum) : "w"(w), "w"(x), "i"(Lane));
  }
  template <int At>
  static POCKETFORMER_INLINE void load_at(float32x4_t& x, const float* p) {
    __asm__ volatile("ldr %q0, [%1, %2]" : "=w"(x) : "r"(p), "i"(At));
  }

  // Four values of k a step. Activations by element: a broadcasting load takes a slot of the vector pipes that the
  // products need. A register is loaded anew after the last product that reads it and not needed for fifteen more.
  // Out of line, and its sums in memory: g++ 12 then keeps every vector in a register.
  template <int Rows>
  __attribute__((noinline)) static void product_rows_f32(float* sums, const float* a, size_t lda, const float* w,
                                                         int k) {
    __asm__ volatile("" : : : "memory");  // the loads below are not seen by the compiler
    const float* rows[Rows];
    float32x4_t sum[4 * Rows], weight[4], x[Rows];
    unroll<4 * Rows>([&](auto i) POCKETFORMER_LAMBDA { sum[i] = vld1q_f32(sums + 4 * i); });
    unroll<4>([&](auto q) POCKETFORMER_LAMBDA { load_at<16 * q>(weight[q], w); });
    unroll<Rows>([&](auto r) POCKETFORMER_LAMBDA { rows[r] = a + r * lda, load_at<0>(x[r], rows[r]); });
    const auto step = [&](auto more) POCKETFORMER_LAMBDA {
      unroll<16>([&](auto i) POCKETFORMER_LAMBDA {
        constexpr int q = i % 4;
        unroll<Rows>([&](auto r) POCKETFORMER_LAMBDA {
          multiply_add<i / 4>(sum[4 * r + q], weight[q], x[r]);
          if constexpr (more && i == 15) load_at<16>(x[r], rows[r]);
        });
        if constexpr (more || i < 12) load_at<64 + 16 * i>(weight[q], w);
      });
    };
    for (; k > 4; k -= 4) {
      step(std::true_type{});
      w += 64;
      unroll<Rows>([&](auto r) POCKETFORMER_LAMBDA { rows[r] += 4; });
    }
    step(std::false_type{});
    unroll<4 * Rows>([&](auto i) POCKETFORMER_LAMBDA { vst1q_f32(sums + 4 * i, sum[i]); });
  }

  static POCKETFORMER_INLINE F add(F x, F y) { return each<F>(vaddq_f32, x, y); }
  static POCKETFORMER_INLINE F sub(F x, F y) { return each<F>(vsubq_f32, x, y); }
  static POCKETFORMER_INLINE F mul(F x, F y) { return each<F>(vmulq_f32, x, y); }
  static POCKETFORMER_INLINE F div(F x, F y) { return each<F>(vdivq_f32, x, y); }
  static POCKETFORMER_INLINE F sqrt(F x) { return each<F>(vsqrtq_f32, x); }
  static POCKETFORMER_INLINE F fma(F x, F y, F z) { return each<F>(vfmaq_f32, z, x, y); }
  static POCKETFORMER_INLINE F max(F x, F y) { return each<F>(vmaxq_f32, x, y); }
  static POCKETFORMER_INLINE F min(F x, F y) { return each<F>(vminq_f32, x, y); }
  static POCKETFORMER_INLINE F abs(F x) { return each<F>(vabsq_f32, x); }
  static POCKETFORMER_INLINE F round(F x) { return each<F>(vrndnq_f32, x); }
  static POCKETFORMER_INLINE F scale2(F x, F n) {  // n into the exponent
    return each<F>([](float32x4_t v, int32x4_t e)
                       POCKETFORMER_LAMBDA { return vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(v), e)); },
                   x, shift_left<23>(to_i32(n)));
  }
  static POCKETFORMER_INLINE I to_i32(F x) { return each<I>(vcvtnq_s32_f32, x); }
  static POCKETFORMER_INLINE F to_f32(I x) { return each<F>(vcvtq_f32_s32, x); }

  template <int D>
  static POCKETFORMER_INLINE F xor_lanes(F x) {
    if constexpr (D == 1) return each<F>(vrev64q_f32, x);
    if constexpr (D == 2)
      return {vextq_f32(x.a, x.a, 2), vextq_f32(x.b, x.b, 2), vextq_f32(x.c, x.c, 2), vextq_f32(x.d, x.d, 2)};
    if constexpr (D == 4) return {x.b, x.a, x.d, x.c};
    return {x.c, x.d, x.a, x.b};
  }
  template <int D>
  static POCKETFORMER_INLINE F alternate() {
    constexpr auto s = [](int i) { return (i & D) != 0 ? -1.0f : 1.0f; };
    const float32x4_t lanes = {s(0), s(1), s(2), s(3)};  // D = 1, 2
    if constexpr (D < 4) return {lanes, lanes, lanes, lanes};
    return {vdupq_n_f32(s(0)), vdupq_n_f32(s(4)), vdupq_n_f32(s(8)), vdupq_n_f32(s(12))};
  }
  static POCKETFORMER_INLINE float reduce_add(F x) {
    const float32x4_t s = vaddq_f32(vaddq_f32(x.a, x.c), vaddq_f32(x.b, x.d));
    return vpadds_f32(vadd_f32(vget_low_f32(s), vget_high_f32(s)));
  }
  static POCKETFORMER_INLINE float reduce_max(F x) {
    return vmaxvq_f32(vmaxq_f32(vmaxq_f32(x.a, x.b), vmaxq_f32(x.c, x.d)));
  }
  static POCKETFORMER_INLINE int32_t reduce_add_i32(I x) {
    return vaddvq_s32(vaddq_s32(vaddq_s32(x.a, x.b), vaddq_s32(x.c, x.d)));
  }

  static POCKETFORMER_INLINE void store_sums4(int32_t* p, I x, I y, I z, I w) {
    const auto fold = [](const I& v)
                          POCKETFORMER_LAMBDA { return vaddq_s32(vaddq_s32(v.a, v.b), vaddq_s32(v.c, v.d)); };
    vst1q_s32(p, vpaddq_s32(vpaddq_s32(fold(x), fold(y)), vpaddq_s32(fold(z), fold(w))));
  }

  template <int Q, class T>
  static POCKETFORMER_INLINE auto& quarter(T& x) {
    if constexpr (Q == 0) return x.a;
    if constexpr (Q == 1) return x.b;
    if constexpr (Q == 2) return x.c;
    if constexpr (Q == 3) return x.d;
  }
  // Adds sums[half of the panel][row][8 channels].
  template <int Rows>
  static POCKETFORMER_INLINE void add_halves(I (&acc)[Rows], const int32_t (&sums)[2][8 * Rows]) {
    unroll<4 * Rows>([&](auto i) POCKETFORMER_LAMBDA {
      constexpr int r = i / 4, q = i % 4;
      int32x4_t& sum = quarter<q>(acc[r]);
      sum = vaddq_s32(sum, vld1q_s32(sums[q / 2] + 8 * r + q % 2 * 4));
    });
  }

  // Quarter J of rows 4R … 4R+3 becomes quarter R of rows 4J … 4J+3.
  template <int R, int J>
  static POCKETFORMER_INLINE void transpose4(F (&from)[16], F (&to)[16]) {
    const auto q = [&](int i) POCKETFORMER_LAMBDA { return quarter<J>(from[4 * R + i]); };
    const auto pairs = [](float32x4_t x) POCKETFORMER_LAMBDA { return vreinterpretq_f64_f32(x); };
    const float64x2_t e0 = pairs(vtrn1q_f32(q(0), q(1))), o0 = pairs(vtrn2q_f32(q(0), q(1)));
    const float64x2_t e2 = pairs(vtrn1q_f32(q(2), q(3))), o2 = pairs(vtrn2q_f32(q(2), q(3)));
    quarter<R>(to[4 * J]) = vreinterpretq_f32_f64(vzip1q_f64(e0, e2));
    quarter<R>(to[4 * J + 1]) = vreinterpretq_f32_f64(vzip1q_f64(o0, o2));
    quarter<R>(to[4 * J + 2]) = vreinterpretq_f32_f64(vzip2q_f64(e0, e2));
    quarter<R>(to[4 * J + 3]) = vreinterpretq_f32_f64(vzip2q_f64(o0, o2));
  }
  static POCKETFORMER_INLINE void transpose(F (&r)[16]) {
    F t[16];
    unroll<16>([&](auto i) POCKETFORMER_LAMBDA { transpose4<i / 4, i % 4>(r, t); });
    unroll<16>([&](auto i) POCKETFORMER_LAMBDA { r[i] = t[i]; });
  }

  static POCKETFORMER_INLINE void pin(F& x) { __asm__("" : "+w"(x.a), "+w"(x.b), "+w"(x.c), "+w"(x.d)); }
  static POCKETFORMER_INLINE void pin(I& x) { __asm__("" : "+w"(x.a), "+w"(x.b), "+w"(x.c), "+w"(x.d)); }
  static POCKETFORMER_INLINE void pin(B& x) { __asm__("" : "+w"(x.a), "+w"(x.b), "+w"(x.c), "+w"(x.d)); }

  static POCKETFORMER_INLINE I set1_i32(int32_t x) {
    const int32x4_t v = vdupq_n_s32(x);
    return {v, v, v, v};
  }
  static POCKETFORMER_INLINE I zero_i32() { return set1_i32(0); }
  static POCKETFORMER_INLINE I add_i32(I x, I y) { return each<I>(vaddq_s32, x, y); }
  static POCKETFORMER_INLINE I load_i32(const int32_t* p) {
    return {vld1q_s32(p), vld1q_s32(p + 4), vld1q_s32(p + 8), vld1q_s32(p + 12)};
  }
  static POCKETFORMER_INLINE I negate_i32(I x) { return each<I>(vnegq_s32, x); }
  template <int S>
  static POCKETFORMER_INLINE I shift_left(I x) {
    return {vshlq_n_s32(x.a, S), vshlq_n_s32(x.b, S), vshlq_n_s32(x.c, S), vshlq_n_s32(x.d, S)};
  }
  template <int S>
  static POCKETFORMER_INLINE I shift_right(I x) {
    return {vshrq_n_s32(x.a, S), vshrq_n_s32(x.b, S), vshrq_n_s32(x.c, S), vshrq_n_s32(x.d, S)};
  }
  static POCKETFORMER_INLINE M between(I lo, I hi, int32_t j) {
    const int32x4_t x = vdupq_n_s32(j);
    return each<M>([=](int32x4_t l, int32x4_t h)
                       POCKETFORMER_LAMBDA { return vandq_u32(vcleq_s32(l, x), vcgtq_s32(h, x)); },
                   lo, hi);
  }
  static POCKETFORMER_INLINE F select(M m, F x, F y) { return each<F>(vbslq_f32, m, x, y); }

  static POCKETFORMER_INLINE B load_b(const void* p) {
    const auto* q = static_cast<const int8_t*>(p);
    return {vld1q_s8(q), vld1q_s8(q + 16), vld1q_s8(q + 32), vld1q_s8(q + 48)};
  }
  static POCKETFORMER_INLINE void store_b(void* p, B x) {
    auto* q = static_cast<int8_t*>(p);
    vst1q_s8(q, x.a);
    vst1q_s8(q + 16, x.b);
    vst1q_s8(q + 32, x.c);
    vst1q_s8(q + 48, x.d);
  }
  static POCKETFORMER_INLINE B broadcast_b(const void* p) {
    int32_t x;
    std::memcpy(&x, p, 4);
    const int8x16_t v = vreinterpretq_s8_s32(vdupq_n_s32(x));
    return {v, v, v, v};
  }
  static POCKETFORMER_INLINE B repeat16(const void* p) {
    const int8x16_t x = vld1q_s8(static_cast<const int8_t*>(p));
    return {x, x, x, x};
  }
  static POCKETFORMER_INLINE B low_nibbles(B x) { return each<B>(vandq_s8, x, repeated(15)); }
  static POCKETFORMER_INLINE B high_nibbles(B x) {
    return each<B>(
        [](int8x16_t q) POCKETFORMER_LAMBDA { return vreinterpretq_s8_u8(vshrq_n_u8(vreinterpretq_u8_s8(q), 4)); }, x);
  }
  static POCKETFORMER_INLINE B lookup(B table, B i) {
    return each<B>([](int8x16_t t, int8x16_t at) POCKETFORMER_LAMBDA { return vqtbl1q_s8(t, vreinterpretq_u8_s8(at)); },
                   table, i);
  }
  static POCKETFORMER_INLINE B repeated(int8_t x) {
    const int8x16_t v = vdupq_n_s8(x);
    return {v, v, v, v};
  }
  static POCKETFORMER_INLINE B pack4(I x, I y, I z, I w) {
    return each<B>(
        [](int32x4_t p, int32x4_t q, int32x4_t r, int32x4_t s) POCKETFORMER_LAMBDA {
          return vreinterpretq_s8_s32(vsliq_n_s32(vsliq_n_s32(vsliq_n_s32(p, q, 8), r, 16), s, 24));
        },
        x, y, z, w);
  }
  static POCKETFORMER_INLINE int8x16_t low_bytes(I x) {
    const auto low_halves = [](int32x4_t lo, int32x4_t hi) POCKETFORMER_LAMBDA {
      return vreinterpretq_s8_s16(vuzp1q_s16(vreinterpretq_s16_s32(lo), vreinterpretq_s16_s32(hi)));
    };
    return vuzp1q_s8(low_halves(x.a, x.b), low_halves(x.c, x.d));
  }
  static POCKETFORMER_INLINE void store_bytes(void* p, I x) { vst1q_s8(static_cast<int8_t*>(p), low_bytes(x)); }
  static POCKETFORMER_INLINE B pack64(I x, I y, I z, I w) {
    return {low_bytes(x), low_bytes(y), low_bytes(z), low_bytes(w)};
  }
  static POCKETFORMER_INLINE B bias(B x) { return x; }
};

}  // namespace

// AVX-512 (F, BW, DQ, VL) with VNNI: one register is one virtual vector.
#pragma once

#include <immintrin.h>

#include "isa/primitives.h"

namespace {

struct Isa {
  using F = __m512;
  using I = __m512i;
  using B = __m512i;
  using M = __mmask16;

  static constexpr const char* kName = "avx512vnni";
  static constexpr int kActivationOffset = 128;  // vpdpbusd multiplies unsigned by signed
  // 10 × 2 accumulators: enough independent chains for a latency of 4–5, one load per 1.7 products, and row addresses
  // that fit the general registers. 11 to 14 rows are up to 8% slower on Zen 4.
  static constexpr int kGemmRows = 10;
  static constexpr int kGemmPanels = 2;
  static constexpr int kGemmRowsF32 = 14;
  // 6 × 2 sums + as many totals + 4 weights + the codebook, of 32.
  static constexpr int kGemmRowsI4 = 6;
  static constexpr int kRowPanels = 4;
  static constexpr bool kNarrowSums = false;
  static constexpr bool kTotalsInRegisters = true;
  static constexpr int kLookedUpRows = 0;
  static constexpr int kGemmStepF32 = 1;
  static constexpr bool kAttentionProducts = false;
  static constexpr int kGemmGroups = 1;
  static constexpr bool kBoundedPairs = false;
  static constexpr int kAttentionChains = 8;  // hide the dot product's latency and leave registers for the query

  static POCKETFORMER_INLINE F load(const float* p) { return _mm512_loadu_ps(p); }
  static POCKETFORMER_INLINE void store(float* p, F x) { _mm512_storeu_ps(p, x); }
  static POCKETFORMER_INLINE F zero() { return _mm512_setzero_ps(); }
  static POCKETFORMER_INLINE F set1(float x) { return _mm512_set1_ps(x); }
  static POCKETFORMER_INLINE M first(int n) { return static_cast<M>((1u << n) - 1); }
  static POCKETFORMER_INLINE F load_partial(const float* p, int n) { return _mm512_maskz_loadu_ps(first(n), p); }
  static POCKETFORMER_INLINE void store_partial(float* p, F x, int n) { _mm512_mask_storeu_ps(p, first(n), x); }
  static POCKETFORMER_INLINE F load_i8(const int8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }
  static POCKETFORMER_INLINE F load_f16(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }

  static POCKETFORMER_INLINE F add(F a, F b) { return _mm512_add_ps(a, b); }
  static POCKETFORMER_INLINE F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static POCKETFORMER_INLINE F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static POCKETFORMER_INLINE F div(F a, F b) { return _mm512_div_ps(a, b); }
  static POCKETFORMER_INLINE F sqrt(F a) { return _mm512_sqrt_ps(a); }
  static POCKETFORMER_INLINE F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static POCKETFORMER_INLINE F max(F a, F b) { return _mm512_max_ps(a, b); }
  static POCKETFORMER_INLINE F min(F a, F b) { return _mm512_min_ps(a, b); }
  static POCKETFORMER_INLINE F abs(F a) { return _mm512_abs_ps(a); }
  static POCKETFORMER_INLINE F round(F a) { return _mm512_roundscale_ps(a, 0); }
  static POCKETFORMER_INLINE F scale2(F x, F n) { return _mm512_scalef_ps(x, n); }
  static POCKETFORMER_INLINE I to_i32(F a) { return _mm512_cvtps_epi32(a); }
  static POCKETFORMER_INLINE F to_f32(I a) { return _mm512_cvtepi32_ps(a); }

  template <int D>
  static POCKETFORMER_INLINE F xor_lanes(F x) {
    if constexpr (D == 1) return _mm512_permute_ps(x, 0b10110001);
    if constexpr (D == 2) return _mm512_permute_ps(x, 0b01001110);
    if constexpr (D == 4) return _mm512_shuffle_f32x4(x, x, 0b10110001);
    return _mm512_shuffle_f32x4(x, x, 0b01001110);
  }
  template <int D>
  static POCKETFORMER_INLINE F alternate() {
    constexpr int kBits = D == 1 ? 0xAAAA : D == 2 ? 0xCCCC : D == 4 ? 0xF0F0 : 0xFF00;
    return _mm512_mask_mov_ps(set1(1.0f), static_cast<M>(kBits), set1(-1.0f));
  }
  static POCKETFORMER_INLINE float reduce_add(F x) {
    x = add(x, xor_lanes<8>(x));
    x = add(x, xor_lanes<4>(x));
    x = add(x, xor_lanes<2>(x));
    return _mm512_cvtss_f32(add(x, xor_lanes<1>(x)));
  }
  static POCKETFORMER_INLINE float reduce_max(F x) { return _mm512_reduce_max_ps(x); }
  static POCKETFORMER_INLINE int32_t reduce_add_i32(I x) { return _mm512_reduce_add_epi32(x); }

  static POCKETFORMER_INLINE void store_sums4(int32_t* p, I a, I b, I c, I d) {
    const I ab = _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
    const I cd = _mm512_add_epi32(_mm512_unpacklo_epi64(c, d), _mm512_unpackhi_epi64(c, d));
    const F x = _mm512_castsi512_ps(ab), y = _mm512_castsi512_ps(cd);  // to take even and odd lanes of both
    const I sums = _mm512_add_epi32(_mm512_castps_si512(_mm512_shuffle_ps(x, y, 0b10001000)),
                                    _mm512_castps_si512(_mm512_shuffle_ps(x, y, 0b11011101)));
    const __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(sums), _mm512_extracti64x4_epi64(sums, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                     _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1)));
  }

  static POCKETFORMER_INLINE void transpose(F (&r)[16]) {
    F t[16];
    for (int i = 0; i < 16; i += 4) {
      const __m512d a = _mm512_castps_pd(_mm512_unpacklo_ps(r[i], r[i + 1]));
      const __m512d b = _mm512_castps_pd(_mm512_unpackhi_ps(r[i], r[i + 1]));
      const __m512d c = _mm512_castps_pd(_mm512_unpacklo_ps(r[i + 2], r[i + 3]));
      const __m512d d = _mm512_castps_pd(_mm512_unpackhi_ps(r[i + 2], r[i + 3]));
      t[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
      t[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
      t[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
      t[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
    }
    for (int i = 0; i < 4; ++i) {
      const F a = _mm512_shuffle_f32x4(t[i], t[i + 4], 0x88), b = _mm512_shuffle_f32x4(t[i + 8], t[i + 12], 0x88);
      const F c = _mm512_shuffle_f32x4(t[i], t[i + 4], 0xDD), d = _mm512_shuffle_f32x4(t[i + 8], t[i + 12], 0xDD);
      r[i] = _mm512_shuffle_f32x4(a, b, 0x88);
      r[i + 4] = _mm512_shuffle_f32x4(c, d, 0x88);
      r[i + 8] = _mm512_shuffle_f32x4(a, b, 0xDD);
      r[i + 12] = _mm512_shuffle_f32x4(c, d, 0xDD);
    }
  }

  static POCKETFORMER_INLINE void pin(F& x) { __asm__("" : "+v"(x)); }
  static POCKETFORMER_INLINE void pin(I& x) { __asm__("" : "+v"(x)); }

  static POCKETFORMER_INLINE I set1_i32(int32_t x) { return _mm512_set1_epi32(x); }
  static POCKETFORMER_INLINE I zero_i32() { return _mm512_setzero_si512(); }
  static POCKETFORMER_INLINE I add_i32(I a, I b) { return _mm512_add_epi32(a, b); }
  static POCKETFORMER_INLINE I load_i32(const int32_t* p) { return _mm512_loadu_si512(p); }
  static POCKETFORMER_INLINE I negate_i32(I a) { return _mm512_sub_epi32(_mm512_setzero_si512(), a); }
  template <int S>
  static POCKETFORMER_INLINE I shift_left(I a) {
    return _mm512_slli_epi32(a, S);
  }
  template <int S>
  static POCKETFORMER_INLINE I shift_right(I a) {
    return _mm512_srli_epi32(a, S);
  }
  static POCKETFORMER_INLINE M between(I lo, I hi, int32_t j) {
    const I x = set1_i32(j);
    return _mm512_mask_cmpgt_epi32_mask(_mm512_cmple_epi32_mask(lo, x), hi, x);
  }
  static POCKETFORMER_INLINE F select(M m, F a, F b) { return _mm512_mask_mov_ps(b, m, a); }

  static POCKETFORMER_INLINE B load_b(const void* p) { return _mm512_loadu_si512(p); }
  static POCKETFORMER_INLINE void store_b(void* p, B x) { _mm512_storeu_si512(p, x); }
  static POCKETFORMER_INLINE B broadcast_b(const void* p) {
    int32_t x;
    std::memcpy(&x, p, 4);
    return _mm512_set1_epi32(x);
  }
  static POCKETFORMER_INLINE B repeat16(const void* p) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128(static_cast<const __m128i*>(p)));
  }
  static POCKETFORMER_INLINE B low_nibbles(B x) { return _mm512_and_si512(x, _mm512_set1_epi8(15)); }
  static POCKETFORMER_INLINE B high_nibbles(B x) { return low_nibbles(_mm512_srli_epi16(x, 4)); }
  static POCKETFORMER_INLINE B lookup(B table, B i) { return _mm512_shuffle_epi8(table, i); }
  static POCKETFORMER_INLINE I dot4(I acc, B a, B w) { return _mm512_dpbusd_epi32(acc, a, w); }
  static POCKETFORMER_INLINE I dot4_p(I acc, B a, B w) { return _mm512_dpbusd_epi32(acc, a, w); }
  static POCKETFORMER_INLINE B pack4(I a, I b, I c, I d) {
    const I low = _mm512_set1_epi32(0xFF);
    const I ab = _mm512_or_si512(_mm512_and_si512(a, low), _mm512_slli_epi32(_mm512_and_si512(b, low), 8));
    const I cd = _mm512_or_si512(_mm512_and_si512(c, low), _mm512_slli_epi32(d, 8));
    return _mm512_or_si512(ab, _mm512_slli_epi32(cd, 16));
  }
  static POCKETFORMER_INLINE B pack64(I a, I b, I c, I d) {
    // Undoes the packs' 128-bit lanes.
    const I order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const I packed = _mm512_packs_epi16(_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d));
    return _mm512_permutexvar_epi32(order, packed);
  }
  static POCKETFORMER_INLINE B bias(B x) { return _mm512_xor_si512(x, _mm512_set1_epi8(-128)); }
  static POCKETFORMER_INLINE void store_bytes(void* p, I x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(x));
  }
};

}  // namespace

// AVX2 + FMA: two registers are one virtual vector. Shared by plain AVX2 and AVX-VNNI, which differ in dot4 alone
// (kernels_avx2.cpp and kernels_avxvnni.cpp derive `Isa` from this base).
#pragma once

#include <immintrin.h>

#include "isa/primitives.h"

namespace {

struct Avx2 {
  struct F {
    __m256 lo, hi;
  };
  struct I {
    __m256i lo, hi;
  };
  using B = I;
  using S = I;  // two sums of 16 bits in each lane
  using M = I;  // all ones or all zeros in each lane

  static constexpr int kGemmGroups = 1;
  static constexpr int kAttentionChains = 4;  // 8 registers of accumulators of 16; 8 chains would spill
  static constexpr bool kBoundedPairs = false;

  static POCKETFORMER_INLINE F load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
  static POCKETFORMER_INLINE void store(float* p, F x) {
    _mm256_storeu_ps(p, x.lo);
    _mm256_storeu_ps(p + 8, x.hi);
  }
  static POCKETFORMER_INLINE F zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
  static POCKETFORMER_INLINE F set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
  static POCKETFORMER_INLINE I lane_index() {
    return {_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15)};
  }
  static POCKETFORMER_INLINE M first(int n) { return less(lane_index(), set1_i32(n)); }
  static POCKETFORMER_INLINE F load_partial(const float* p, int n) {
    const M m = first(n);
    return {_mm256_maskload_ps(p, m.lo), _mm256_maskload_ps(p + 8, m.hi)};
  }
  static POCKETFORMER_INLINE void store_partial(float* p, F x, int n) {
    const M m = first(n);
    _mm256_maskstore_ps(p, m.lo, x.lo);
    _mm256_maskstore_ps(p + 8, m.hi, x.hi);
  }
  static POCKETFORMER_INLINE F load_i8(const int8_t* p) {
    const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(x)),
            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(x, 8)))};
  }
  static POCKETFORMER_INLINE F load_f16(const uint16_t* p) {
    const auto* q = reinterpret_cast<const __m128i*>(p);
    return {_mm256_cvtph_ps(_mm_loadu_si128(q)), _mm256_cvtph_ps(_mm_loadu_si128(q + 1))};
  }

  static POCKETFORMER_INLINE F add(F a, F b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
  static POCKETFORMER_INLINE F sub(F a, F b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
  static POCKETFORMER_INLINE F mul(F a, F b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
  static POCKETFORMER_INLINE F div(F a, F b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
  static POCKETFORMER_INLINE F sqrt(F a) { return {_mm256_sqrt_ps(a.lo), _mm256_sqrt_ps(a.hi)}; }
  static POCKETFORMER_INLINE F fma(F a, F b, F c) {
    return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
  }
  static POCKETFORMER_INLINE F max(F a, F b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
  static POCKETFORMER_INLINE F min(F a, F b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
  static POCKETFORMER_INLINE F abs(F a) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(sign, a.lo), _mm256_andnot_ps(sign, a.hi)};
  }
  static POCKETFORMER_INLINE F round(F a) { return {_mm256_round_ps(a.lo, 8), _mm256_round_ps(a.hi, 8)}; }
  static POCKETFORMER_INLINE F scale2(F x, F n) {
    const I shifted = shift_left<23>(to_i32(n));  // into the exponent
    const auto scale = [](__m256 v, __m256i e) {
      return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(v), e));
    };
    return {scale(x.lo, shifted.lo), scale(x.hi, shifted.hi)};
  }
  static POCKETFORMER_INLINE I to_i32(F a) { return {_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi)}; }
  static POCKETFORMER_INLINE F to_f32(I a) { return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)}; }

  template <int D>
  static POCKETFORMER_INLINE F xor_lanes(F x) {
    if constexpr (D == 1) return {_mm256_permute_ps(x.lo, 0b10110001), _mm256_permute_ps(x.hi, 0b10110001)};
    if constexpr (D == 2) return {_mm256_permute_ps(x.lo, 0b01001110), _mm256_permute_ps(x.hi, 0b01001110)};
    if constexpr (D == 4) return {_mm256_permute2f128_ps(x.lo, x.lo, 1), _mm256_permute2f128_ps(x.hi, x.hi, 1)};
    return {x.hi, x.lo};
  }
  template <int D>
  static POCKETFORMER_INLINE F alternate() {
    if constexpr (D == 8) return {_mm256_set1_ps(1.0f), _mm256_set1_ps(-1.0f)};
    constexpr auto s = [](int i) { return (i & D) != 0 ? -1.0f : 1.0f; };
    const __m256 v = _mm256_setr_ps(s(0), s(1), s(2), s(3), s(4), s(5), s(6), s(7));
    return {v, v};
  }
  static POCKETFORMER_INLINE float reduce_add(F x) {
    const __m256 a = _mm256_add_ps(x.lo, x.hi);
    const __m256 b = _mm256_add_ps(a, _mm256_permute2f128_ps(a, a, 1));
    const __m256 c = _mm256_add_ps(b, _mm256_permute_ps(b, 0b01001110));
    return _mm256_cvtss_f32(_mm256_add_ps(c, _mm256_permute_ps(c, 0b10110001)));
  }
  static POCKETFORMER_INLINE float reduce_max(F x) {
    const __m256 a = _mm256_max_ps(x.lo, x.hi);
    const __m256 b = _mm256_max_ps(a, _mm256_permute2f128_ps(a, a, 1));
    const __m256 c = _mm256_max_ps(b, _mm256_permute_ps(b, 0b01001110));
    return _mm256_cvtss_f32(_mm256_max_ps(c, _mm256_permute_ps(c, 0b10110001)));
  }
  static POCKETFORMER_INLINE int32_t reduce_add_i32(I x) {
    const __m256i a = _mm256_add_epi32(x.lo, x.hi);
    __m128i b = _mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    b = _mm_add_epi32(b, _mm_shuffle_epi32(b, 0b01001110));
    return _mm_cvtsi128_si32(_mm_add_epi32(b, _mm_shuffle_epi32(b, 0b10110001)));
  }

  static POCKETFORMER_INLINE void store_sums4(int32_t* p, I a, I b, I c, I d) {
    const auto pairs = [](__m256i x, __m256i y) {  // two sums of x and two of y, of each 128-bit half
      return _mm256_add_epi32(_mm256_unpacklo_epi64(x, y), _mm256_unpackhi_epi64(x, y));
    };
    const auto fold = [](I x) { return _mm256_add_epi32(x.lo, x.hi); };
    const __m256i ab = pairs(fold(a), fold(b)), cd = pairs(fold(c), fold(d));
    const __m256i sums = _mm256_hadd_epi32(ab, cd);
    const __m128i total = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), total);
  }

  static POCKETFORMER_INLINE void transpose8(__m256 (&r)[8]) {
    __m256 t[8];
    for (int i = 0; i < 8; i += 4) {
      const __m256d a = _mm256_castps_pd(_mm256_unpacklo_ps(r[i], r[i + 1]));
      const __m256d b = _mm256_castps_pd(_mm256_unpackhi_ps(r[i], r[i + 1]));
      const __m256d c = _mm256_castps_pd(_mm256_unpacklo_ps(r[i + 2], r[i + 3]));
      const __m256d d = _mm256_castps_pd(_mm256_unpackhi_ps(r[i + 2], r[i + 3]));
      t[i] = _mm256_castpd_ps(_mm256_unpacklo_pd(a, c));
      t[i + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(a, c));
      t[i + 2] = _mm256_castpd_ps(_mm256_unpacklo_pd(b, d));
      t[i + 3] = _mm256_castpd_ps(_mm256_unpackhi_pd(b, d));
    }
    for (int i = 0; i < 4; ++i) {
      r[i] = _mm256_permute2f128_ps(t[i], t[i + 4], 0x20);
      r[i + 4] = _mm256_permute2f128_ps(t[i], t[i + 4], 0x31);
    }
  }
  static POCKETFORMER_INLINE void transpose(F (&r)[16]) {
    __m256 q[4][8];
    for (int i = 0; i < 8; ++i) {
      q[0][i] = r[i].lo;
      q[1][i] = r[i].hi;
      q[2][i] = r[i + 8].lo;
      q[3][i] = r[i + 8].hi;
    }
    for (auto& block : q) transpose8(block);
    for (int i = 0; i < 8; ++i) {
      r[i] = {q[0][i], q[2][i]};
      r[i + 8] = {q[1][i], q[3][i]};
    }
  }

  static POCKETFORMER_INLINE void pin(F& x) { __asm__("" : "+x"(x.lo), "+x"(x.hi)); }
  static POCKETFORMER_INLINE void pin(I& x) { __asm__("" : "+x"(x.lo), "+x"(x.hi)); }

  static POCKETFORMER_INLINE I set1_i32(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
  static POCKETFORMER_INLINE I zero_i32() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
  static POCKETFORMER_INLINE I add_i32(I a, I b) {
    return {_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)};
  }
  static POCKETFORMER_INLINE I load_i32(const int32_t* p) { return load_b(p); }
  static POCKETFORMER_INLINE I negate_i32(I a) {
    const __m256i z = _mm256_setzero_si256();
    return {_mm256_sub_epi32(z, a.lo), _mm256_sub_epi32(z, a.hi)};
  }
  template <int S>
  static POCKETFORMER_INLINE I shift_left(I a) {
    return {_mm256_slli_epi32(a.lo, S), _mm256_slli_epi32(a.hi, S)};
  }
  template <int S>
  static POCKETFORMER_INLINE I shift_right(I a) {
    return {_mm256_srli_epi32(a.lo, S), _mm256_srli_epi32(a.hi, S)};
  }
  static POCKETFORMER_INLINE M less(I a, I b) {
    return {_mm256_cmpgt_epi32(b.lo, a.lo), _mm256_cmpgt_epi32(b.hi, a.hi)};
  }
  static POCKETFORMER_INLINE M between(I lo, I hi, int32_t j) {
    const M below = less(lo, set1_i32(j + 1)), above = less(set1_i32(j), hi);
    return {_mm256_and_si256(below.lo, above.lo), _mm256_and_si256(below.hi, above.hi)};
  }
  static POCKETFORMER_INLINE F select(M m, F a, F b) {
    return {_mm256_blendv_ps(b.lo, a.lo, _mm256_castsi256_ps(m.lo)),
            _mm256_blendv_ps(b.hi, a.hi, _mm256_castsi256_ps(m.hi))};
  }

  static POCKETFORMER_INLINE B load_b(const void* p) {
    const auto* q = static_cast<const __m256i*>(p);
    return {_mm256_loadu_si256(q), _mm256_loadu_si256(q + 1)};
  }
  static POCKETFORMER_INLINE void store_b(void* p, B x) {
    auto* q = static_cast<__m256i*>(p);
    _mm256_storeu_si256(q, x.lo);
    _mm256_storeu_si256(q + 1, x.hi);
  }
  static POCKETFORMER_INLINE B broadcast_b(const void* p) {
    int32_t x;
    std::memcpy(&x, p, 4);
    return set1_i32(x);
  }
  static POCKETFORMER_INLINE B repeat16(const void* p) {
    const __m256i x = _mm256_broadcastsi128_si256(_mm_loadu_si128(static_cast<const __m128i*>(p)));
    return {x, x};
  }
  static POCKETFORMER_INLINE B low_nibbles(B x) {
    const __m256i low = _mm256_set1_epi8(15);
    return {_mm256_and_si256(x.lo, low), _mm256_and_si256(x.hi, low)};
  }
  static POCKETFORMER_INLINE B high_nibbles(B x) {
    return low_nibbles({_mm256_srli_epi16(x.lo, 4), _mm256_srli_epi16(x.hi, 4)});
  }
  template <int S, int Mask>
  static POCKETFORMER_INLINE B join(B nibbles, B upper) {
    const auto join_half = [](__m256i low, __m256i high) {
      if constexpr (S < 0) high = _mm256_srli_epi16(high, -S);
      if constexpr (S > 0) high = _mm256_slli_epi16(high, S);
      return _mm256_or_si256(low, _mm256_and_si256(high, _mm256_set1_epi8(Mask)));
    };
    return {join_half(nibbles.lo, upper.lo), join_half(nibbles.hi, upper.hi)};
  }
  static POCKETFORMER_INLINE B lookup(B table, B i) {
    return {_mm256_shuffle_epi8(table.lo, i.lo), _mm256_shuffle_epi8(table.hi, i.hi)};
  }
  static POCKETFORMER_INLINE B pack4(I a, I b, I c, I d) {
    const auto pack = [](__m256i a, __m256i b, __m256i c, __m256i d) {
      const __m256i low = _mm256_set1_epi32(0xFF);
      const __m256i ab = _mm256_or_si256(_mm256_and_si256(a, low), _mm256_slli_epi32(_mm256_and_si256(b, low), 8));
      const __m256i cd = _mm256_or_si256(_mm256_and_si256(c, low), _mm256_slli_epi32(d, 8));
      return _mm256_or_si256(ab, _mm256_slli_epi32(cd, 16));
    };
    return {pack(a.lo, b.lo, c.lo, d.lo), pack(a.hi, b.hi, c.hi, d.hi)};
  }
  static POCKETFORMER_INLINE B pack64(I a, I b, I c, I d) {
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);  // undoes the packs' 128-bit lanes
    const auto pack = [&](I x, I y) {
      const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(x.lo, x.hi), _mm256_packs_epi32(y.lo, y.hi));
      return _mm256_permutevar8x32_epi32(bytes, order);
    };
    return {pack(a, b), pack(c, d)};
  }
  static POCKETFORMER_INLINE void store_bytes(void* p, I x) {
    // The low byte of each lane to the front of its 128-bit half, then the four groups of four together.
    const __m256i order = _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,  //
                                           0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
    const __m256i lo = _mm256_shuffle_epi8(x.lo, order), hi = _mm256_shuffle_epi8(x.hi, order);
    const __m128i a = _mm_unpacklo_epi32(_mm256_castsi256_si128(lo), _mm256_extracti128_si256(lo, 1));
    const __m128i b = _mm_unpacklo_epi32(_mm256_castsi256_si128(hi), _mm256_extracti128_si256(hi, 1));
    _mm_storeu_si128(static_cast<__m128i*>(p), _mm_unpacklo_epi64(a, b));
  }
};

}  // namespace

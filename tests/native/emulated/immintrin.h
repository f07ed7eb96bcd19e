// Stands before the compiler's own header where AVX-512 and AVX-VNNI kernels are compiled for CPUs without them
// (tests/kernels/test_emulated.py): their intrinsics become functions of SIMDe, on AVX2.
#pragma once

#include_next <immintrin.h>

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>

#include <cmath>
#include <cstring>

namespace emulated {

template <class To, class From>
inline To bits(From from) {
  To to;
  static_assert(sizeof to == sizeof from);
  std::memcpy(&to, &from, sizeof to);
  return to;
}
struct Floats {
  float v[16];
};
struct Integers {
  int32_t v[16];
};
template <class R, class Fn>
inline R lanes(Fn fn) {
  R r;
  for (int i = 0; i < 16; ++i) r.v[i] = fn(i);
  return r;
}
inline Floats floats(__m512 x) { return bits<Floats>(x); }
inline Integers integers(__m512i x) { return bits<Integers>(x); }

// What SIMDe lacks.
inline __m512 cvtepi32_ps(__m512i x) {
  return bits<__m512>(lanes<Floats>([a = integers(x)](int i) { return static_cast<float>(a.v[i]); }));
}
inline __m512i cvtps_epi32(__m512 x) {
  return bits<__m512i>(lanes<Integers>([a = floats(x)](int i) { return _mm_cvtss_si32(_mm_set_ss(a.v[i])); }));
}
inline __m512i cvtepi8_epi32(__m128i x) {
  int8_t bytes[16];
  std::memcpy(bytes, &x, 16);
  return bits<__m512i>(lanes<Integers>([&](int i) { return bytes[i]; }));
}
inline __m512 cvtph_ps(__m256i x) {
  const __m256 halves[2] = {_mm256_cvtph_ps(_mm256_castsi256_si128(x)),
                            _mm256_cvtph_ps(_mm256_extracti128_si256(x, 1))};
  __m512 r;
  std::memcpy(&r, halves, 64);
  return r;
}
inline __m128i cvtepi32_epi8(__m512i x) {
  int8_t bytes[16];
  const Integers a = integers(x);
  for (int i = 0; i < 16; ++i) bytes[i] = static_cast<int8_t>(a.v[i]);
  __m128i r;
  std::memcpy(&r, bytes, 16);
  return r;
}
inline __m512 maskz_loadu_ps(unsigned mask, const void* p) {
  return bits<__m512>(
      lanes<Floats>([=](int i) { return (mask >> i & 1) != 0 ? static_cast<const float*>(p)[i] : 0.0f; }));
}
inline void mask_storeu_ps(void* p, unsigned mask, __m512 x) {
  const Floats a = floats(x);
  for (int i = 0; i < 16; ++i)
    if ((mask >> i & 1) != 0) static_cast<float*>(p)[i] = a.v[i];
}
template <int Order>
inline __m512 permute_ps(__m512 x) {
  return bits<__m512>(lanes<Floats>([a = floats(x)](int i) { return a.v[i / 4 * 4 + (Order >> 2 * (i % 4) & 3)]; }));
}
template <int Order>
inline __m512 shuffle_f32x4(__m512 x, __m512 y) {
  return bits<__m512>(lanes<Floats>([a = floats(x), b = floats(y)](int i) {
    const int from = (Order >> 2 * (i / 4) & 3) * 4 + i % 4;
    return i < 8 ? a.v[from] : b.v[from];
  }));
}
inline float cvtss_f32(__m512 x) { return floats(x).v[0]; }
inline float reduce_max_ps(__m512 x) {
  const Floats a = floats(x);
  float most = a.v[0];
  for (float v : a.v) most = v > most ? v : most;
  return most;
}
inline int32_t reduce_add_epi32(__m512i x) {
  const Integers a = integers(x);
  int32_t sum = 0;
  for (int32_t v : a.v) sum += v;
  return sum;
}

}  // namespace emulated

#define _mm512_cvtepi32_ps(x) emulated::cvtepi32_ps(x)
#define _mm512_cvtps_epi32(x) emulated::cvtps_epi32(x)
#define _mm512_cvtepi8_epi32(x) emulated::cvtepi8_epi32(x)
#define _mm512_cvtph_ps(x) emulated::cvtph_ps(x)
#define _mm512_cvtepi32_epi8(x) emulated::cvtepi32_epi8(x)
#define _mm512_maskz_loadu_ps(mask, p) emulated::maskz_loadu_ps(mask, p)
#define _mm512_mask_storeu_ps(p, mask, x) emulated::mask_storeu_ps(p, mask, x)
#define _mm512_permute_ps(x, order) emulated::permute_ps<order>(x)
#define _mm512_shuffle_f32x4(x, y, order) emulated::shuffle_f32x4<order>(x, y)
#define _mm512_cvtss_f32(x) emulated::cvtss_f32(x)
#define _mm512_reduce_max_ps(x) emulated::reduce_max_ps(x)
#define _mm512_reduce_add_epi32(x) emulated::reduce_add_epi32(x)
#define _mm256_dpbusd_avx_epi32(sum, a, b) simde_mm256_dpbusd_epi32(sum, a, b)
// Pins name registers that are not there.
#define __asm__(...)

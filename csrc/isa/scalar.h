// Plain C++ for any CPU: the baseline build and the meaning of every primitive. Arrays of 16 that the compiler may
// vectorise with the baseline's own registers.
#pragma once

#include <cmath>

#include "isa/primitives.h"

namespace {

// Fused multiply-add without the instruction: the product is exact in double; the sum is rounded to odd (Boldo and
// Melquiond, 2008: a double rounded to odd then to float is correctly rounded since 53 ≥ 2·24 + 2).
POCKETFORMER_INLINE float fused_multiply_add(float a, float b, float c) {
#if defined(__FP_FAST_FMAF) || defined(__aarch64__)
  return __builtin_fmaf(a, b, c);
#else
  const double product = static_cast<double>(a) * b, addend = c;
  const double sum = product + addend;
  const double virtual_addend = sum - product;
  const double error = (product - (sum - virtual_addend)) + (addend - virtual_addend);
  uint64_t bits;
  std::memcpy(&bits, &sum, 8);
  // Inexact with an even last bit: step to the odd neighbour on the error's side. Overflow and NaN have no finite
  // error.
  const bool step = error != 0 && std::fabs(error) < 1e300 && (bits & 1) == 0;
  if (step) bits += ((error > 0) == (sum > 0)) ? 1 : -1;
  double odd;
  std::memcpy(&odd, &bits, 8);
  return static_cast<float>(odd);
#endif
}

struct Isa {
  static constexpr const char* kName = "scalar";
  static constexpr int kActivationOffset = 0;
  static constexpr int kGemmRows = 2;  // small: the arrays live on the stack
  static constexpr int kGemmPanels = 1;
  static constexpr int kGemmRowsF32 = kGemmRows;
  static constexpr int kGemmStepF32 = 1;
  static constexpr bool kAttentionProducts = false;
  static constexpr int kGemmGroups = 1;
  static constexpr int kAttentionChains = 4;

  struct F {
    float v[16];
  };
  struct I {
    int32_t v[16];
  };
  struct B {
    int8_t v[64];
  };
  struct M {
    bool v[16];
  };

  template <class T, class Fn>
  static POCKETFORMER_INLINE T lanes(Fn fn) {
    T r;
    for (int i = 0; i < 16; ++i) r.v[i] = fn(i);
    return r;
  }

  static POCKETFORMER_INLINE F load(const float* p) {
    return lanes<F>([=](int i) { return p[i]; });
  }
  static POCKETFORMER_INLINE void store(float* p, F x) {
    for (int i = 0; i < 16; ++i) p[i] = x.v[i];
  }
  static POCKETFORMER_INLINE F zero() { return set1(0.0f); }
  static POCKETFORMER_INLINE F set1(float x) {
    return lanes<F>([=](int) { return x; });
  }
  static POCKETFORMER_INLINE F load_partial(const float* p, int n) {
    return lanes<F>([=](int i) { return i < n ? p[i] : 0.0f; });
  }
  static POCKETFORMER_INLINE void store_partial(float* p, F x, int n) {
    for (int i = 0; i < n; ++i) p[i] = x.v[i];
  }
  static POCKETFORMER_INLINE F load_i8(const int8_t* p) {
    return lanes<F>([=](int i) { return static_cast<float>(p[i]); });
  }

  static POCKETFORMER_INLINE F add(F a, F b) {
    return lanes<F>([&](int i) { return a.v[i] + b.v[i]; });
  }
  static POCKETFORMER_INLINE F sub(F a, F b) {
    return lanes<F>([&](int i) { return a.v[i] - b.v[i]; });
  }
  static POCKETFORMER_INLINE F mul(F a, F b) {
    return lanes<F>([&](int i) { return a.v[i] * b.v[i]; });
  }
  static POCKETFORMER_INLINE F div(F a, F b) {
    return lanes<F>([&](int i) { return a.v[i] / b.v[i]; });
  }
  static POCKETFORMER_INLINE F sqrt(F a) {
    return lanes<F>([&](int i) { return std::sqrt(a.v[i]); });
  }
  static POCKETFORMER_INLINE F fma(F a, F b, F c) {
    return lanes<F>([&](int i) { return fused_multiply_add(a.v[i], b.v[i], c.v[i]); });
  }
  static POCKETFORMER_INLINE F max(F a, F b) {
    return lanes<F>([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
  }
  static POCKETFORMER_INLINE F min(F a, F b) {
    return lanes<F>([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
  }
  static POCKETFORMER_INLINE F abs(F a) {
    return lanes<F>([&](int i) { return std::fabs(a.v[i]); });
  }
  // Adding and taking away 1.5·2^23 rounds to nearest even within ±2^22; larger values need another way.
  static POCKETFORMER_INLINE float round1(float x) {
    constexpr float kMagic = 12582912.0f;
    return std::fabs(x) < 4194304.0f ? (x + kMagic) - kMagic : std::nearbyintf(x);
  }
  static POCKETFORMER_INLINE F round(F a) {
    return lanes<F>([&](int i) { return round1(a.v[i]); });
  }
  // 0 for NaN and what int32 does not hold: hostile weights lead there, and C++ leaves it undefined.
  static POCKETFORMER_INLINE int32_t int1(float x) {
    return std::fabs(x) < 2147483648.0f ? static_cast<int32_t>(x) : 0;
  }
  static POCKETFORMER_INLINE F scale2(F x, F n) {
    return lanes<F>([&](int i) {
      const uint32_t exponent = static_cast<uint32_t>(int1(n.v[i]) + 127) << 23;
      float power;
      std::memcpy(&power, &exponent, 4);
      return x.v[i] * power;
    });
  }
  static POCKETFORMER_INLINE I to_i32(F a) {
    return lanes<I>([&](int i) { return int1(round1(a.v[i])); });
  }
  static POCKETFORMER_INLINE F to_f32(I a) {
    return lanes<F>([&](int i) { return static_cast<float>(a.v[i]); });
  }

  template <int D>
  static POCKETFORMER_INLINE F xor_lanes(F x) {
    return lanes<F>([&](int i) { return x.v[i ^ D]; });
  }
  template <int D>
  static POCKETFORMER_INLINE F alternate() {
    return lanes<F>([](int i) { return (i & D) != 0 ? -1.0f : 1.0f; });
  }
  static POCKETFORMER_INLINE float reduce_add(F x) {
    for (int d = 8; d > 0; d /= 2)
      for (int i = 0; i < d; ++i) x.v[i] += x.v[i + d];
    return x.v[0];
  }
  static POCKETFORMER_INLINE float reduce_max(F x) {
    float m = x.v[0];
    for (float v : x.v) m = v > m ? v : m;
    return m;
  }
  static POCKETFORMER_INLINE int32_t reduce_add_i32(I x) {
    int32_t sum = 0;
    for (int32_t v : x.v) sum += v;
    return sum;
  }
  static POCKETFORMER_INLINE void store_sums4(int32_t* p, I a, I b, I c, I d) {
    p[0] = reduce_add_i32(a), p[1] = reduce_add_i32(b), p[2] = reduce_add_i32(c), p[3] = reduce_add_i32(d);
  }
  static POCKETFORMER_INLINE void transpose(F (&r)[16]) {
    for (int i = 0; i < 16; ++i)
      for (int j = 0; j < i; ++j) {
        const float t = r[i].v[j];
        r[i].v[j] = r[j].v[i];
        r[j].v[i] = t;
      }
  }

  static POCKETFORMER_INLINE void pin(F&) {}
  static POCKETFORMER_INLINE void pin(I&) {}

  static POCKETFORMER_INLINE I set1_i32(int32_t x) {
    return lanes<I>([=](int) { return x; });
  }
  static POCKETFORMER_INLINE I zero_i32() { return set1_i32(0); }
  static POCKETFORMER_INLINE I add_i32(I a, I b) {
    return lanes<I>([&](int i) { return a.v[i] + b.v[i]; });
  }
  static POCKETFORMER_INLINE I load_i32(const int32_t* p) {
    return lanes<I>([=](int i) { return p[i]; });
  }
  static POCKETFORMER_INLINE I negate_i32(I a) {
    return lanes<I>([&](int i) { return -a.v[i]; });
  }
  template <int S>
  static POCKETFORMER_INLINE I shift_left(I a) {
    return lanes<I>([&](int i) { return static_cast<int32_t>(static_cast<uint32_t>(a.v[i]) << S); });
  }
  static POCKETFORMER_INLINE M between(I lo, I hi, int32_t j) {
    return lanes<M>([&](int i) { return lo.v[i] <= j && j < hi.v[i]; });
  }
  static POCKETFORMER_INLINE F select(M m, F a, F b) {
    return lanes<F>([&](int i) { return m.v[i] ? a.v[i] : b.v[i]; });
  }

  static POCKETFORMER_INLINE B load_b(const void* p) {
    B r;
    std::memcpy(r.v, p, 64);
    return r;
  }
  static POCKETFORMER_INLINE void store_b(void* p, B x) { std::memcpy(p, x.v, 64); }
  static POCKETFORMER_INLINE B broadcast_b(const void* p) {
    B r;
    for (int i = 0; i < 16; ++i) std::memcpy(r.v + 4 * i, p, 4);
    return r;
  }
  static POCKETFORMER_INLINE I dot4(I acc, B a, B w) {
    for (int i = 0; i < 16; ++i)
      for (int b = 0; b < 4; ++b) acc.v[i] += static_cast<int32_t>(a.v[4 * i + b]) * w.v[4 * i + b];
    return acc;
  }
  static POCKETFORMER_INLINE I dot4_p(I acc, B a, B w) { return dot4(acc, a, w); }
  static POCKETFORMER_INLINE B pack4(I a, I b, I c, I d) {
    B r;
    for (int i = 0; i < 16; ++i) {
      r.v[4 * i] = static_cast<int8_t>(a.v[i]);
      r.v[4 * i + 1] = static_cast<int8_t>(b.v[i]);
      r.v[4 * i + 2] = static_cast<int8_t>(c.v[i]);
      r.v[4 * i + 3] = static_cast<int8_t>(d.v[i]);
    }
    return r;
  }
  static POCKETFORMER_INLINE B pack64(I a, I b, I c, I d) {
    B r;
    store_bytes(r.v, a);
    store_bytes(r.v + 16, b);
    store_bytes(r.v + 32, c);
    store_bytes(r.v + 48, d);
    return r;
  }
  static POCKETFORMER_INLINE B bias(B x) { return x; }
  static POCKETFORMER_INLINE void store_bytes(void* p, I x) {
    auto* bytes = static_cast<uint8_t*>(p);
    for (int i = 0; i < 16; ++i) bytes[i] = static_cast<uint8_t>(x.v[i]);
  }
};

}  // namespace

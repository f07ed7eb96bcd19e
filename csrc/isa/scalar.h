// Plain C++ for any CPU: the baseline build. Vectors of 16 lanes by the extension that g++ and clang share, which they
// carry out with whatever registers the baseline has. What that cannot say are loops over lanes, and what g++ 12 does
// lane by lane where vectors are wider than registers, loops over 16 bytes: out of line, since 16 lanes inlined are a
// megabyte of code and a minute of compiling.
#pragma once

#include <cmath>

#include "core/half.h"
#include "isa/primitives.h"

#define POCKETFORMER_OUTLINE __attribute__((noinline))

namespace {

struct Isa {
  static constexpr const char* kName = "scalar";
  static constexpr int kActivationOffset = 0;
  static constexpr int kGemmRows = 2;  // small: the arrays live on the stack
  static constexpr int kGemmPanels = 1;
  static constexpr int kGemmRowsF32 = kGemmRows;
  static constexpr int kGemmStepF32 = 1;
  static constexpr int kGemmRowsI4 = kGemmRows;
  static constexpr int kRowPanels = 1;
  static constexpr bool kNarrowSums = false;
  static constexpr bool kTotalsInRegisters = false;
  static constexpr int kLookedUpRows = 0;
  static constexpr bool kAttentionProducts = false;
  static constexpr int kGemmGroups = 1;
  static constexpr int kAttentionChains = 4;
  static constexpr bool kBoundedPairs = false;

  typedef float F __attribute__((vector_size(64)));
  typedef int32_t I __attribute__((vector_size(64)));
  typedef int8_t B __attribute__((vector_size(64)));
  typedef I M;  // −1 or 0
  typedef int16_t Pairs __attribute__((vector_size(64)));
  typedef float F4 __attribute__((vector_size(16)));
  typedef int32_t I4 __attribute__((vector_size(16)));
  typedef float F2 __attribute__((vector_size(8)));
  typedef double D2 __attribute__((vector_size(16)));
  typedef int64_t L2 __attribute__((vector_size(16)));

  template <class T, class Fn>
  static POCKETFORMER_OUTLINE T lanes(Fn fn) {
    T r;
    for (int i = 0; i < static_cast<int>(sizeof(T) / sizeof(r[0])); ++i) r[i] = fn(i);
    return r;
  }
  // fn of each 16 bytes.
  template <class T, class Fn, class... Args>
  static POCKETFORMER_OUTLINE T quarters(Fn fn, const Args&... args) {
    T r;
    for (int i = 0; i < 4; ++i) write(&r, i, fn(quarter(args, i)...));
    return r;
  }
  static POCKETFORMER_INLINE F4 quarter(const F& x, int i) { return read<F4>(reinterpret_cast<const F4*>(&x) + i); }
  static POCKETFORMER_INLINE I4 quarter(const I& x, int i) { return read<I4>(reinterpret_cast<const I4*>(&x) + i); }
  template <class Part>
  static POCKETFORMER_INLINE void write(void* p, int i, Part part) {
    std::memcpy(static_cast<Part*>(p) + i, &part, sizeof(part));
  }
  template <class To, class From>
  static POCKETFORMER_INLINE To bits(const From& x) {
    static_assert(sizeof(To) == sizeof(From));
    To r;
    std::memcpy(&r, &x, sizeof(r));
    return r;
  }
  template <class T>
  static POCKETFORMER_INLINE T read(const void* p) {
    T r;
    std::memcpy(&r, p, sizeof(r));
    return r;
  }

  static POCKETFORMER_INLINE F load(const float* p) { return read<F>(p); }
  static POCKETFORMER_INLINE void store(float* p, F x) { std::memcpy(p, &x, sizeof(x)); }
  static POCKETFORMER_INLINE F zero() { return F{}; }
  static POCKETFORMER_INLINE F set1(float x) { return x - F{}; }
  static POCKETFORMER_INLINE F load_partial(const float* p, int n) {
    return lanes<F>([=](int i) { return i < n ? p[i] : 0.0f; });
  }
  static POCKETFORMER_INLINE void store_partial(float* p, F x, int n) { std::memcpy(p, &x, n * sizeof(float)); }
  static POCKETFORMER_INLINE F load_i8(const int8_t* p) {
    return lanes<F>([=](int i) { return static_cast<float>(p[i]); });
  }
  static POCKETFORMER_INLINE F load_f16(const uint16_t* p) {
    return lanes<F>([=](int i) { return pocketformer::widen(p[i]); });
  }

  static POCKETFORMER_INLINE F add(F a, F b) { return a + b; }
  static POCKETFORMER_INLINE F sub(F a, F b) { return a - b; }
  static POCKETFORMER_INLINE F mul(F a, F b) { return a * b; }
  static POCKETFORMER_INLINE F div(F a, F b) { return a / b; }
  static POCKETFORMER_INLINE F sqrt(F a) {
    return lanes<F>([&](int i) { return std::sqrt(a[i]); });
  }
#if defined(__FP_FAST_FMAF) || defined(__aarch64__)
  static POCKETFORMER_INLINE F fma(F a, F b, F c) {
    return lanes<F>([&](int i) { return __builtin_fmaf(a[i], b[i], c[i]); });
  }
#else
  // Fused multiply-add without the instruction: the product is exact in double; the sum is rounded to odd (Boldo and
  // Melquiond, 2008: a double rounded to odd then to float is correctly rounded since 53 ≥ 2·24 + 2).
  static POCKETFORMER_OUTLINE F fma(F a, F b, F c) {
    F r;
    for (int i = 0; i < 8; ++i) {
      const auto pair = [i](const F& x) {
        return __builtin_convertvector(read<F2>(reinterpret_cast<const F2*>(&x) + i), D2);
      };
      const D2 product = pair(a) * pair(b), addend = pair(c), sum = product + addend;
      const D2 virtual_addend = sum - product;
      const D2 error = (product - (sum - virtual_addend)) + (addend - virtual_addend);
      // Inexact with an even last bit: step to the odd neighbour on the error's side. Overflow and NaN have no finite
      // error.
      const L2 even = (bits<L2>(sum) & 1) - 1, finite = (error < 1e300) & (error > -1e300) & (error != 0.0);
      const L2 outwards = (error > 0.0) ^ ~(sum > 0.0);  // −1 or 0
      const L2 odd = bits<L2>(sum) + (even & finite & (-1 - (outwards << 1)));
      write(&r, i, __builtin_convertvector(bits<D2>(odd), F2));
    }
    return r;
  }
#endif
  static POCKETFORMER_INLINE F max(F a, F b) {
    return quarters<F>([](F4 x, F4 y) { return x > y ? x : y; }, a, b);
  }
  static POCKETFORMER_INLINE F min(F a, F b) {
    return quarters<F>([](F4 x, F4 y) { return x < y ? x : y; }, a, b);
  }
  static POCKETFORMER_INLINE F abs(F a) { return bits<F>(bits<I>(a) & INT32_MAX); }
  // Adding and taking away 1.5·2^23 rounds to nearest even within ±2^22, and 2^23 what is larger and no integer yet.
  static POCKETFORMER_INLINE F4 round4(F4 x) {
    const F4 size = bits<F4>(bits<I4>(x) & INT32_MAX);
    const F4 large = bits<F4>(bits<I4>((size + 8388608.0f) - 8388608.0f) | (bits<I4>(x) & INT32_MIN));
    return size < 4194304.0f ? (x + 12582912.0f) - 12582912.0f : size < 8388608.0f ? large : x;
  }
  // 0 for NaN and what int32 does not hold: hostile weights lead there, and C++ leaves it undefined.
  static POCKETFORMER_INLINE I4 truncate4(F4 x) {
    const F4 size = bits<F4>(bits<I4>(x) & INT32_MAX);
    return __builtin_convertvector(bits<F4>(bits<I4>(x) & (size < 2147483648.0f)), I4);
  }
  static POCKETFORMER_INLINE F round(F a) {
    return quarters<F>([](F4 x) { return round4(x); }, a);
  }
  static POCKETFORMER_INLINE I to_i32(F a) {
    return quarters<I>([](F4 x) { return truncate4(round4(x)); }, a);
  }
  static POCKETFORMER_INLINE F to_f32(I a) {
    return quarters<F>([](I4 x) { return __builtin_convertvector(x, F4); }, a);
  }
  static POCKETFORMER_INLINE F scale2(F x, F n) {
    return x * quarters<F>([](F4 power) { return bits<F4>((truncate4(power) + 127) << 23); }, n);
  }

  template <int D>
  static POCKETFORMER_INLINE F xor_lanes(F x) {
    return lanes<F>([&](int i) { return x[i ^ D]; });
  }
  template <int D>
  static POCKETFORMER_INLINE F alternate() {
    return lanes<F>([](int i) { return (i & D) != 0 ? -1.0f : 1.0f; });
  }
  static POCKETFORMER_OUTLINE float reduce_add(F x) {
    for (int d = 8; d > 0; d /= 2)
      for (int i = 0; i < d; ++i) x[i] += x[i + d];
    return x[0];
  }
  static POCKETFORMER_OUTLINE float reduce_max(F x) {
    float m = x[0];
    for (int i = 1; i < 16; ++i) m = x[i] > m ? x[i] : m;
    return m;
  }
  static POCKETFORMER_OUTLINE int32_t reduce_add_i32(I x) {
    int32_t sum = 0;
    for (int i = 0; i < 16; ++i) sum += x[i];
    return sum;
  }
  static POCKETFORMER_INLINE void store_sums4(int32_t* p, I a, I b, I c, I d) {
    p[0] = reduce_add_i32(a), p[1] = reduce_add_i32(b), p[2] = reduce_add_i32(c), p[3] = reduce_add_i32(d);
  }
  static POCKETFORMER_OUTLINE void transpose(F (&r)[16]) {
    for (int i = 0; i < 16; ++i)
      for (int j = 0; j < i; ++j) {
        const float t = r[i][j];
        r[i][j] = r[j][i];
        r[j][i] = t;
      }
  }

  template <class T>
  static POCKETFORMER_INLINE void pin(T&) {}

  static POCKETFORMER_INLINE I set1_i32(int32_t x) { return x - I{}; }
  static POCKETFORMER_INLINE I zero_i32() { return I{}; }
  static POCKETFORMER_INLINE I add_i32(I a, I b) { return a + b; }
  static POCKETFORMER_INLINE I load_i32(const int32_t* p) { return read<I>(p); }
  static POCKETFORMER_INLINE I negate_i32(I a) { return -a; }
  template <int S>
  static POCKETFORMER_INLINE I shift_left(I a) {
    return a << S;
  }
  template <int S>
  static POCKETFORMER_INLINE I shift_right(I a) {
    return a >> S;
  }
  static POCKETFORMER_INLINE M between(I lo, I hi, int32_t j) {
    return quarters<M>([j](I4 low, I4 high) { return (low <= j) & (high > j); }, lo, hi);
  }
  static POCKETFORMER_INLINE F select(M m, F a, F b) { return bits<F>((m & bits<I>(a)) | (~m & bits<I>(b))); }

  static POCKETFORMER_INLINE B load_b(const void* p) { return read<B>(p); }
  static POCKETFORMER_INLINE void store_b(void* p, B x) { std::memcpy(p, &x, sizeof(x)); }
  static POCKETFORMER_INLINE B broadcast_b(const void* p) { return bits<B>(set1_i32(read<int32_t>(p))); }
  static POCKETFORMER_INLINE B repeat16(const void* p) {
    return lanes<B>([=](int i) { return static_cast<const int8_t*>(p)[i % 16]; });
  }
  static POCKETFORMER_INLINE B low_nibbles(B x) { return x & 15; }
  static POCKETFORMER_INLINE B high_nibbles(B x) { return (x >> 4) & 15; }
  static POCKETFORMER_INLINE B lookup(B table, B i) {
    return lanes<B>([&](int j) { return table[i[j]]; });
  }
  // Products of the lower and of the upper byte of each 16 bits, which these hold; then sums of two.
  static POCKETFORMER_INLINE I dot4(I acc, B a, B w) {
    const auto lower = [](B x) { return (bits<Pairs>(x) << 8) >> 8; };
    const auto upper = [](B x) { return bits<Pairs>(x) >> 8; };
    const auto sums = [](Pairs x) { return ((bits<I>(x) << 16) >> 16) + (bits<I>(x) >> 16); };
    return acc + (sums(lower(a) * lower(w)) + sums(upper(a) * upper(w)));
  }
  static POCKETFORMER_INLINE I dot4_p(I acc, B a, B w) { return dot4(acc, a, w); }
  static POCKETFORMER_INLINE B pack4(I a, I b, I c, I d) {
    return bits<B>((a & 255) | ((b & 255) << 8) | ((c & 255) << 16) | (d << 24));
  }
  static POCKETFORMER_INLINE B pack64(I a, I b, I c, I d) {
    B r;
    auto* at = reinterpret_cast<int8_t*>(&r);
    store_bytes(at, a);
    store_bytes(at + 16, b);
    store_bytes(at + 32, c);
    store_bytes(at + 48, d);
    return r;
  }
  static POCKETFORMER_INLINE B bias(B x) { return x; }
  static POCKETFORMER_OUTLINE void store_bytes(void* p, I x) {
    auto* bytes = static_cast<uint8_t*>(p);
    for (int i = 0; i < 16; ++i) bytes[i] = static_cast<uint8_t>(x[i]);
  }
};

}  // namespace

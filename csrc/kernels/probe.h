// What this CPU can do at most: the product's inner operation, in as many independent chains as the
// product's tile has, and reading memory. Benchmarks quote their speed as a share of this.
#pragma once

#include "kernels/gemm.h"

namespace {

// Has `x` in a register, or in memory where a virtual vector is an array: a value the compiler must take as new.
template <class V, class T>
POCKETFORMER_INLINE void renew(T& x) {
  if constexpr (alignof(T) < 16)
    __asm__("" : "+m"(x));
  else
    V::pin(x);
}

// Where the product has an inner operation of its own, that is its loop over a panel and rows that stay in the
// first-level cache: at most 6 KB.
template <class V>
int64_t probe_product(int64_t iterations) {
  constexpr int kRows = V::kGemmRows, kGroups = 64;
  alignas(64) int8_t weight[kGroups * 4 * kLanes];
  alignas(64) uint8_t a[kRows * kGroups * 4];
  std::memset(weight, 1, sizeof weight);
  std::memset(a, 1, sizeof a);
  typename V::I acc[kRows];
  unroll<kRows>([&](auto r) POCKETFORMER_LAMBDA { acc[r] = V::zero_i32(); });
  const int64_t calls = (iterations + kGroups - 1) / kGroups;
  for (int64_t n = 0; n < calls; ++n) {
    __asm__ volatile("" : : "r"(weight), "r"(a) : "memory");  // as if written anew
    V::template product<kRows>(acc, a, kGroups * 4, weight, kGroups);
  }
  unroll<kRows>([&](auto r) POCKETFORMER_LAMBDA { acc[0] = V::add_i32(acc[0], acc[r]); });
  const int32_t used = V::reduce_add_i32(acc[0]);
  __asm__ volatile("" : : "r"(used));
  return calls * kRows * kGroups * 4 * kLanes;
}

template <class V>
int64_t probe_dot4(int64_t iterations) {
  if constexpr (V::kGemmGroups > 1) return probe_product<V>(iterations);
  constexpr int kChains = V::kGemmRows * V::kGemmPanels;
  alignas(64) int8_t ones[64];
  std::memset(ones, 1, sizeof ones);
  typename V::B w = V::load_b(ones);
  typename V::I acc[kChains];
  unroll<kChains>([&](auto i) POCKETFORMER_LAMBDA { acc[i] = V::zero_i32(); });
  for (int64_t n = 0; n < iterations; ++n) {
    renew<V>(w);
    unroll<V::kGemmRows>([&](auto r) POCKETFORMER_LAMBDA {
      // Anew for each row, and known to repeat four bytes: what AVX2 derives from it is shared as in the product.
      __asm__ volatile("" : : "r"(ones) : "memory");
      const typename V::B x = V::broadcast_b(ones + 4 * (r % 16));
      unroll<V::kGemmPanels>([&](auto c) POCKETFORMER_LAMBDA {
        constexpr int i = r * V::kGemmPanels + c;
        acc[i] = V::dot4(acc[i], x, w);
      });
    });
    unroll<kChains>([&](auto i) POCKETFORMER_LAMBDA { renew<V>(acc[i]); });
  }
  unroll<kChains>([&](auto i) POCKETFORMER_LAMBDA { acc[0] = V::add_i32(acc[0], acc[i]); });
  const int32_t used = V::reduce_add_i32(acc[0]);
  __asm__ volatile("" : : "r"(used));
  return iterations * kChains * 4 * kLanes;
}

// Of weights whose pairs are bounded.
template <class V>
int64_t probe_bounded(int64_t iterations) {
  if constexpr (V::kBoundedPairs)
    return probe_dot4<typename V::Bounded>(iterations);
  else
    return probe_dot4<V>(iterations);
}

template <class V>
int64_t probe_fma(int64_t iterations) {
  constexpr int kChains = V::kGemmRowsF32 * V::kGemmPanels;
  typename V::F x = V::zero(), w = V::set1(1.0f);
  typename V::F acc[kChains];
  unroll<kChains>([&](auto i) POCKETFORMER_LAMBDA { acc[i] = V::zero(); });
  for (int64_t n = 0; n < iterations; ++n) {
    renew<V>(x);
    unroll<kChains>([&](auto i) POCKETFORMER_LAMBDA {
      acc[i] = V::fma(x, w, acc[i]);
      renew<V>(acc[i]);
    });
  }
  unroll<kChains>([&](auto i) POCKETFORMER_LAMBDA { acc[0] = V::add(acc[0], acc[i]); });
  const float used = V::reduce_add(acc[0]);
  __asm__ volatile("" : : "m"(used));
  return iterations * kChains * kLanes;
}

// Eight streams at once, each with a prefetch: more lines on their way than one stream's prefetcher asks for, and a
// third more bandwidth.
template <class V>
void probe_read(const void* data, size_t bytes) {
  constexpr int kStreams = 8, kSums = 4, kAhead = 1024;
  const size_t part = bytes / kStreams;
  const auto* begin = static_cast<const char*>(data);
  typename V::I sum[kSums];
  unroll<kSums>([&](auto i) POCKETFORMER_LAMBDA { sum[i] = V::zero_i32(); });
  for (const char *at = begin, *end = begin + part; at < end; at += 4 * kLanes)
    unroll<kStreams>([&](auto i) POCKETFORMER_LAMBDA {
      const char* line = at + i * part;
      prefetch(line + kAhead);
      sum[i % kSums] = V::add_i32(sum[i % kSums], V::load_i32(reinterpret_cast<const int32_t*>(line)));
    });
  unroll<kSums>([&](auto i) POCKETFORMER_LAMBDA { sum[0] = V::add_i32(sum[0], sum[i]); });
  const int32_t used = V::reduce_add_i32(sum[0]);
  __asm__ volatile("" : : "r"(used));
}

}  // namespace

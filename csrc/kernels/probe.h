// What this CPU can do at most: the product's inner operation on registers alone, in as many independent chains as the
// product's tile has. Benchmarks quote their speed as a share of this.
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

// Where the product's tile is not whole panels, attention's chains fill the registers.
template <class V>
constexpr int kProbeRows = V::kGemmGroups > 1 ? V::kAttentionChains : V::kGemmRows;

template <class V>
int64_t probe_dot4(int64_t iterations) {
  constexpr int kChains = kProbeRows<V> * V::kGemmPanels;
  alignas(64) int8_t ones[64];
  std::memset(ones, 1, sizeof ones);
  typename V::B x = V::load_b(ones), w = x;
  typename V::I acc[kChains];
  unroll<kChains>([&](auto i) POCKETFORMER_LAMBDA { acc[i] = V::zero_i32(); });
  for (int64_t n = 0; n < iterations; ++n) {
    renew<V>(w);
    unroll<kProbeRows<V>>([&](auto r) POCKETFORMER_LAMBDA {
      renew<V>(x);  // as if broadcast anew for each row
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

template <class V>
int64_t probe_fma(int64_t iterations) {
  constexpr int kChains = kProbeRows<V> * V::kGemmPanels;
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

}  // namespace

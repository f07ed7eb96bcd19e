// Rotary position embedding (Su et al., 2021), pairs (i, i + rotated_dims/2) as Hugging Face's models have them.
#pragma once

#include "kernels/quantize.h"

namespace {

using pocketformer::kMaxHeadDim;
using pocketformer::RopeArgs;

// Sine and cosine of |x| ≤ 2^17, absolute error ≤ 2e-7. x = n·π/2 + r: π/2 in two parts whose products with n meet no
// rounding of their own, so r is off by 6e-8; |r| ≤ 0.8, where the Taylor series end below 3e-8. The quadrant enters by
// factors of −1, 0 and 1, which round nothing.
template <class V>
POCKETFORMER_INLINE void sin_cos(typename V::F x, typename V::F& sin, typename V::F& cos) {
  using F = typename V::F;
  static constexpr float kSin[] = {2.7557319e-6f, -1.9841270e-4f, 8.3333333e-3f, -1.6666667e-1f};
  static constexpr float kCos[] = {2.4801587e-5f, -1.3888889e-3f, 4.1666667e-2f, -0.5f};
  const F n = V::round(V::mul(x, V::set1(0.636619772f)));
  F r = V::fma(n, V::set1(-1.57079637f), x);
  r = V::fma(n, V::set1(4.37113883e-8f), r);
  const F z = V::mul(r, r);
  const F s = V::fma(V::mul(r, z), polynomial<V>(z, kSin), r);
  const F c = V::fma(z, polynomial<V>(z, kCos), V::set1(1.0f));
  const F m = V::fma(V::round(V::mul(n, V::set1(0.25f))), V::set1(-4.0f), n);  // −2 … 2
  const F even = V::sub(V::set1(1.0f), V::abs(m));                             // cos(m·π/2)
  const F odd = V::mul(m, V::sub(V::set1(2.0f), V::abs(m)));                   // sin(m·π/2)
  sin = V::fma(even, s, V::mul(odd, c));
  cos = V::fma(even, c, V::mul(V::sub(V::zero(), odd), s));
}

// A row's sines and cosines serve all its heads.
template <class V>
void rope(const RopeArgs& g) {
  using F = typename V::F;
  const int half = g.rotated_dims / 2, width = g.heads * g.head_dim;
  alignas(64) float sines[kMaxHeadDim / 2 + kLanes], cosines[kMaxHeadDim / 2 + kLanes];
  const F factor = V::set1(g.factor);
  for (int row = 0; row < g.rows; ++row) {
    const F position = V::set1(static_cast<float>(g.position[row]));
    for (int i = 0; i < half; i += kLanes) {
      const F frequency = V::load_partial(g.frequency + i, half - i < kLanes ? half - i : kLanes);
      F sin, cos;
      sin_cos<V>(V::mul(position, frequency), sin, cos);
      V::store(sines + i, V::mul(sin, factor));
      V::store(cosines + i, V::mul(cos, factor));
    }
    for (int head = 0; head < g.heads; ++head) {
      const float* x = g.x + row * g.ldx + head * g.head_dim;
      float* out = g.out + row * g.ldo + head * g.head_dim;
      for (int i = 0; i < half; i += kLanes) {
        const int n = half - i < kLanes ? half - i : kLanes;
        const F sin = V::load(sines + i), cos = V::load(cosines + i);
        const F a = V::load_partial(x + i, n), b = V::load_partial(x + half + i, n);
        V::store_partial(out + i, V::fma(a, cos, V::sub(V::zero(), V::mul(b, sin))), n);
        V::store_partial(out + half + i, V::fma(b, cos, V::mul(a, sin)), n);
      }
      if (out != x) std::memcpy(out + 2 * half, x + 2 * half, (g.head_dim - 2 * half) * sizeof(float));
    }
    if (g.out != g.x) std::memset(g.out + row * g.ldo + width, 0, (round_up(width, kLanes) - width) * sizeof(float));
  }
}

}  // namespace

// Elementary functions and activations on virtual vectors. Fixed polynomials, fused multiply-add everywhere: the same
// bits on every ISA. Coefficients are minimax fits (Lawson-weighted least squares on Chebyshev nodes).
#pragma once

#include "isa/primitives.h"
#include "kernels/table.h"

namespace {

using pocketformer::Activation;
using pocketformer::kLanes;

constexpr float kLog2E = 1.44269504f;

template <class V>
POCKETFORMER_INLINE typename V::F clamp(typename V::F x, float lo, float hi) {
  return V::min(V::max(x, V::set1(lo)), V::set1(hi));
}

// 2^x for x ≤ 126; anything below −126 counts as −126. Exactly 1 at 0. Relative error 1e-7 (kPrecise) or 1e-4, which is
// 1/40 of the rounding that P meets in int8 attention.
template <class V, bool kPrecise>
POCKETFORMER_INLINE typename V::F exp2(typename V::F x) {
  x = V::max(x, V::set1(-126.0f));
  const typename V::F n = V::round(x);
  const typename V::F f = V::sub(x, n);
  typename V::F p;
  if constexpr (kPrecise) {
    p = V::set1(0.0013264776f);
    p = V::fma(p, f, V::set1(0.009671513f));
    p = V::fma(p, f, V::set1(0.055507336f));
    p = V::fma(p, f, V::set1(0.24022242f));
    p = V::fma(p, f, V::set1(0.693147f));
  } else {
    p = V::set1(0.055009197f);
    p = V::fma(p, f, V::set1(0.24221098f));
    p = V::fma(p, f, V::set1(0.6932829f));
  }
  return V::scale2(V::fma(p, f, V::set1(1.0f)), n);
}

// 2^x, fading to exactly 0 between −100 and −101: weights beside a maximum of 1, free of subnormals.
template <class V>
POCKETFORMER_INLINE typename V::F exp2_or_zero(typename V::F x) {
  return V::mul(exp2<V, true>(x), clamp<V>(V::add(x, V::set1(101.0f)), 0.0f, 1.0f));
}

template <class V>
POCKETFORMER_INLINE typename V::F tanh(typename V::F x) {
  const typename V::F e = exp2<V, true>(V::min(V::mul(x, V::set1(2 * kLog2E)), V::set1(126.0f)));
  return V::sub(V::set1(1.0f), V::div(V::set1(2.0f), V::add(e, V::set1(1.0f))));
}

// cap·tanh(x·factor/cap) in place. Never inlined: every attention and the operator share it.
template <class V>
__attribute__((noinline)) void soft_cap_vectors(float* x, int vectors, const float* factors, float cap) {
  const typename V::F rate = V::mul(V::load(factors), V::set1(2 * kLog2E / cap));
  for (int i = 0; i < vectors; ++i, x += kLanes) {
    const typename V::F e = exp2<V, true>(V::min(V::mul(V::load(x), rate), V::set1(126.0f)));
    V::store(x, V::sub(V::set1(cap), V::div(V::set1(2 * cap), V::add(e, V::set1(1.0f)))));
  }
}

// Horner: coefficients from the highest power down.
template <class V, int N>
POCKETFORMER_INLINE typename V::F polynomial(typename V::F x, const float (&coefficients)[N]) {
  typename V::F p = V::set1(coefficients[0]);
  for (int i = 1; i < N; ++i) p = V::fma(p, x, V::set1(coefficients[i]));
  return p;
}

// x·Φ(x). Precise: Φ(x) − ½ = x·P(t), |x| clamped to c = 5, t = 2x²/c² − 1, degree 12, absolute error ≤ 2e-6 for
// |x| ≤ 9. Otherwise, for results that are rounded to int8 next: max(0, x) − u·Q(u) with u = min(|x|, 3.83), Q ≈ 1 − Φ
// of degree 6; error ≤ 1.3e-4 everywhere, a fortieth of half a step of that rounding, and four multiplications fewer.
template <class V, bool kPrecise>
POCKETFORMER_INLINE typename V::F gelu(typename V::F x) {
  if constexpr (kPrecise) {
    static constexpr float kP[] = {0.00049295730f, -0.0015141431f, 0.0020018890f, -0.0029156977f, 0.0061654057f,
                                   -0.010973211f,  0.016497666f,   -0.023336738f, 0.031426229f,   -0.040432949f,
                                   0.051521420f,   -0.070296653f,  0.14136378f};
    const typename V::F c = clamp<V>(x, -5.0f, 5.0f);
    const typename V::F t = V::fma(V::mul(c, c), V::set1(2.0f / 25.0f), V::set1(-1.0f));
    return V::mul(x, V::fma(c, polynomial<V>(t, kP), V::set1(0.5f)));
  } else {
    // −Q, so that the last step is one fused multiply-add.
    static constexpr float kQ[] = {0.000718410185f, -0.0108989021f, 0.0625196248f, -0.152376801f,
                                   0.0586667471f,   0.381316751f,   -0.49851644f};
    const typename V::F u = V::min(V::abs(x), V::set1(3.83f));
    return V::fma(u, polynomial<V>(u, kQ), V::max(x, V::zero()));
  }
}

template <class V>
POCKETFORMER_INLINE typename V::F gelu_tanh(typename V::F x) {
  const typename V::F inner = V::mul(x, V::fma(V::mul(x, x), V::set1(0.044715f * 0.79788456f), V::set1(0.79788456f)));
  const typename V::F half = V::mul(x, V::set1(0.5f));
  return V::fma(half, tanh<V>(inner), half);
}

template <class V>
POCKETFORMER_INLINE typename V::F silu(typename V::F x) {
  const typename V::F e = exp2<V, true>(V::min(V::mul(x, V::set1(-kLog2E)), V::set1(126.0f)));
  return V::div(x, V::add(V::set1(1.0f), e));
}

template <class V, class Fn>
POCKETFORMER_INLINE void map_rows(float* x, size_t ld, int rows, int columns, Fn fn) {
  for (int r = 0; r < rows; ++r, x += ld)
    for (int c = 0; c < columns; c += kLanes) V::store(x + c, fn(V::load(x + c)));
}

// In place; `columns` is a multiple of 16.
template <class V, bool kPrecise>
POCKETFORMER_INLINE void activate(Activation kind, float* x, size_t ld, int rows, int columns) {
  using F = typename V::F;
  switch (kind) {
    case Activation::kNone:
      return;
    case Activation::kGelu:
      return map_rows<V>(x, ld, rows, columns, [](F v) { return gelu<V, kPrecise>(v); });
    case Activation::kGeluTanh:
      return map_rows<V>(x, ld, rows, columns, [](F v) { return gelu_tanh<V>(v); });
    case Activation::kRelu:
      return map_rows<V>(x, ld, rows, columns, [](F v) { return V::max(v, V::zero()); });
    case Activation::kSilu:
      return map_rows<V>(x, ld, rows, columns, [](F v) { return silu<V>(v); });
    case Activation::kTanh:
      return map_rows<V>(x, ld, rows, columns, [](F v) { return tanh<V>(v); });
  }
}

}  // namespace

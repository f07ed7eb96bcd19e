// Activations and softmax by themselves, on rows of any length that may start anywhere.
#pragma once

#include "kernels/rows.h"

namespace {

using pocketformer::ActivateArgs;
using pocketformer::SoftmaxArgs;

template <class V>
void activate_values(const ActivateArgs& g) {
  constexpr size_t kBlock = 64 * kLanes;  // stays in the first-level cache between the copy and the activation
  alignas(64) float tail[kLanes];
  for (size_t begin = 0; begin < g.count; begin += kBlock) {
    const size_t count = g.count - begin < kBlock ? g.count - begin : kBlock, whole = count / kLanes * kLanes;
    float* out = g.out + begin;
    if (out != g.x + begin) std::memcpy(out, g.x + begin, count * sizeof(float));
    activate<V, true>(g.kind, out, whole, 1, static_cast<int>(whole));
    if (whole == count) continue;
    V::store(tail, V::load_partial(out + whole, static_cast<int>(count - whole)));
    activate<V, true>(g.kind, tail, kLanes, 1, kLanes);
    V::store_partial(out + whole, V::load(tail), static_cast<int>(count - whole));
  }
}

// e = 2^((x − max)·log2 e), summed as row_sum does; then e / Σ e.
template <class V>
void softmax_rows(const SoftmaxArgs& g) {
  using F = typename V::F;
  for (int r = 0; r < g.rows; ++r) {
    const float* x = g.x + r * g.ldx;
    float* out = g.out + r * g.ldo;
    F most = V::set1(x[0]);
    int c = 0;
    for (; c + kLanes <= g.width; c += kLanes) most = V::max(most, V::load(x + c));
    for (; c < g.width; ++c) most = V::max(most, V::set1(x[c]));
    const F top = V::set1(V::reduce_max(most));
    for (c = 0; c < g.width; c += kLanes) {
      const int left = g.width - c < kLanes ? g.width - c : kLanes;
      const F e = exp2_or_zero<V>(V::mul(V::sub(V::load_partial(x + c, left), top), V::set1(kLog2E)));
      V::store_partial(out + c, e, left);
    }
    const F sum = V::set1(row_sum<V>(out, g.width, [](F s, F v, int) { return V::add(s, v); }));
    for (c = 0; c < g.width; c += kLanes) {
      const int left = g.width - c < kLanes ? g.width - c : kLanes;
      V::store_partial(out + c, V::div(V::load_partial(out + c, left), sum), left);
    }
  }
}

}  // namespace

// fp32 attention: the same walk as attention_i8.h with floats, for the layers that need it and for fp32 models.
#pragma once

#include "kernels/attention_few_f32.h"

namespace {

template <class V>
void attend_f32(const AttentionF32Args& a, const LaneRows& rows) {
  using F = typename V::F;
  constexpr int kChains = V::kAttentionChains;
  const AttentionArgs& c = a.common;
  const int kv_head = rows.head[0] / (c.heads / c.kv_heads);
  LaneRanges<V> range;
  const size_t first = (kv_head * a.kv.capacity + c.segment_slot) * c.head_stride;
  const bool half = a.kv.half_k != nullptr;
  const F scale = V::set1(c.scale * kLog2E);

  // Rows' channels side by side: query[d] holds channel d of the 16 rows.
  F query[kMaxHeadDim];
  for (int d = 0; d < c.head_stride; d += kLanes) {
    F block[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      block[i] = load_head<V, 0>(a.q + rows.query[i] * a.ldq + rows.head[i] * c.head_dim, d, c.head_dim);
    }
    V::transpose(block);
    for (int i = 0; i < kLanes; ++i) query[d + i] = block[i];
  }

  alignas(64) float weights[kKeyTile * kLanes];
  alignas(64) float widened[kWidenedFloats];  // kChains keys, or sixteen columns of a tile's values
  static_assert(kChains * kMaxHeadDim <= kWidenedFloats && kLanes <= kWidenedColumns && kLanes % kChains == 0);
  const auto take_tile = [&](int begin, int end, RunningSoftmax<V>& softmax) POCKETFORMER_LAMBDA {
    F top = V::set1(kMasked);
    for (int key = begin; key < end; key += kChains) {
      const int count = end - key < kChains ? end - key : kChains;
      const size_t at = first + static_cast<size_t>(key) * c.head_stride;
      if (half) widen_rows<V>(a.kv.half_k + at, c.head_stride, count, c.head_stride, widened);
      const float* const keys = half ? widened : a.kv.k + at;
      const float* key_rows[kChains];
      F acc[kChains];
      unroll<kChains>([&](auto j) POCKETFORMER_LAMBDA {
        key_rows[j] = keys + (j < count ? static_cast<int>(j) : 0) * c.head_stride;
        acc[j] = V::zero();
      });
      for (int d = 0; d < c.head_dim; ++d)
        unroll<kChains>([&](auto j)
                            POCKETFORMER_LAMBDA { acc[j] = V::fma(query[d], V::set1(key_rows[j][d]), acc[j]); });
      unroll<kChains>([&](auto j) POCKETFORMER_LAMBDA { V::pin(acc[j]); });
      const bool masked = range.partial(key, count);
      unroll<kChains>([&](auto j) POCKETFORMER_LAMBDA {
        if (j >= count) return;
        F s = V::mul(acc[j], scale);
        if (range.bias != nullptr) s = V::add(s, bias_of<V>(c, range, rows, key + j));
        if (masked) s = V::select(V::between(range.lo, range.hi, key + j), s, V::set1(kMasked));
        V::store(weights + (key - begin + j) * kLanes, s);
        top = V::max(top, s);
      });
    }
    if (c.softcap != 0) top = cap_scores<V>(c, weights, end - begin, V::set1(1.0f), top);
    F sum = V::zero();
    for (int key = begin; key < end; ++key) {
      float* w = weights + (key - begin) * kLanes;
      F e = exp2<V, true>(V::sub(V::load(w), top));
      if (range.partial(key, 1)) e = V::select(V::between(range.lo, range.hi, key), e, V::zero());
      sum = V::add(sum, e);
      V::store(w, e);
    }
    F keep, take;
    softmax.merge(top, sum, keep, take);
    for (int d = 0; d < c.head_stride; d += kChains) {
      F acc[kChains];
      unroll<kChains>([&](auto i) POCKETFORMER_LAMBDA { acc[i] = V::zero(); });
      const size_t at = first + static_cast<size_t>(begin) * c.head_stride + d;
      if (half && d % kLanes == 0) widen_rows<V>(a.kv.half_v + at, c.head_stride, end - begin, kLanes, widened);
      const float* row = half ? widened + d % kLanes : a.kv.v + at;
      const int stride = half ? kLanes : c.head_stride;
      for (int key = begin; key < end; ++key, row += stride) {
        const F p = V::load(weights + (key - begin) * kLanes);
        unroll<kChains>([&](auto i) POCKETFORMER_LAMBDA { acc[i] = V::fma(p, V::set1(row[i]), acc[i]); });
      }
      unroll<kChains>([&](auto i) POCKETFORMER_LAMBDA { V::pin(acc[i]); });
      unroll<kChains>([&](auto i) POCKETFORMER_LAMBDA {
        softmax.out[d + i] = V::fma(acc[i], take, V::mul(softmax.out[d + i], keep));
      });
    }
  };
  for_each_tile<V, RunningSoftmax<V>>(c, rows, range, take_tile);
}

template <class V>
void attention_f32(const AttentionF32Args& a) {
  for_each_rows(a.common, [&](const LaneRows& rows) POCKETFORMER_LAMBDA {
    rows.count <= kFewRows ? attend_few_f32<V>(a, rows) : attend_f32<V>(a, rows);
  });
}

}  // namespace

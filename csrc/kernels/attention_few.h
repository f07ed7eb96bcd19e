// What attention of few rows in int8 and in fp32 share: softmax and masks with keys, and results with channels in the
// lanes.
#pragma once

#include "kernels/attention_walk.h"

namespace {

// Rows up to which a pass of their own takes less time than one of sixteen lanes.
constexpr int kFewRows = 6;

// Running softmax of few rows: their sums in lanes, their results by rows.
template <class V>
struct RunningRows : SoftmaxSums<V> {
  using F = typename V::F;
  alignas(64) float out[kFewRows][kMaxHeadDim];

  POCKETFORMER_INLINE void clear(const LaneRows& rows, int channels) {
    SoftmaxSums<V>::clear();
    for (int r = 0; r < rows.count; ++r) std::memset(out[r], 0, channels * sizeof(float));
  }
  // Takes in the softmax of later keys, each `times` times.
  POCKETFORMER_INLINE void join(const RunningRows& later, const LaneRows& rows, int channels, F times) {
    alignas(64) float keeps[kLanes], takes[kLanes];
    F keep, take;
    this->merge(later.max, V::mul(later.sum, times), keep, take);
    take = V::mul(take, times);
    V::store(keeps, keep), V::store(takes, take);
    for (int r = 0; r < rows.count; ++r)
      for (int d = 0; d < channels; d += kLanes) {
        const F kept = V::mul(V::load(out[r] + d), V::set1(keeps[r]));
        V::store(out[r] + d, V::fma(V::load(later.out[r] + d), V::set1(takes[r]), kept));
      }
  }
  // out / sum → rows; adding +0 leaves no −0.
  POCKETFORMER_INLINE void store(const AttentionArgs& c, const LaneRows& rows) const {
    alignas(64) float factors[kLanes];
    this->inverse(factors);
    for (int r = 0; r < rows.count; ++r)
      for (int d = 0; d < c.head_dim; d += kLanes)
        V::store_partial(c.out + rows.query[r] * c.ldo + rows.head[r] * c.head_dim + d,
                         V::fma(V::load(out[r] + d), V::set1(factors[r]), V::zero()),
                         c.head_dim - d < kLanes ? c.head_dim - d : kLanes);
  }
};

// Which of 16 keys in the lanes a row sees.
template <class V>
struct KeyMask {
  int low, high;  // first and one past the last key

  POCKETFORMER_INLINE KeyMask(int begin, int end) : low(begin), high(end) {}
  // x where key + lane is seen, else `masked`.
  POCKETFORMER_INLINE typename V::F apply(int key, typename V::F x, float masked) const {
    if (low <= key && key + kLanes <= high) return x;
    alignas(64) static constexpr int32_t kIndex[kLanes] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const typename V::I lane = V::load_i32(kIndex), most = V::set1_i32(pocketformer::kUnlimited);
    x = V::select(V::between(lane, most, high - 1 - key), x, V::set1(masked));                   // lane < high − key
    return V::select(V::between(V::negate_i32(most), lane, low - 1 - key), x, V::set1(masked));  // lane ≥ low − key
  }
};

// Scales of the 16 keys from `key` on, zeros from `end` on.
template <class V>
POCKETFORMER_INLINE typename V::F load_keys(const float* x, int key, int end) {
  return key + kLanes <= end ? V::load(x + key) : V::load_partial(x + key, end - key);
}

// Bias of the 16 keys from `key` on for row `r`.
template <class V>
POCKETFORMER_INLINE typename V::F bias_of_lanes(const AttentionArgs& c, const LaneRanges<V>& range,
                                                const LaneRows& rows, int r, int key, int end) {
  alignas(64) float lanes[kLanes] = {};
  const int position = c.first_position + rows.query[r];
  const float* row = range.bias + rows.head[r] * c.ld_bias + c.bias_of_query * position + range.bias_of_key * key;
  for (int i = 0; i < kLanes && key + i < end; ++i) lanes[i] = row[range.bias_of_key * i];
  return V::mul(V::load(lanes), V::set1(kLog2E));
}

}  // namespace

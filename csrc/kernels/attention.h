// What the int8 and fp32 attention kernels share: queries stand in the lanes, keys pass one by one.
//
// Sixteen queries of one head are one virtual vector, so a row's maximum, sum and rescaling are plain vector operations
// and a key's or a value's element is a broadcast. Keys pass in tiles of kKeyTile counted from the start of the
// sequence; a tile outside every lane's range is never touched. Each split of kKeySplit keys has a softmax of its own,
// and these are joined in order: so several threads can share one long sequence. A lane's result does not depend on its
// neighbours.
#pragma once

#include "kernels/rows.h"

namespace {

using pocketformer::AttentionArgs;
using pocketformer::kKeySplit;
using pocketformer::kKeyTile;
using pocketformer::kMaxHeadDim;

constexpr float kMasked = -1e30f;  // finite, so that differences of masked scores are not NaN

// Asks for `bytes` from `p` on. They need not exist: a prefetch cannot fault.
POCKETFORMER_INLINE void fetch_ahead(const void* p, int bytes) {
  for (int at = 0; at < bytes; at += 64) __builtin_prefetch(static_cast<const char*>(p) + at, 0, 3);
}

// The lanes' key ranges and their union.
template <class V>
struct LaneRanges {
  typename V::I lo, hi;      // per lane, first and one past the last key
  int begin, end;            // union
  int full_begin, full_end;  // keys that every lane sees

  POCKETFORMER_INLINE LaneRanges(const AttentionArgs& a, int first_query, int queries) {
    if (a.range.left >= a.keys && a.range.right >= a.keys) {
      lo = V::zero_i32(), hi = V::set1_i32(a.keys);
      begin = full_begin = 0, end = full_end = a.keys;
      return;
    }
    alignas(64) int32_t lows[kLanes], highs[kLanes];
    begin = a.keys, end = 0, full_begin = 0, full_end = a.keys;
    for (int i = 0; i < kLanes; ++i) {
      const int position = a.first_position + first_query + (i < queries ? i : 0);  // idle lanes follow the first
      const int low = position > a.range.left ? position - a.range.left : 0;
      const int high = a.range.right < a.keys - 1 - position ? position + a.range.right + 1 : a.keys;
      lows[i] = low, highs[i] = high;
      begin = low < begin ? low : begin;
      end = high > end ? high : end;
      full_begin = low > full_begin ? low : full_begin;
      full_end = high < full_end ? high : full_end;
    }
    lo = V::load_i32(lows);
    hi = V::load_i32(highs);
  }
  POCKETFORMER_INLINE bool partial(int key, int count) const { return key < full_begin || key + count > full_end; }
};

// Running softmax of 16 queries: maximum, denominator and fp32 result per channel.
template <class V>
struct RunningSoftmax {
  using F = typename V::F;
  F max, sum;
  F out[kMaxHeadDim];

  POCKETFORMER_INLINE explicit RunningSoftmax(int channels) { clear(channels); }
  POCKETFORMER_INLINE void clear(int channels) {
    max = V::set1(kMasked), sum = V::zero();
    for (int d = 0; d < channels; ++d) out[d] = V::zero();
  }
  // Takes in the softmax of later keys.
  POCKETFORMER_INLINE void join(const RunningSoftmax& later, int channels) {
    F keep, take;
    merge(later.max, later.sum, keep, take);
    for (int d = 0; d < channels; ++d) out[d] = V::fma(later.out[d], take, V::mul(out[d], keep));
  }
  // Takes in a tile whose weights are relative to `tile_max` (base 2, already scaled); returns the factors for what was
  // there before and for the tile.
  POCKETFORMER_INLINE void merge(F tile_max, F tile_sum, F& keep, F& take) {
    const F top = V::max(max, tile_max);
    keep = exp2_or_zero<V>(V::sub(max, top));
    take = exp2_or_zero<V>(V::sub(tile_max, top));
    max = top;
    sum = V::fma(sum, keep, V::mul(tile_sum, take));
  }
  // out[channel][query] / sum → rows. A query that saw no key gets zeros; adding +0 leaves no −0.
  POCKETFORMER_INLINE void store(float* to, size_t ldo, int queries, int head_dim) {
    alignas(64) float sums[kLanes], factors[kLanes];
    V::store(sums, sum);
    for (int i = 0; i < kLanes; ++i) factors[i] = sums[i] > 0 ? 1.0f / sums[i] : 0.0f;
    const F inverse = V::load(factors);
    for (int d = 0; d < head_dim; d += kLanes) {
      F block[kLanes];
      for (int i = 0; i < kLanes; ++i) block[i] = V::fma(out[d + i], inverse, V::zero());
      V::transpose(block);
      const int channels = head_dim - d < kLanes ? head_dim - d : kLanes;
      for (int i = 0; i < queries; ++i) V::store_partial(to + i * ldo + d, block[i], channels);
    }
  }
};

// Runs tile(begin, end, softmax) over the keys that some lane sees, split by split, and stores the rows.
template <class V, class Tile>
POCKETFORMER_INLINE void for_each_tile(const AttentionArgs& c, const LaneRanges<V>& range, float* out, int queries,
                                       Tile tile) {
  RunningSoftmax<V> softmax(c.head_stride);
  const auto run = [&](int from, int to) POCKETFORMER_LAMBDA {
    for (int start = from; start < to; start += kKeyTile)
      tile(start > range.begin ? start : range.begin, start + kKeyTile < to ? start + kKeyTile : to, softmax);
  };
  const int first = range.begin / kKeyTile * kKeyTile;
  int split = (range.begin / kKeySplit + 1) * kKeySplit;
  if (range.end <= split) {
    run(first, range.end);
    return softmax.store(out, c.ldo, queries, c.head_dim);
  }
  RunningSoftmax<V> all(c.head_stride);
  for (int begin = first; begin < range.end; begin = split, split += kKeySplit) {
    softmax.clear(c.head_stride);
    run(begin, split < range.end ? split : range.end);
    all.join(softmax, c.head_stride);
  }
  all.store(out, c.ldo, queries, c.head_dim);
}

// Bias of key j for the 16 queries: entry (position of query) − j, contiguous in the query.
template <class V>
POCKETFORMER_INLINE typename V::F relative_bias(const float* row, int first_position, int key, int queries) {
  return V::mul(V::load_partial(row + first_position - key, queries), V::set1(kLog2E));
}

}  // namespace

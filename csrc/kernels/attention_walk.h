// What the int8 and fp32 attention kernels share: which rows go into the lanes, the keys that they see, their softmax.
//
// Sixteen rows, queries of heads that share a KV head, are one virtual vector, so a row's maximum, sum and rescaling
// are plain vector operations and a key's or a value's element is a broadcast. With few rows keys and channels go into
// the lanes instead (attention_few_i8.h, attention_few_f32.h): the same operations in the same order for every row.
// Keys pass in tiles of kKeyTile counted from the start of the sequence; a tile outside every row's range is never
// touched. Each split of kKeySplit keys has a softmax of its own, and these are joined in order: so several threads can
// share one long sequence. A row's result does not depend on its neighbours.
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

// Rows that stand in the lanes: queries of heads that share a KV head. Idle lanes follow the first.
struct LaneRows {
  int count;
  int head[kLanes], query[kLanes];

  // Of heads from `first_head` on with `queries` queries each from `first_query` on: `many` rows from number `begin`
  // on.
  POCKETFORMER_INLINE LaneRows(int first_head, int first_query, int queries, int begin, int many) : count(many) {
    int h = first_head + begin / queries, q = begin % queries;
    for (int i = 0; i < kLanes; ++i) {
      head[i] = i < count ? h : head[0];
      query[i] = first_query + (i < count ? q : query[0] - first_query);
      if (++q == queries) q = 0, ++h;
    }
  }
};

// Calls fn with all rows of the heads [head_begin, head_end): sixteen queries of a head, then what is left of the heads
// that share a KV head.
template <class Fn>
POCKETFORMER_INLINE void for_each_rows(const AttentionArgs& c, Fn fn) {
  const int share = c.heads / c.kv_heads, whole = c.queries / kLanes * kLanes, left = c.queries - whole;
  for (int head = c.head_begin, end; head < c.head_end; head = end) {
    end = (head / share + 1) * share;
    // The biases of the lanes are one vector of the table: they belong to one head.
    if (c.bias != nullptr) end = head + 1;
    if (end > c.head_end) end = c.head_end;
    for (int h = head; h < end; ++h)
      for (int query = 0; query < whole; query += kLanes) fn(LaneRows(h, query, kLanes, 0, kLanes));
    const int rows = left * (end - head);
    for (int row = 0; row < rows; row += kLanes)
      fn(LaneRows(head, whole, left, row, rows - row < kLanes ? rows - row : kLanes));
  }
}

// The keys that each row sees in one walk over them, and their union.
template <class V>
struct LaneRanges {
  int32_t low[kLanes], high[kLanes];  // per row, first and one past the last key
  typename V::I lo, hi;               // the same in lanes
  int begin, end;                     // union
  int full_begin, full_end;           // keys that every row sees
  const float* bias;                  // of query 0 and key 0, or null
  int bias_of_key;

  // Takes span number `walk`, or, behind the last, the rows' ranges.
  POCKETFORMER_INLINE void take(const AttentionArgs& a, const LaneRows& rows, int walk) {
    const bool ranges = walk == a.span_count, own = !ranges && a.spans[walk].bias != nullptr;
    bias = own ? a.spans[walk].bias : a.bias != nullptr ? a.bias + a.bias_center : nullptr;
    bias_of_key = own ? a.spans[walk].bias_of_key : a.bias_of_key;
    const int first = ranges ? a.first_key : a.spans[walk].begin, last = ranges ? a.keys : a.spans[walk].end;
    if (!ranges || (a.range.left >= a.keys && a.range.right >= a.keys)) {
      for (int i = 0; i < kLanes; ++i) low[i] = first, high[i] = last;
      lo = V::set1_i32(first), hi = V::set1_i32(last);
      begin = full_begin = first, end = full_end = last;
      return;
    }
    begin = last, end = first, full_begin = first, full_end = last;
    for (int i = 0; i < kLanes; ++i) {
      const int position = a.first_position + rows.query[i];
      low[i] = position - first > a.range.left ? position - a.range.left : first;
      high[i] = a.range.right < last - 1 - position ? position + a.range.right + 1 : last;
      begin = low[i] < begin ? low[i] : begin;
      end = high[i] > end ? high[i] : end;
      full_begin = low[i] > full_begin ? low[i] : full_begin;
      full_end = high[i] < full_end ? high[i] : full_end;
    }
    lo = V::load_i32(low);
    hi = V::load_i32(high);
  }
  POCKETFORMER_INLINE bool partial(int key, int count) const { return key < full_begin || key + count > full_end; }
};

// Maximum and denominator of a running softmax, a row in each lane.
template <class V>
struct SoftmaxSums {
  using F = typename V::F;
  F max, sum;

  POCKETFORMER_INLINE void clear() { max = V::set1(kMasked), sum = V::zero(); }
  // Takes in a tile whose weights are relative to `tile_max` (base 2, already scaled); returns the factors for what was
  // there before and for the tile.
  POCKETFORMER_INLINE void merge(F tile_max, F tile_sum, F& keep, F& take) {
    const F top = V::max(max, tile_max);
    keep = exp2_or_zero<V>(V::sub(max, top));
    take = exp2_or_zero<V>(V::sub(tile_max, top));
    max = top;
    sum = V::fma(sum, keep, V::mul(tile_sum, take));
  }
  // What the rows are divided by. A row that saw no key gets zeros.
  POCKETFORMER_INLINE void inverse(float* to) const {
    V::store(to, sum);
    for (int i = 0; i < kLanes; ++i) to[i] = to[i] > 0 ? 1.0f / to[i] : 0.0f;
  }
};

// Running softmax of 16 rows, a row in each lane: with the fp32 result per channel.
template <class V>
struct RunningSoftmax : SoftmaxSums<V> {
  using F = typename V::F;
  F out[kMaxHeadDim];

  POCKETFORMER_INLINE void clear(const LaneRows&, int channels) {
    SoftmaxSums<V>::clear();
    for (int d = 0; d < channels; ++d) out[d] = V::zero();
  }
  // Takes in the softmax of later keys, each `times` times.
  POCKETFORMER_INLINE void join(const RunningSoftmax& later, const LaneRows&, int channels, F times) {
    F keep, take;
    this->merge(later.max, V::mul(later.sum, times), keep, take);
    take = V::mul(take, times);
    for (int d = 0; d < channels; ++d) out[d] = V::fma(later.out[d], take, V::mul(out[d], keep));
  }
  // out[channel][row] / sum → rows; adding +0 leaves no −0.
  POCKETFORMER_INLINE void store(const AttentionArgs& c, const LaneRows& rows) const {
    alignas(64) float factors[kLanes];
    this->inverse(factors);
    const F inverse = V::load(factors);
    for (int d = 0; d < c.head_dim; d += kLanes) {
      F block[kLanes];
      for (int i = 0; i < kLanes; ++i) block[i] = V::fma(out[d + i], inverse, V::zero());
      V::transpose(block);
      const int channels = c.head_dim - d < kLanes ? c.head_dim - d : kLanes;
      for (int i = 0; i < rows.count; ++i)
        V::store_partial(c.out + rows.query[i] * c.ldo + rows.head[i] * c.head_dim + d, block[i], channels);
    }
  }
};

// Runs tile(begin, end, softmax) over the keys that some row sees, walk by walk and split by split, and stores the
// rows.
template <class V, class Softmax, class Tile>
POCKETFORMER_INLINE void for_each_tile(const AttentionArgs& c, const LaneRows& rows, LaneRanges<V>& range, Tile tile) {
  Softmax softmax, before;
  softmax.clear(rows, c.head_stride);
  bool joined = false;
  int times = 1;  // that the keys in `softmax` count
  const auto join = [&]() POCKETFORMER_LAMBDA {
    if (!joined) before.clear(rows, c.head_stride);
    before.join(softmax, rows, c.head_stride, V::set1(static_cast<float>(times)));
    joined = true;
  };
  for (int walk = 0; walk <= c.span_count; ++walk) {
    range.take(c, rows, walk);
    bool next = walk > 0;  // the walks and their splits have a softmax each
    if (range.begin >= range.end) continue;
    for (int start = range.begin / kKeyTile * kKeyTile; start < range.end; start += kKeyTile) {
      if (next) {
        join();
        softmax.clear(rows, c.head_stride);
      }
      times = walk < c.span_count ? c.spans[walk].times : 1;
      next = (start + kKeyTile) % kKeySplit == 0;
      tile(start > range.begin ? start : range.begin, start + kKeyTile < range.end ? start + kKeyTile : range.end,
           softmax);
    }
  }
  if (joined) join();
  (joined ? before : softmax).store(c, rows);
}

// Scores in exponents of 2 once they are multiplied by `factor`, capped; returns their maxima `top` likewise.
template <class V>
POCKETFORMER_INLINE typename V::F cap_scores(const AttentionArgs& c, float* scores, int vectors, typename V::F factor,
                                             typename V::F top) {
  alignas(64) float factors[kLanes], tops[kLanes];
  V::store(factors, factor), V::store(tops, top);
  soft_cap_vectors<V>(scores, vectors, factors, c.softcap * kLog2E);
  soft_cap_vectors<V>(tops, 1, factors, c.softcap * kLog2E);
  return V::load(tops);
}

// Bias of key j for the 16 queries: contiguous in the query, or the key's own.
template <class V>
POCKETFORMER_INLINE typename V::F bias_of(const AttentionArgs& c, const LaneRanges<V>& range, const LaneRows& rows,
                                          int key) {
  const int position = c.first_position + rows.query[0], queries = rows.count;
  const float* row = range.bias + rows.head[0] * c.ld_bias;
  const float* at = row + c.bias_of_query * position + range.bias_of_key * key;
  return V::mul(c.bias_of_query == 0 ? V::set1(*at) : V::load_partial(at, queries), V::set1(kLog2E));
}

}  // namespace

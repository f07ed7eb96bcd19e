// fp32 attention of few rows: keys stand in the lanes for scores and softmax, channels for P·V. Every operation on a
// (row, key) or a (row, channel) is the one of attention_f32.h, in its order: the same bits.
#pragma once

#include "kernels/attention_few.h"
#include "kernels/heads.h"

namespace {

using pocketformer::AttentionF32Args;

// Columns of values that are widened at a time: those of a tile of keys then fill a first-level cache of 32 KiB, and
// others lie in the second.
constexpr int kWidenedColumns = 64;
constexpr int kWidenedFloats = kKeyTile * kWidenedColumns;

// Columns [0, columns) of `rows` rows of fp16, `stride` apart → to[rows][columns]; whole vectors.
template <class V>
__attribute__((noinline)) void widen_rows(const uint16_t* from, size_t stride, int rows, int columns, float* to) {
  for (int r = 0; r < rows; ++r, from += stride, to += columns)
    for (int d = 0; d < columns; d += kLanes) V::store(to + d, V::load_f16(from + d));
}

template <class V>
struct FewRowsF32 {
  using F = typename V::F;

  static constexpr int kChains = V::kAttentionChains;

  const AttentionF32Args& a;
  const AttentionArgs& c;
  const LaneRows& rows;
  const LaneRanges<V>& range;
  size_t first;  // of the sequence's first key
  // Values of the tile's keys, from channel `value_begin` on.
  const float* value;
  size_t value_stride;
  int value_begin;
  alignas(64) float query[kFewRows][kMaxHeadDim];
  alignas(64) float scores[kFewRows][kKeyTile];
  alignas(64) float widened[kWidenedFloats];

  POCKETFORMER_INLINE FewRowsF32(const AttentionF32Args& args, const LaneRows& lanes, const LaneRanges<V>& ranges)
      : a(args), c(args.common), rows(lanes), range(ranges) {
    first = (rows.head[0] / (c.heads / c.kv_heads) * a.kv.capacity + c.segment_slot) * c.head_stride;
    for (int r = 0; r < rows.count; ++r)
      for (int d = 0; d < c.head_stride; d += kLanes)
        V::store(query[r] + d, load_head<V, 0>(a.q + rows.query[r] * a.ldq + rows.head[r] * c.head_dim, d, c.head_dim));
  }

  // scores[row][key] = q·k for 16 keys from `key` on, of which those from `end` on repeat the last: channels of sixteen
  // keys side by side, shared by the rows.
  POCKETFORMER_INLINE void multiply(int begin, int key, int end) {
    F acc[kFewRows];
    for (int r = 0; r < rows.count; ++r) acc[r] = V::zero();
    for (int d = 0; d < c.head_dim; d += kLanes) {
      F block[kLanes];
      for (int i = 0; i < kLanes; ++i) {
        const size_t at = first + static_cast<size_t>(key + i < end ? key + i : end - 1) * c.head_stride + d;
        block[i] = a.kv.half_k == nullptr ? V::load(a.kv.k + at) : V::load_f16(a.kv.half_k + at);
      }
      V::transpose(block);
      for (int r = 0; r < rows.count; ++r) {
        const float* q = query[r] + d;
        F sum = acc[r];
        if (c.head_dim - d >= kLanes)
          unroll<kLanes>([&](auto i) POCKETFORMER_LAMBDA { sum = V::fma(V::set1(q[i]), block[i], sum); });
        else
          for (int i = 0; i < c.head_dim - d; ++i) sum = V::fma(V::set1(q[i]), block[i], sum);
        acc[r] = sum;
      }
    }
    for (int r = 0; r < rows.count; ++r) V::store(scores[r] + key - begin, acc[r]);
  }

  // Scores of a row → weights relative to their maximum, which it returns.
  POCKETFORMER_INLINE float exponentiate(int r, int begin, int end) {
    const F scale = V::set1(c.scale * kLog2E);
    const KeyMask<V> mask(range.low[r], range.high[r] < end ? range.high[r] : end);
    F highest = V::set1(kMasked);
    for (int key = begin; key < end; key += kLanes) {
      float* at = scores[r] + key - begin;
      F s = V::mul(V::load(at), scale);
      if (range.bias != nullptr) s = V::add(s, bias_of_lanes<V>(c, range, rows, r, key, end));
      s = mask.apply(key, s, kMasked);
      V::store(at, s);
      highest = V::max(highest, s);
    }
    float top = V::reduce_max(highest);
    if (c.softcap != 0) {
      const int vectors = (end - begin + kLanes - 1) / kLanes;
      top = V::reduce_max(cap_scores<V>(c, scores[r], vectors, V::set1(1.0f), V::set1(top)));
    }
    for (int key = begin; key < end; key += kLanes) {
      float* at = scores[r] + key - begin;
      V::store(at, mask.apply(key, exp2<V, true>(V::sub(V::load(at), V::set1(top))), 0.0f));
    }
    return top;
  }

  // out = out·keep + (weights · V)·take for `R` rows from `row` on and `N` vectors of channels from d on.
  template <int R, int N>
  POCKETFORMER_INLINE void accumulate(int row, int d, int begin, int end, const float* keep, const float* take,
                                      RunningRows<V>& softmax) {
    F acc[R * N];
    unroll<R * N>([&](auto i) POCKETFORMER_LAMBDA { acc[i] = V::zero(); });
    const float* x = value + (d - value_begin);
    for (int at = 0; at < end - begin; ++at, x += value_stride)
      unroll<R>([&](auto r) POCKETFORMER_LAMBDA {
        const F w = V::set1(scores[row + r][at]);
        unroll<N>([&](auto n)
                      POCKETFORMER_LAMBDA { acc[r * N + n] = V::fma(w, V::load(x + n * kLanes), acc[r * N + n]); });
      });
    unroll<R * N>([&](auto i) POCKETFORMER_LAMBDA { V::pin(acc[i]); });
    unroll<R * N>([&](auto i) POCKETFORMER_LAMBDA {
      constexpr int r = i / N, n = i % N;
      float* out = softmax.out[row + r] + d + n * kLanes;
      const F kept = V::mul(V::load(out), V::set1(keep[row + r]));
      V::store(out, V::fma(acc[i], V::set1(take[row + r]), kept));
    });
  }

  // Channels [d, channels): as many vectors at once as accumulators allow; then half as many.
  template <int R, int N = kChains / R>
  POCKETFORMER_INLINE void accumulate_rows(int row, int d, int channels, int begin, int end, const float* keep,
                                           const float* take, RunningRows<V>& softmax) {
    for (; d + N * kLanes <= channels; d += N * kLanes) accumulate<R, N>(row, d, begin, end, keep, take, softmax);
    if constexpr (N > 1) accumulate_rows<R, N / 2>(row, d, channels, begin, end, keep, take, softmax);
  }

  POCKETFORMER_INLINE void take_tile(int begin, int end, RunningRows<V>& softmax) {
    alignas(64) float top[kLanes] = {}, sum[kLanes] = {}, keeps[kLanes], takes[kLanes];
    for (int key = begin; key < end; key += kLanes) multiply(begin, key, end);
    for (int r = 0; r < rows.count; ++r) top[r] = exponentiate(r, begin, end);
    // One chain a row, side by side: each waits for its own last addition only.
    for (int at = 0; at < end - begin; ++at)
      for (int r = 0; r < kFewRows; ++r) sum[r] += r < rows.count ? scores[r][at] : 0.0f;
    F keep, take;
    softmax.merge(V::load(top), V::load(sum), keep, take);
    V::store(keeps, keep), V::store(takes, take);
    const size_t at = first + static_cast<size_t>(begin) * c.head_stride;
    for (int d = 0, channels; d < c.head_stride; d = channels) {
      channels = c.head_stride;
      value_begin = d;
      if (a.kv.half_v == nullptr) {
        value = a.kv.v + at, value_stride = c.head_stride;
      } else {
        if (channels - d > kWidenedColumns) channels = d + kWidenedColumns;
        widen_rows<V>(a.kv.half_v + at + d, c.head_stride, end - begin, channels - d, widened);
        value = widened, value_stride = channels - d;
      }
      int row = 0;
      for (; row + 2 <= rows.count; row += 2) accumulate_rows<2>(row, d, channels, begin, end, keeps, takes, softmax);
      if (row < rows.count) accumulate_rows<1>(row, d, channels, begin, end, keeps, takes, softmax);
    }
  }
};

template <class V>
void attend_few_f32(const AttentionF32Args& a, const LaneRows& rows) {
  LaneRanges<V> range;
  FewRowsF32<V> few(a, rows, range);
  for_each_tile<V, RunningRows<V>>(a.common, rows, range,
                                   [&](int begin, int end, RunningRows<V>& softmax)
                                       POCKETFORMER_LAMBDA { few.take_tile(begin, end, softmax); });
}

}  // namespace

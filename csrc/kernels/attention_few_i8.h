// int8 attention of few rows: keys stand in the lanes for scores and softmax, channels for P·V. Scores and P·V are
// integers, and every float operation on a (row, key) or a (row, channel) is the one of attention_i8.h: the same bits.
#pragma once

#include "kernels/attention_few.h"

namespace {

using pocketformer::AttentionI8Args;

// What turns a row's integer scores, times the key's scale, into exponents of 2. Never zero, so that a masked score
// stays far below every other even for a query of zeros.
POCKETFORMER_INLINE float score_factor(const AttentionI8Args& a, int query, int head) {
  const AttentionArgs& c = a.common;
  const float f = a.q_scale[static_cast<size_t>(query) * c.heads + head] * (c.scale * kLog2E);
  return f > 1e-20f ? f : 1e-20f;
}

// What the largest weight of a tile is rounded to.
POCKETFORMER_INLINE float weight_steps(const AttentionI8Args& a) { return a.fine ? 16383.0f : 127.0f; }

// Weights below 2^14 as high · 2^7 + low.
template <class V>
POCKETFORMER_INLINE void split_weights(typename V::I p, typename V::I& high, typename V::I& low) {
  high = V::template shift_right<7>(p);
  low = V::add_i32(p, V::negate_i32(V::template shift_left<7>(high)));
}

template <class V>
struct FewRowsI8 {
  using F = typename V::F;
  using I = typename V::I;
  using B = typename V::B;

  static constexpr int kBytes = 4 * kLanes;
  static constexpr int kChains = V::kAttentionChains;

  const AttentionI8Args& a;
  const AttentionArgs& c;
  const LaneRows& rows;
  const LaneRanges<V>& range;
  size_t first;  // the sequence's first key among the slots of all KV heads
  int padded;    // head_stride rounded up to whole vectors of bytes
  alignas(64) float factors[kLanes];
  alignas(64) int8_t query[kFewRows][kMaxHeadDim];
  int32_t initial[kFewRows];  // what the keys' offset adds to a score, negated
  alignas(64) int32_t dots[kFewRows][kKeyTile];
  alignas(64) float p[kFewRows][kKeyTile];
  alignas(64) int8_t weights[2 * kFewRows][kKeyTile];  // of a row, or two planes of one below each other

  POCKETFORMER_INLINE FewRowsI8(const AttentionI8Args& args, const LaneRows& lanes, const LaneRanges<V>& ranges)
      : a(args), c(args.common), rows(lanes), range(ranges) {
    first = rows.head[0] / (c.heads / c.kv_heads) * a.kv.capacity + c.segment_slot;
    padded = round_up(c.head_stride, kBytes);
    std::memset(dots, 0, sizeof(dots));  // lanes behind the last key are masked, but are read
    for (int i = 0; i < kLanes; ++i) factors[i] = score_factor(a, rows.query[i], rows.head[i]);
    for (int r = 0; r < rows.count; ++r) {
      const size_t at = static_cast<size_t>(rows.query[r]) * c.heads + rows.head[r];
      std::memcpy(query[r], a.q + at * c.head_stride, c.head_stride);
      std::memset(query[r] + c.head_stride, 0, padded - c.head_stride);
      int sum = 0;
      for (int d = 0; d < c.head_stride; ++d) sum += query[r][d];
      initial[r] = -V::kActivationOffset * sum;
    }
  }

  // dots[row][key] = q·k (plus the offset's share) for keys [begin, end), in groups of four that start at `begin`.
  POCKETFORMER_INLINE void multiply(int begin, int end) {
    const uint8_t* readable = a.kv.k + c.kv_heads * a.kv.capacity * c.head_stride;
    for (int key = begin; key < end; key += 4) {
      const uint8_t* k = a.kv.k + (first + key) * c.head_stride;
      fetch_ahead(a.kv.v + (first + key) * c.head_stride, 4 * c.head_stride);
      // A vector may reach into the next key, where the query's padding is zero, but not behind the last one.
      alignas(64) uint8_t last[4 * kMaxHeadDim];
      if (k + 3 * c.head_stride + padded > readable) {
        std::memcpy(last, k, 4 * c.head_stride);
        std::memset(last + 4 * c.head_stride, 0, padded - c.head_stride);
        k = last;
      }
      for (int r = 0; r < rows.count; ++r) {
        I acc[4] = {V::zero_i32(), V::zero_i32(), V::zero_i32(), V::zero_i32()};
        for (int d = 0; d < padded; d += kBytes) {
          const B q = V::load_b(query[r] + d);
          unroll<4>([&](auto j) POCKETFORMER_LAMBDA {
            const B x = V::load_b(k + j * c.head_stride + d);
            // Without an offset the operands may change places; the query first has its absolute value once for all.
            acc[j] = V::kActivationOffset != 0 ? V::dot4(acc[j], x, q) : V::dot4(acc[j], q, x);
          });
        }
        unroll<4>([&](auto j) POCKETFORMER_LAMBDA { V::pin(acc[j]); });
        V::store_sums4(dots[r] + key - begin, acc[0], acc[1], acc[2], acc[3]);
      }
    }
  }

  // dots → p·v_scale of a row, as KeyTileI8::score and exponentiate do; returns Σ p, the largest score and product.
  POCKETFORMER_INLINE float exponentiate(int r, int begin, int end, float& top, float& largest) {
    const float* k_scale = a.kv.k_scale + first;
    const float* v_scale = a.kv.v_scale + first;
    const I offset = V::set1_i32(initial[r]);
    const bool bias = range.bias != nullptr;
    const F scaled = V::set1(factors[r]), factor = bias || c.softcap != 0 ? V::set1(1.0f) : scaled;
    const KeyMask<V> mask(range.low[r], range.high[r] < end ? range.high[r] : end);
    F highest = V::set1(kMasked);
    for (int key = begin; key < end; key += kLanes) {
      const int at = key - begin;
      F s = V::mul(V::to_f32(V::add_i32(V::load_i32(dots[r] + at), offset)), load_keys<V>(k_scale, key, end));
      if (bias) s = V::fma(s, scaled, bias_of_lanes<V>(c, range, rows, r, key, end));
      s = mask.apply(key, s, kMasked);
      V::store(p[r] + at, s);
      highest = V::max(highest, s);
    }
    top = V::reduce_max(highest);
    if (c.softcap != 0) {
      const int vectors = (end - begin + kLanes - 1) / kLanes;
      top = V::reduce_max(cap_scores<V>(c, p[r], vectors, scaled, V::set1(top)));
    }
    const F shift = V::sub(V::zero(), V::mul(V::set1(top), factor));
    float sum[4] = {0, 0, 0, 0};
    F most = V::zero();
    for (int key = begin; key < end; key += kLanes) {
      float* at = p[r] + key - begin;
      F x = exp2<V, false>(V::min(V::fma(V::load(at), factor, shift), V::zero()));
      x = mask.apply(key, x, 0.0f);
      V::store(at, x);
      for (int i = 0; i < kLanes; i += 4)  // a key's chain is its position's remainder
        for (int j = 0; j < 4; ++j) sum[j] += at[i + j];
      x = V::mul(x, load_keys<V>(v_scale, key, end));
      most = V::max(most, x);
      V::store(at, x);
    }
    largest = V::reduce_max(most);
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
  }

  // p → weights of a row; with the first row the keys that come next are fetched: of this head's next tile, or of the
  // next head's first.
  POCKETFORMER_INLINE void quantize(int r, int begin, int end, float largest) {
    const F inverse = V::div(V::set1(weight_steps(a)), V::max(V::set1(largest), V::set1(1e-30f)));
    const uint8_t* next_keys = a.kv.k + (first + (end < c.keys ? end : a.kv.capacity)) * c.head_stride;
    for (int at = 0; at < end - begin; at += kLanes) {
      if (r == 0) fetch_ahead(next_keys + at * c.head_stride, kLanes * c.head_stride);
      I whole = V::to_i32(V::mul(V::load(p[r] + at), inverse));
      if (a.fine) {
        I high;
        split_weights<V>(whole, high, whole);
        V::store_bytes(weights[2 * r] + at, high);
      }
      V::store_bytes(weights[a.fine ? 2 * r + 1 : r] + at, whole);
    }
  }

  // out = out·keep + (weights · V)·take for `R` rows from `row` on, or both planes of one, and `N` vectors of channels
  // from d on.
  template <int R, int N>
  POCKETFORMER_INLINE void accumulate(int row, int d, int begin, int end, const float* keep, const float* take,
                                      RunningRows<V>& softmax) {
    I acc[R * N];
    unroll<R * N>([&](auto i) POCKETFORMER_LAMBDA { acc[i] = V::zero_i32(); });
    const int8_t* v = a.kv.v + (first + begin) * c.head_stride + d * 4;
    for (int at = 0; at < end - begin; at += 4, v += c.head_stride * 4)
      unroll<R>([&](auto r) POCKETFORMER_LAMBDA {
        const B w = V::broadcast_b(weights[row + r] + at);
        unroll<N>([&](auto n) POCKETFORMER_LAMBDA {
          acc[r * N + n] = V::dot4_p(acc[r * N + n], w, V::load_b(v + n * kBytes));
        });
      });
    unroll<R * N>([&](auto i) POCKETFORMER_LAMBDA { V::pin(acc[i]); });
    const auto merge = [&](int r, int n, I sum) POCKETFORMER_LAMBDA {
      float* out = softmax.out[r] + d + n * kLanes;
      const F kept = V::mul(V::load(out), V::set1(keep[r]));
      V::store(out, V::fma(V::to_f32(sum), V::set1(take[r]), kept));
    };
    if constexpr (R == 2)
      if (a.fine) {
        unroll<N>([&](auto n) POCKETFORMER_LAMBDA {
          merge(row / 2, n, V::add_i32(V::template shift_left<7>(acc[n]), acc[N + n]));
        });
        return;
      }
    unroll<R * N>([&](auto i) POCKETFORMER_LAMBDA { merge(row + i / N, i % N, acc[i]); });
  }

  // As many vectors of channels at once as accumulators allow; then half as many.
  template <int R, int N = kChains / R>
  POCKETFORMER_INLINE void accumulate_rows(int row, int d, int begin, int end, const float* keep, const float* take,
                                           RunningRows<V>& softmax) {
    for (; d + N * kLanes <= c.head_stride; d += N * kLanes) accumulate<R, N>(row, d, begin, end, keep, take, softmax);
    if constexpr (N > 1) accumulate_rows<R, N / 2>(row, d, begin, end, keep, take, softmax);
  }

  POCKETFORMER_INLINE void take_tile(int first_key, int end, RunningRows<V>& softmax) {
    const int begin = first_key / 4 * 4;
    alignas(64) float top[kLanes] = {}, sum[kLanes] = {}, largest[kLanes] = {}, keeps[kLanes], takes[kLanes];
    multiply(begin, end);
    for (int r = 0; r < rows.count; ++r) {
      sum[r] = exponentiate(r, begin, end, top[r], largest[r]);
      quantize(r, begin, end, largest[r]);
    }
    F keep, take;
    const F tops = c.bias != nullptr || c.softcap != 0 ? V::load(top) : V::mul(V::load(top), V::load(factors));
    softmax.merge(tops, V::load(sum), keep, take);
    V::store(keeps, keep);
    V::store(takes, V::mul(take, V::mul(V::load(largest), V::set1(1.0f / weight_steps(a)))));
    const int planes = a.fine ? 2 * rows.count : rows.count;
    int row = 0;
    for (; row + 2 <= planes; row += 2) accumulate_rows<2>(row, 0, begin, end, keeps, takes, softmax);
    if (row < planes) accumulate_rows<1>(row, 0, begin, end, keeps, takes, softmax);
  }
};

template <class V>
void attend_few_i8(const AttentionI8Args& a, const LaneRows& rows) {
  LaneRanges<V> range;
  FewRowsI8<V> few(a, rows, range);
  for_each_tile<V, RunningRows<V>>(a.common, rows, range,
                                   [&](int begin, int end, RunningRows<V>& softmax)
                                       POCKETFORMER_LAMBDA { few.take_tile(begin, end, softmax); });
}

}  // namespace

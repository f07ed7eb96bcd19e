// int8 attention: Q·Kᵀ and P·V on the integer dot product; softmax in fp32 (docs/format.md, Arithmetic).
#pragma once

#include "kernels/attention.h"

namespace {

using pocketformer::AttentionI8Args;
using pocketformer::StoreI8Args;

template <class V>
POCKETFORMER_INLINE typename V::F load_head(const float* x, int d, int head_dim) {
  const int left = head_dim - d;
  return left >= kLanes ? V::load(x + d) : V::load_partial(x + d, left > 0 ? left : 0);
}

template <class V>
POCKETFORMER_INLINE float head_max_abs(const float* x, int head_dim) {
  typename V::F m = V::zero();
  for (int d = 0; d < head_dim; d += kLanes) m = V::max(m, V::abs(load_head<V>(x, d, head_dim)));
  return V::reduce_max(m);
}

template <class V>
POCKETFORMER_INLINE typename V::I quantize_head(const float* x, int d, int head_dim, float inverse) {
  return V::to_i32(V::mul(load_head<V>(x, d, head_dim), V::set1(inverse)));
}

// Values of `count` ≤ 4 tokens that share a group of four keys, beginning at `slot`.
template <class V>
POCKETFORMER_INLINE void store_values(const StoreI8Args& s, int row, int count, size_t slot, int head) {
  const int column = (s.heads + s.kv_heads + head) * s.head_dim;
  const float* x[4];
  float inverse[4];
  for (int i = 0; i < count; ++i) {
    x[i] = s.qkv + (row + i) * s.ld + column;
    const float amax = head_max_abs<V>(x[i], s.head_dim);
    inverse[i] = inverse_scale(amax);
    s.kv.v_scale[head * s.kv.capacity + slot + i] = amax * (1.0f / 127.0f);
  }
  int8_t* group = s.kv.v + (head * s.kv.capacity + slot / 4 * 4) * s.head_stride;
  for (int d = 0; d < s.head_stride; d += kLanes) {
    int8_t* out = group + d * 4;
    if (count == 4) {
      V::store_b(out, V::pack4(quantize_head<V>(x[0], d, s.head_dim, inverse[0]),
                               quantize_head<V>(x[1], d, s.head_dim, inverse[1]),
                               quantize_head<V>(x[2], d, s.head_dim, inverse[2]),
                               quantize_head<V>(x[3], d, s.head_dim, inverse[3])));
      continue;
    }
    for (int i = 0; i < count; ++i) {  // a group shared with another block: only this block's bytes are written
      alignas(16) int8_t bytes[kLanes];
      V::store_bytes(bytes, quantize_head<V>(x[i], d, s.head_dim, inverse[i]));
      for (int c = 0; c < kLanes; ++c) out[c * 4 + (slot + i) % 4] = bytes[c];
    }
  }
}

template <class V>
void store_i8(const StoreI8Args& s) {
  using I = typename V::I;
  const I offset = V::set1_i32(V::kActivationOffset);
  for (int r = 0; r < s.rows; ++r) {
    const float* x = s.qkv + r * s.ld;
    for (int h = 0; h < s.heads; ++h) {
      const float amax = head_max_abs<V>(x + h * s.head_dim, s.head_dim);
      const float inverse = inverse_scale(amax);
      const size_t at = static_cast<size_t>(r) * s.heads + h;
      for (int d = 0; d < s.head_stride; d += kLanes)
        V::store_bytes(s.q + at * s.head_stride + d,
                       V::add_i32(quantize_head<V>(x + h * s.head_dim, d, s.head_dim, inverse), offset));
      s.q_scale[at] = amax * (1.0f / 127.0f);
    }
    x += s.heads * s.head_dim;
    for (int h = 0; h < s.kv_heads; ++h) {
      const float amax = head_max_abs<V>(x + h * s.head_dim, s.head_dim);
      const float inverse = inverse_scale(amax);
      const size_t at = h * s.kv.capacity + s.slot + r;
      I sum = V::zero_i32();
      for (int d = 0; d < s.head_stride; d += kLanes) {
        const I k = quantize_head<V>(x + h * s.head_dim, d, s.head_dim, inverse);
        V::store_bytes(s.kv.k + at * s.head_stride + d, k);
        sum = V::add_i32(sum, k);
      }
      s.kv.k_scale[at] = amax * (1.0f / 127.0f);
      // Unsigned: hostile weights lead to infinities, which some CPUs convert to −2^31.
      s.kv.k_start[at] = static_cast<int32_t>(0u - static_cast<uint32_t>(V::kActivationOffset) *
                                                       static_cast<uint32_t>(V::reduce_add_i32(sum)));
    }
  }
  for (int h = 0; h < s.kv_heads; ++h)
    for (int r = 0; r < s.rows;) {
      const size_t slot = s.slot + r;
      const int to_boundary = 4 - static_cast<int>(slot % 4);
      const int count = s.rows - r < to_boundary ? s.rows - r : to_boundary;
      store_values<V>(s, r, count, slot, h);
      r += count;
    }
}

// One tile of keys for 16 queries of a head. `Stride` is head_stride where it is known when compiling (then every
// address is one register and a constant), or 0.
template <class V, int Stride>
struct KeyTileI8 {
  using F = typename V::F;
  using I = typename V::I;
  using B = typename V::B;

  static constexpr int kChains = V::kAttentionChains;

  // Keys [begin, end) of a tile, `begin` a multiple of four; the last group of keys may write beyond `end`.
  alignas(64) float scores[(kKeyTile + kChains) * kLanes];
  alignas(64) int8_t weights[kKeyTile * kLanes];  // [key/4][query][4]

  static POCKETFORMER_INLINE int stride(const AttentionArgs& c) { return Stride != 0 ? Stride : c.head_stride; }

  // scores[key][query] = float(q·k)·k_scale for keys [begin, end); returns their maximum per lane.
  template <bool kBias>
  POCKETFORMER_INLINE F score(const AttentionI8Args& a, const B* query, const LaneRanges<V>& range, int kv_head,
                              int begin, int end, F factor, const float* bias, int first_position, int queries) {
    const AttentionArgs& c = a.common;
    const size_t first = kv_head * a.kv.capacity + c.segment_slot;
    const int8_t* k = a.kv.k + first * stride(c);
    const float* k_scale = a.kv.k_scale + first;
    const int32_t* k_start = a.kv.k_start + first;
    F top = V::set1(kMasked);
    const auto group = [&](int key, auto tail) POCKETFORMER_LAMBDA {
      // A short last group repeats its last key, which changes no maximum.
      const auto at = [=](int j) POCKETFORMER_LAMBDA { return tail && key + j >= end ? end - 1 : key + j; };
      I acc[kChains];
      unroll<kChains>([&](auto j) POCKETFORMER_LAMBDA {
        acc[j] = V::kActivationOffset != 0 ? V::set1_i32(k_start[at(j)]) : V::zero_i32();
      });
      for (int d = 0; d < stride(c); d += 4) {
        const B q = query[d / 4];
        unroll<kChains>([&](auto j) POCKETFORMER_LAMBDA {
          acc[j] = V::dot4(acc[j], q, V::broadcast_b(k + static_cast<ptrdiff_t>(at(j)) * stride(c) + d));
        });
      }
      unroll<kChains>([&](auto j) POCKETFORMER_LAMBDA { V::pin(acc[j]); });
      float* out = scores + (key - begin) * kLanes;
      const auto finish = [&](auto masked) POCKETFORMER_LAMBDA {
        unroll<kChains>([&](auto j) POCKETFORMER_LAMBDA {
          F s = V::mul(V::to_f32(acc[j]), V::set1(k_scale[at(j)]));
          if constexpr (kBias) s = V::fma(s, factor, relative_bias<V>(bias, first_position, at(j), queries));
          if constexpr (masked) s = V::select(V::between(range.lo, range.hi, at(j)), s, V::set1(kMasked));
          V::store(out + j * kLanes, s);
          top = V::max(top, s);
        });
      };
      if (range.partial(key, kChains))
        finish(std::true_type{});
      else
        finish(std::false_type{});
    };
    int key = begin;
    for (; key + kChains <= end; key += kChains) group(key, std::false_type{});
    if (key < end) group(key, std::true_type{});
    return top;
  }

  // scores → p·v_scale with p = 2^(score·factor − top·factor); returns Σ p and the largest product.
  POCKETFORMER_INLINE F exponentiate(const LaneRanges<V>& range, int begin, int end, F factor, F top,
                                     const float* v_scale, F& largest) {
    const F shift = V::sub(V::zero(), V::mul(top, factor));
    F sum[4] = {V::zero(), V::zero(), V::zero(), V::zero()};
    F most = V::zero();
    const auto take = [&](int key, F& total, auto masked) POCKETFORMER_LAMBDA {
      float* at = scores + (key - begin) * kLanes;
      F p = exp2<V, false>(V::fma(V::load(at), factor, shift));
      if constexpr (masked) p = V::select(V::between(range.lo, range.hi, key), p, V::zero());
      total = V::add(total, p);
      p = V::mul(p, V::set1(v_scale[key]));
      most = V::max(most, p);
      V::store(at, p);
    };
    // A key's chain is its position's remainder: the sum does not depend on where the lanes' union begins.
    const auto take_all = [&](auto masked) POCKETFORMER_LAMBDA {
      int key = begin;
      for (; key + 4 <= end; key += 4) unroll<4>([&](auto j) POCKETFORMER_LAMBDA { take(key + j, sum[j], masked); });
      unroll<3>([&](auto j) POCKETFORMER_LAMBDA {
        if (key + j < end) take(key + j, sum[j], masked);
      });
    };
    if (range.partial(begin, end - begin))
      take_all(std::true_type{});
    else
      take_all(std::false_type{});
    largest = most;
    return V::add(V::add(sum[0], sum[1]), V::add(sum[2], sum[3]));
  }

  // weights = rne(scores·inverse), 0…127, in groups of four keys as the values are stored; zero from `end` on.
  POCKETFORMER_INLINE void quantize(int begin, int end, F inverse) {
    const auto quantized = [&](int key) POCKETFORMER_LAMBDA {
      return V::to_i32(V::mul(V::load(scores + (key - begin) * kLanes), inverse));
    };
    int8_t* out = weights;
    int key = begin;
    for (; key + 4 <= end; key += 4, out += 4 * kLanes)
      V::store_b(out, V::pack4(quantized(key), quantized(key + 1), quantized(key + 2), quantized(key + 3)));
    if (key == end) return;
    I p[4];
    unroll<4>([&](auto j) POCKETFORMER_LAMBDA { p[j] = key + j < end ? quantized(key + j) : V::zero_i32(); });
    V::store_b(out, V::pack4(p[0], p[1], p[2], p[3]));
  }

  // out = out·keep + (weights · V)·take
  POCKETFORMER_INLINE void accumulate(const AttentionI8Args& a, int kv_head, int begin, int end, F keep, F take,
                                      F* out) {
    const AttentionArgs& c = a.common;
    const int groups = (end - begin + 3) / 4;
    const int8_t* v = a.kv.v + (kv_head * a.kv.capacity + c.segment_slot + begin) * stride(c);
    for (int d = 0; d < stride(c); d += kChains) {
      I acc[kChains];
      unroll<kChains>([&](auto i) POCKETFORMER_LAMBDA { acc[i] = V::zero_i32(); });
      const int8_t* row = v + d * 4;
      for (int g = 0; g < groups; ++g, row += stride(c) * 4) {
        const B p = V::load_b(weights + g * 64);
        unroll<kChains>([&](auto i)
                            POCKETFORMER_LAMBDA { acc[i] = V::dot4_p(acc[i], p, V::broadcast_b(row + i * 4)); });
      }
      unroll<kChains>([&](auto i) POCKETFORMER_LAMBDA { V::pin(acc[i]); });
      unroll<kChains>(
          [&](auto i) POCKETFORMER_LAMBDA { out[d + i] = V::fma(V::to_f32(acc[i]), take, V::mul(out[d + i], keep)); });
    }
  }
};

// Sixteen queries' groups of four channels side by side: [head_stride/4][16 queries][4]. Idle lanes repeat the first
// query.
template <class V>
POCKETFORMER_INLINE void gather_queries(const uint8_t* q, size_t stride, int queries, int head_stride,
                                        typename V::B* panel) {
  constexpr int kBytes = 4 * kLanes;
  for (int d = 0; d < head_stride; d += kBytes) {
    const int groups = head_stride - d < kBytes ? (head_stride - d) / 4 : kLanes;
    typename V::F block[kLanes];  // only moved, never computed with
    for (int i = 0; i < kLanes; ++i) {
      const uint8_t* row = q + (i < queries ? i : 0) * stride + d;
      block[i] = V::load_partial(reinterpret_cast<const float*>(row), groups);
    }
    V::transpose(block);
    for (int i = 0; i < groups; ++i) {
      alignas(64) float lanes[kLanes];
      V::store(lanes, block[i]);
      panel[d / 4 + i] = V::load_b(lanes);
    }
  }
}

template <class V, int Stride, bool kBias>
void attend_i8(const AttentionI8Args& a, int head, int first_query, int queries) {
  using F = typename V::F;
  const AttentionArgs& c = a.common;
  const int kv_head = head / (c.heads / c.kv_heads);
  const size_t row = static_cast<size_t>(first_query) * c.heads + head;
  const int first_position = c.first_position + first_query;
  const LaneRanges<V> range(c, first_query, queries);
  const float* v_scale = a.kv.v_scale + kv_head * a.kv.capacity + c.segment_slot;
  const float* bias = kBias ? c.bias + head * c.ld_bias + c.bias_center : nullptr;

  typename V::B query[kMaxHeadDim / 4];
  gather_queries<V>(a.q + row * c.head_stride, static_cast<size_t>(c.heads) * c.head_stride, queries, c.head_stride,
                    query);
  alignas(64) float factors[kLanes];
  for (int i = 0; i < kLanes; ++i) {
    // Never zero, so that a masked score stays far below every other even for a query of zeros.
    const float f = a.q_scale[row + static_cast<size_t>(i < queries ? i : 0) * c.heads] * (c.scale * kLog2E);
    factors[i] = f > 1e-20f ? f : 1e-20f;
  }
  // With a bias the scores are scaled as they are made; without one, inside the exponent.
  const F scaled = V::load(factors), factor = kBias ? V::set1(1.0f) : scaled;

  RunningSoftmax<V> softmax(c.head_stride);
  KeyTileI8<V, Stride> tile;
  for (int start = range.begin / kKeyTile * kKeyTile; start < range.end; start += kKeyTile) {
    const int begin = (start > range.begin ? start : range.begin) / 4 * 4;
    const int end = start + kKeyTile < range.end ? start + kKeyTile : range.end;
    const F top =
        tile.template score<kBias>(a, query, range, kv_head, begin, end, scaled, bias, first_position, queries);
    F largest, keep, take;
    const F sum = tile.exponentiate(range, begin, end, factor, top, v_scale, largest);
    tile.quantize(begin, end, V::div(V::set1(127.0f), V::max(largest, V::set1(1e-30f))));
    softmax.merge(V::mul(top, factor), sum, keep, take);
    take = V::mul(take, V::mul(largest, V::set1(1.0f / 127.0f)));
    tile.accumulate(a, kv_head, begin, end, keep, take, softmax.out);
  }
  softmax.store(c.out + first_query * c.ldo + head * c.head_dim, c.ldo, queries, c.head_dim);
}

template <class V>
void attention_i8(const AttentionI8Args& a) {
  const AttentionArgs& c = a.common;
  for (int head = c.head_begin; head < c.head_end; ++head)
    for (int query = 0; query < c.queries; query += kLanes) {
      const int queries = c.queries - query < kLanes ? c.queries - query : kLanes;
      // Known addresses pay where registers abound; with 16 of them g++ 12 unrolls into spills instead.
      const int stride = V::kAttentionChains >= 8 ? c.head_stride : 0;
      if (c.bias != nullptr)
        attend_i8<V, 0, true>(a, head, query, queries);
      else if (stride == 32)
        attend_i8<V, V::kAttentionChains >= 8 ? 32 : 0, false>(a, head, query, queries);
      else
        attend_i8<V, 0, false>(a, head, query, queries);
    }
}

}  // namespace

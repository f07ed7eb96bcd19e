// int8 attention: Q·Kᵀ and P·V on the integer dot product; softmax in fp32 (docs/format.md, Arithmetic).
#pragma once

#include "kernels/attention_few_i8.h"

namespace {

// One tile of keys for 16 queries of a head. `Stride` is head_stride where it is known when compiling (then every
// address is one register and a constant), or 0.
template <class V, int Stride>
struct KeyTileI8 {
  using F = typename V::F;
  using I = typename V::I;
  using B = typename V::B;

  static constexpr int kChains = V::kAttentionChains;
  static constexpr bool kProducts = V::kAttentionProducts;

  // Keys [begin, end) of a tile, `begin` a multiple of four; the last group of keys may write beyond `end`.
  alignas(64) float scores[(kKeyTile + kChains) * kLanes];
  alignas(64) int8_t weights[2][kKeyTile * kLanes];  // [plane][key/4][query][4]

  static POCKETFORMER_INLINE int stride(const AttentionArgs& c) { return Stride != 0 ? Stride : c.head_stride; }

  // scores[key][query] = float(q·k)·k_scale for keys [begin, end); returns their maximum per lane.
  template <bool kBias>
  POCKETFORMER_INLINE F score(const AttentionI8Args& a, const B* query, I initial, const LaneRanges<V>& range,
                              const LaneRows& rows, int kv_head, int begin, int end, F factor) {
    const AttentionArgs& c = a.common;
    const size_t first = kv_head * a.kv.capacity + c.segment_slot;
    const uint8_t* k = a.kv.k + first * stride(c);
    const float* k_scale = a.kv.k_scale + first;
    const int8_t* values = a.kv.v + first * stride(c);
    F top = V::set1(kMasked);
    const auto group = [&](int key, auto tail) POCKETFORMER_LAMBDA {
      // A short last group repeats its last key, which changes no maximum.
      const auto at = [=](int j) POCKETFORMER_LAMBDA { return tail && key + j >= end ? end - 1 : key + j; };
      I acc[kChains];
      unroll<kChains>([&](auto j) POCKETFORMER_LAMBDA { acc[j] = initial; });
      fetch_ahead(values + static_cast<ptrdiff_t>(key) * stride(c), kChains * stride(c));
      const auto by_groups = [&]() POCKETFORMER_LAMBDA {
        for (int d = 0; d < stride(c); d += 4) {
          const B q = query[d / 4];
          unroll<kChains>([&](auto j) POCKETFORMER_LAMBDA {
            acc[j] = V::dot4(acc[j], V::broadcast_b(k + static_cast<ptrdiff_t>(at(j)) * stride(c) + d), q);
          });
        }
      };
      if constexpr (kProducts) {  // keys are rows, the queries a panel
        if constexpr (tail)
          by_groups();
        else
          V::template product<kChains>(acc, k + static_cast<ptrdiff_t>(key) * stride(c), stride(c),
                                       reinterpret_cast<const int8_t*>(query), stride(c) / 4);
      } else {
        by_groups();
      }
      unroll<kChains>([&](auto j) POCKETFORMER_LAMBDA { V::pin(acc[j]); });
      float* out = scores + (key - begin) * kLanes;
      const auto finish = [&](auto masked) POCKETFORMER_LAMBDA {
        unroll<kChains>([&](auto j) POCKETFORMER_LAMBDA {
          F s = V::mul(V::to_f32(acc[j]), V::set1(k_scale[at(j)]));
          if constexpr (kBias) s = V::fma(s, factor, bias_of<V>(c, range, rows, at(j)));
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
      // Above 0 only by rounding, which with huge scores is more than 2^x can take.
      F p = exp2<V, false>(V::min(V::fma(V::load(at), factor, shift), V::zero()));
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

  // weights = rne(scores·inverse) in planes, in groups of four keys as the values are stored; zero from `end` on.
  // Meanwhile the keys that come next are fetched.
  POCKETFORMER_INLINE void quantize(int begin, int end, F inverse, bool fine, const uint8_t* next_keys, int stride) {
    const auto quantized = [&](int key) POCKETFORMER_LAMBDA {
      return V::to_i32(V::mul(V::load(scores + (key - begin) * kLanes), inverse));
    };
    int8_t* out = weights[0];
    const auto store = [&](I(&p)[4]) POCKETFORMER_LAMBDA {
      if (fine) {
        I high[4];
        unroll<4>([&](auto j) POCKETFORMER_LAMBDA { split_weights<V>(p[j], high[j], p[j]); });
        V::store_b(out, V::pack4(high[0], high[1], high[2], high[3]));
      }
      V::store_b(out + (fine ? kKeyTile * kLanes : 0), V::pack4(p[0], p[1], p[2], p[3]));
    };
    int key = begin;
    I p[4];
    for (; key + 4 <= end; key += 4, out += 4 * kLanes) {
      fetch_ahead(next_keys + (key - begin) * stride, 4 * stride);
      unroll<4>([&](auto j) POCKETFORMER_LAMBDA { p[j] = quantized(key + j); });
      store(p);
    }
    if (key == end) return;
    unroll<4>([&](auto j) POCKETFORMER_LAMBDA { p[j] = key + j < end ? quantized(key + j) : V::zero_i32(); });
    store(p);
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
      const int8_t* plane = weights[0];
      for (int more = a.fine ? 1 : 0;; --more, plane = weights[1]) {
        const int8_t* row = v + d * 4;
        for (int g = 0; g < groups; ++g, row += stride(c) * 4) {
          const B p = V::load_b(plane + g * 64);
          if constexpr (kProducts)
            V::template dot4_elements<kChains>(acc, p, row);
          else
            unroll<kChains>([&](auto i)
                                POCKETFORMER_LAMBDA { acc[i] = V::dot4_p(acc[i], p, V::broadcast_b(row + i * 4)); });
        }
        unroll<kChains>([&](auto i) POCKETFORMER_LAMBDA { V::pin(acc[i]); });
        if (more == 0) break;
        unroll<kChains>([&](auto i) POCKETFORMER_LAMBDA { acc[i] = V::template shift_left<7>(acc[i]); });
      }
      unroll<kChains>(
          [&](auto i) POCKETFORMER_LAMBDA { out[d + i] = V::fma(V::to_f32(acc[i]), take, V::mul(out[d + i], keep)); });
    }
  }
};

// Sixteen rows' groups of four channels side by side: [head_stride/4][16 rows][4].
template <class V>
POCKETFORMER_INLINE void gather_queries(const AttentionI8Args& a, const LaneRows& rows, typename V::B* panel) {
  constexpr int kBytes = 4 * kLanes;
  const AttentionArgs& c = a.common;
  for (int d = 0; d < c.head_stride; d += kBytes) {
    const int groups = c.head_stride - d < kBytes ? (c.head_stride - d) / 4 : kLanes;
    typename V::F block[kLanes];  // only moved, never computed with
    for (int i = 0; i < kLanes; ++i) {
      const size_t row = static_cast<size_t>(rows.query[i]) * c.heads + rows.head[i];
      block[i] = V::load_partial(reinterpret_cast<const float*>(a.q + row * c.head_stride + d), groups);
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
void attend_i8(const AttentionI8Args& a, const LaneRows& rows) {
  using F = typename V::F;
  const AttentionArgs& c = a.common;
  const int kv_head = rows.head[0] / (c.heads / c.kv_heads);
  LaneRanges<V> range;
  const float* v_scale = a.kv.v_scale + kv_head * a.kv.capacity + c.segment_slot;
  const uint8_t* keys = a.kv.k + (kv_head * a.kv.capacity + c.segment_slot) * c.head_stride;

  typename V::B query[kMaxHeadDim / 4];
  gather_queries<V>(a, rows, query);
  // Keys carry the offset of the dot product's first operand: −offset·Σ q takes it out again.
  typename V::I initial = V::zero_i32();
  if constexpr (V::kActivationOffset != 0) {
    static_assert(V::kActivationOffset == 128);
    alignas(64) int8_t ones[4 * kLanes];
    std::memset(ones, 1, sizeof(ones));
    for (int d = 0; d < c.head_stride; d += 4) initial = V::dot4_p(initial, V::load_b(ones), query[d / 4]);
    initial = V::negate_i32(V::template shift_left<7>(initial));
  }
  alignas(64) float factors[kLanes];
  for (int i = 0; i < kLanes; ++i) factors[i] = score_factor(a, rows.query[i], rows.head[i]);
  // With a bias or a cap the scores are scaled before the exponent; without, inside it.
  const F scaled = V::load(factors), factor = kBias || c.softcap != 0 ? V::set1(1.0f) : scaled;

  KeyTileI8<V, Stride> tile;
  const auto take_tile = [&](int first_key, int end, RunningSoftmax<V>& softmax) POCKETFORMER_LAMBDA {
    const int begin = first_key / 4 * 4;
    F top = tile.template score<kBias>(a, query, initial, range, rows, kv_head, begin, end, scaled);
    if (c.softcap != 0) top = cap_scores<V>(c, tile.scores, end - begin, scaled, top);
    F largest, keep, take;
    const F sum = tile.exponentiate(range, begin, end, factor, top, v_scale, largest);
    // Of this head's next tile, or of the next head's first.
    const uint8_t* next_keys = keys + (end < c.keys ? end : a.kv.capacity) * tile.stride(c);
    const F steps = V::set1(weight_steps(a));
    tile.quantize(begin, end, V::div(steps, V::max(largest, V::set1(1e-30f))), a.fine, next_keys, tile.stride(c));
    softmax.merge(V::mul(top, factor), sum, keep, take);
    take = V::mul(take, V::mul(largest, V::set1(1.0f / weight_steps(a))));
    tile.accumulate(a, kv_head, begin, end, keep, take, softmax.out);
  };
  for_each_tile<V, RunningSoftmax<V>>(c, rows, range, take_tile);
}

template <class V>
POCKETFORMER_INLINE void attend_lanes_i8(const AttentionI8Args& a, const LaneRows& rows) {
  // Known addresses pay where registers abound; with 16 of them g++ 12 unrolls into spills instead.
  constexpr int kKnownStride = V::kAttentionChains >= 8 ? 32 : 0;
  if (a.common.bias != nullptr)
    attend_i8<V, 0, true>(a, rows);
  else if (a.common.head_stride == kKnownStride)
    attend_i8<V, kKnownStride, false>(a, rows);
  else
    attend_i8<V, 0, false>(a, rows);
}

template <class V>
void attention_i8(const AttentionI8Args& a) {
  for_each_rows(a.common, [&](const LaneRows& rows) POCKETFORMER_LAMBDA {
    if (rows.count <= kFewRows)
      attend_few_i8<V>(a, rows);
    else
      attend_lanes_i8<V>(a, rows);
  });
}

}  // namespace

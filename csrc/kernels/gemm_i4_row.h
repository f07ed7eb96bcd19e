// One row times a weight of 5 or 6 bits whose inputs are rounded by 16: what decoding does. 32 inputs at a time, from
// the file's two planes into registers, so that each byte is read once and nothing is written but the totals, which
// stay in registers as well. The arithmetic is that of gemm_i4.h. (Of 4 bits its tile does as well: there is nothing to
// put together, and memory is the limit.)
#pragma once

#include "kernels/gemm_i4_prepare.h"

namespace {

// What 16 inputs bring along: what index 0 adds to each channel's sum, their scale, and that times their sum.
struct RowUnit {
  int32_t start;
  float scale, units;
};

// The row, and a tile's panels.
struct RowI4 {
  const uint8_t* x;
  const RowUnit* unit;
  const int8_t* w;
  const uint8_t* high;
  const float *scale, *minimum;
  size_t panel_bytes, panel_high, panel_scales;  // from a panel to the next
  int steps, scale_step;                         // 32 inputs each; 16 where each half of a step has its own scale
};

// Indices without a sign: a lane's two sums of 16 bits hold 8 products of 5 bits, 8·31·127, and half as many of 6.
template <class V, int Bits>
struct RowPlanes {
  using B = typename V::B;
  static constexpr int kHigh = 64 * (Bits - 4);  // upper bits of 32 inputs

  template <int Half>
  static POCKETFORMER_INLINE typename V::I multiply(const uint8_t* x, const int8_t* w, const uint8_t* high) {
    const B upper = V::load_b(Bits == 5 ? high : high + 64 * Half);
    typename V::S sums[2];
    unroll<2>([&](auto pair) POCKETFORMER_LAMBDA {
      const B both = V::load_b(w + 128 * Half + 64 * pair);
      B low = V::low_nibbles(both), next = V::high_nibbles(both);
      if constexpr (Bits == 5) {
        low = V::template join<4 - 2 * pair - 4 * Half, 0x10>(low, upper);
        next = V::template join<3 - 2 * pair - 4 * Half, 0x10>(next, upper);
      } else {
        low = V::template join<4 - 4 * pair, 0x30>(low, upper);
        next = V::template join<2 - 4 * pair, 0x30>(next, upper);
      }
      sums[pair] = V::dot2_narrow(V::multiply_narrow(low, V::broadcast_b(x + 16 * Half + 8 * pair)), next,
                                  V::broadcast_b(x + 16 * Half + 8 * pair + 4));
    });
    if constexpr (Bits == 6) return V::add_i32(V::widen_narrow(sums[0]), V::widen_narrow(sums[1]));
    return V::widen_narrow(V::add_narrow(sums[0], sums[1]));
  }
};

template <class V, class Source, bool kMinimum, int NR>
POCKETFORMER_INLINE void row_i4_totals(RowI4 r, typename V::F (&total)[NR]) {
  unroll<NR>([&](auto c) POCKETFORMER_LAMBDA { total[c] = V::zero(); });
  const size_t ahead = NR * r.panel_bytes, high_ahead = NR * r.panel_high;  // the next tile's lines
  for (; r.steps > 0; --r.steps) {
    unroll<2>([&](auto half) POCKETFORMER_LAMBDA {
      unroll<NR>([&](auto c) POCKETFORMER_LAMBDA {
        const int8_t* const w = r.w + c * r.panel_bytes;
        const uint8_t* const high = r.high + c * r.panel_high;
        unroll<2>([&](auto i) POCKETFORMER_LAMBDA { prefetch(w + ahead + 128 * half + 64 * i); });
        if constexpr (Source::kHigh > 64 * half) prefetch(high + high_ahead + 64 * half);
        // As if new: four bytes of x are better read again than kept, and put away, for the next panel.
        __asm__("" : "+r"(r.x), "+r"(r.unit));
        typename V::I acc = Source::template multiply<half>(r.x, w, high);
        acc = V::add_i32(acc, V::set1_i32(r.unit[half].start));
        const size_t at = c * r.panel_scales + half * r.scale_step;
        const typename V::F value = V::mul(V::to_f32(acc), V::set1(r.unit[half].scale));
        total[c] = V::fma(value, V::load(r.scale + at), total[c]);
        if constexpr (kMinimum) total[c] = V::fma(V::set1(r.unit[half].units), V::load(r.minimum + at), total[c]);
        V::pin(total[c]);
      });
    });
    r.x += 32, r.unit += 2;
    r.w += 256, r.high += Source::kHigh;
    r.scale += kLanes + r.scale_step;
    if constexpr (kMinimum) r.minimum += kLanes + r.scale_step;
  }
}

template <class V, class Source, bool kMinimum, int NR>
__attribute__((noinline)) void row_i4_tile(const GemmArgs& g, const RowI4& row, int panel) {
  typename V::F total[NR], bias[NR];
  row_i4_totals<V, Source, kMinimum, NR>(row, total);
  const int column = panel * kLanes;
  unroll<NR>([&](auto c) POCKETFORMER_LAMBDA {
    bias[c] = g.epilogue.bias != nullptr ? V::load(g.epilogue.bias + column + c * kLanes) : V::zero();
  });
  store_tile<V, 1, NR>(g.epilogue, g.out + column, g.ldo, 0, column,
                       [&](auto c) POCKETFORMER_LAMBDA { return V::add(total[c], bias[c]); });
}

// Whether gemm_i4_row multiplies by it.
template <class V>
POCKETFORMER_INLINE bool takes_row(const WeightView& weight, bool indices) {
  using pocketformer::Format;
  if constexpr (!V::kNarrowSums) return false;
  if (!indices || weight.inputs != 16 || weight.k % 32 != 0) return false;
  if (weight.format == Format::kI6) return weight.minimum == nullptr && weight.half_minimum == nullptr;
  return weight.format == Format::kI5;
}

template <class V, class Source, bool kMinimum>
__attribute__((noinline)) void row_i4_panels(const GemmArgs& g, RowI4 row) {
  alignas(64) float room[2 * pocketformer::kMostGroups * kLanes];
  const WeightView& weight = g.weight;
  const bool halves = weight.half_scale != nullptr;
  const int groups = weight.k / weight.group;
  const int share = weight.subscale == nullptr ? 1 : pocketformer::kBlockK / weight.group;
  const bool several = !halves || V::kRowPanels * groups <= pocketformer::kMostGroups;
  for (int panel = g.panel_begin, step; panel < g.panel_end; panel += step) {
    step = several && g.panel_end - panel >= V::kRowPanels ? V::kRowPanels : 1;
    const size_t at = static_cast<size_t>(panel) * groups * kLanes;
    if (!halves) {
      row.scale = weight.scale + at;
      if constexpr (kMinimum) row.minimum = weight.minimum + at;
    } else {
      const int all = step * groups;
      const bool sub = weight.subscale != nullptr;
      row.scale = room, row.minimum = room + all * kLanes;
      widen_scales<V>(weight.half_scale + at / share, sub ? weight.subscale + at : nullptr, all, share, room);
      if constexpr (kMinimum)
        widen_scales<V>(weight.half_minimum + at / share, sub ? weight.subminimum + at : nullptr, all, share,
                        room + all * kLanes);
    }
    if (step == 1)
      row_i4_tile<V, Source, kMinimum, 1>(g, row, panel);
    else
      row_i4_tile<V, Source, kMinimum, V::kRowPanels>(g, row, panel);
    row.w += step * row.panel_bytes, row.high += step * row.panel_high;
  }
}

template <class V>
__attribute__((noinline)) void gemm_i4_row(const GemmArgs& g) {
  using pocketformer::Format;
  const WeightView& weight = g.weight;
  RowUnit unit[pocketformer::kLookedUpK / 16];
  for (int i = 0; i < weight.k / 16; ++i)
    unit[i] = {weight.codebook[0] * g.x_sum[i], g.x_scale[i], static_cast<float>(g.x_sum[i]) * g.x_scale[i]};
  const size_t panel = static_cast<size_t>(g.panel_begin);
  const size_t panel_bytes = static_cast<size_t>(weight.k) * 8;
  const size_t panel_high = high_bytes(weight);
  const RowI4 row{.x = static_cast<const uint8_t*>(g.x),
                  .unit = unit,
                  .w = static_cast<const int8_t*>(weight.panels) + panel * panel_bytes,
                  .high = weight.high + panel * panel_high,
                  .scale = nullptr,
                  .minimum = nullptr,
                  .panel_bytes = panel_bytes,
                  .panel_high = panel_high,
                  .panel_scales = static_cast<size_t>(weight.k / weight.group) * kLanes,
                  .steps = weight.k / 32,
                  .scale_step = weight.group == 16 ? kLanes : 0};
  const bool shifted = weight.minimum != nullptr || weight.half_minimum != nullptr;
  if (weight.format == Format::kI6) return row_i4_panels<V, RowPlanes<V, 6>, false>(g, row);
  if (shifted) return row_i4_panels<V, RowPlanes<V, 5>, true>(g, row);
  row_i4_panels<V, RowPlanes<V, 5>, false>(g, row);
}

}  // namespace

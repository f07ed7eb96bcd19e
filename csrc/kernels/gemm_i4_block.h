// Several rows times a weight of 4, 5 or 6 bits whose inputs are rounded by 16, where products are added in 16 bits:
// what reading a prompt does. The weights stay and the rows pass: 16 inputs of a panel are taken apart into registers,
// with their scales, and multiplied by one row after the other, whose totals lie in the first-level cache. So nothing
// of a weight is loaded, joined or widened for fewer than all rows, and a row has no sums to keep between its inputs.
// The arithmetic is that of gemm_i4.h.
#pragma once

#include "kernels/gemm_i4_row.h"

namespace {

// 16 inputs of one row. Those of all rows lie side by side, [k/16][rows], so that the loop over them has one address.
struct BlockUnit {
  int8_t x[16];
  float scale;
  union {
    float units;       // Σ x times their scale, which the minimum is multiplied by
    int16_t start[2];  // or what a lane's two sums of 16 bits begin with: the value of index 0 times what they take
  };
};

// Of the second-level cache, on the stack, 96 KiB: 32 rows of up to 2,048 inputs; of longer ones fewer at a time, so
// that what they share, taking a panel apart, comes more often.
constexpr int kBlockRows = 32;
constexpr int kBlockUnits = kBlockRows * 2048 / 16;

// A lane's two sums hold eight products each: of indices below 32, or of values within ±32.
template <class V>
POCKETFORMER_INLINE bool takes_block(const WeightView& weight, bool indices) {
  using pocketformer::Format;
  if constexpr (!V::kNarrowSums) return false;
  if (!indices || weight.inputs != 16 || weight.k > 16 * kBlockUnits / 4) return false;
  const int least = weight.codebook[0], bits = weight.format == Format::kI4 ? 4 : weight.format == Format::kI5 ? 5 : 6;
  if (weight.minimum != nullptr || weight.half_minimum != nullptr) return least == 0 && bits < 6;
  return least >= -32 && least + (1 << bits) <= 32;
}

template <bool kMinimum>
void pack_block(const GemmArgs& g, int first, int rows, BlockUnit* unit) {
  const int units = g.weight.k / 16, least = g.weight.codebook[0];
  for (int r = 0; r < rows; ++r) {
    const int8_t* x = static_cast<const int8_t*>(g.x) + (first + r) * g.ldx;
    const float* scale = g.x_scale + (first + r) * g.ld_scale;
    const int32_t* sum = g.x_sum + (first + r) * g.ld_sum;
    for (int i = 0; i < units; ++i, x += 16) {
      BlockUnit& to = unit[i * rows + r];
      std::memcpy(to.x, x, 16);
      to.scale = scale[i];
      if constexpr (kMinimum) {
        to.units = static_cast<float>(sum[i]) * scale[i];
      } else {
        int begin = 0;
        for (int at = 0; at < 16; at += 4) begin += x[at] + x[at + 1];
        to.start[0] = static_cast<int16_t>(least * begin), to.start[1] = static_cast<int16_t>(least * (sum[i] - begin));
      }
    }
  }
}

// The indices of a panel's next 16 inputs, the first or the second of 32, in order.
template <class V, int Bits, int Half>
POCKETFORMER_INLINE void take_apart(const uint8_t* low, const uint8_t* high, typename V::B (&index)[4]) {
  using B = typename V::B;
  B upper = {};
  if constexpr (Bits > 4) upper = V::load_b(high);
  unroll<2>([&](auto pair) POCKETFORMER_LAMBDA {
    const B both = V::load_b(low + 64 * pair);
    B first = V::low_nibbles(both), second = V::high_nibbles(both);
    if constexpr (Bits == 5) {
      first = V::template join<4 - 2 * pair - 4 * Half, 0x10>(first, upper);
      second = V::template join<3 - 2 * pair - 4 * Half, 0x10>(second, upper);
    } else if constexpr (Bits == 6) {
      first = V::template join<4 - 4 * pair, 0x30>(first, upper);
      second = V::template join<2 - 4 * pair, 0x30>(second, upper);
    }
    index[2 * pair] = first, index[2 * pair + 1] = second;
  });
}

// Scale or minimum of 16 channels, however the file stores them.
struct GroupScales {
  const float* whole;
  const uint16_t* half;
  const int8_t* sub;
  int share;  // 2^share groups have an fp16 in common

  template <class V>
  POCKETFORMER_INLINE typename V::F at(int group) const {
    if (whole != nullptr) return V::load(whole + group * kLanes);
    const typename V::F scale = V::load_f16(half + (group >> share) * kLanes);
    return sub == nullptr ? scale : V::mul(scale, V::load_i8(sub + group * kLanes));
  }
};

// 16 inputs of all rows. A row's products are multiplied while the sums of the row before become floats and join its
// totals, one after the other: that is a long chain, and the CPU does not look far enough ahead for the next row.
// 8 registers of weights, 2 of their scales, 2 × 2 of sums and 2 of products are 16: ones and minima stay in memory.
template <class V, bool kMinimum>
struct BlockRows {
  using B = typename V::B;
  using F = typename V::F;
  using S = typename V::S;
  B index[4];
  F scale;
  const float* beside;  // the minima, and ones of 16 bits

  template <int Group>
  POCKETFORMER_INLINE void multiply(const BlockUnit& unit, S& sums) const {
    const B four = V::broadcast_b(unit.x + 4 * Group);
    if constexpr (Group > 0)
      sums = V::dot2_narrow(sums, index[Group], four);
    else if constexpr (kMinimum)
      sums = V::multiply_narrow(index[0], four);
    else
      sums = V::dot2_narrow(V::broadcast_b(unit.start), index[0], four);
    V::pin(sums);
  }

  POCKETFORMER_INLINE void run(const BlockUnit* unit, int rows, float* total) const {
    S before;
    unroll<4>([&](auto group) POCKETFORMER_LAMBDA { multiply<group>(*unit, before); });
    const auto widen = [&]() POCKETFORMER_LAMBDA {
      const float* from = beside;
      __asm__("" : "+r"(from));  // read for each row
      return V::widen_narrow(before, V::load_b(from + kLanes));
    };
    const auto to_float = [&](typename V::I sum) POCKETFORMER_LAMBDA {
      F value = V::mul(V::to_f32(sum), V::set1(unit->scale));
      V::pin(value);
      return value;
    };
    const auto add = [&](F value) POCKETFORMER_LAMBDA {
      value = V::fma(value, scale, V::load(total));
      V::pin(value);
      return value;
    };
    const auto store = [&](F value) POCKETFORMER_LAMBDA {
      if constexpr (kMinimum) {
        const float* from = beside;
        __asm__("" : "+r"(from));
        value = V::fma(V::set1(unit->units), V::load(from), value);
      }
      V::store(total, value);
    };
    for (const BlockUnit* const last = unit + rows - 1; unit != last; ++unit, total += kLanes) {
      S sums;
      multiply<0>(unit[1], sums);
      typename V::I sum = widen();
      V::pin(sum);
      multiply<1>(unit[1], sums);
      F value = to_float(sum);
      multiply<2>(unit[1], sums);
      value = add(value);
      multiply<3>(unit[1], sums);
      store(value);
      before = sums;
    }
    store(add(to_float(widen())));
  }
};

template <class V, int Bits, bool kMinimum>
__attribute__((noinline)) void gemm_i4_block(const WeightView& weight, const BlockUnit* unit, int rows, float* totals) {
  const auto *low = static_cast<const uint8_t*>(weight.panels), *high = weight.high;
  const int units = weight.k / 16, halves = weight.group == 32 ? 1 : 0;
  const size_t panel_bytes = static_cast<size_t>(weight.k) * 8, panel_high = Bits > 4 ? high_bytes(weight) : 0;
  const int share = weight.subscale == nullptr ? 0 : __builtin_ctz(pocketformer::kBlockK / weight.group);
  const GroupScales scales = {weight.scale, weight.half_scale, weight.subscale, share},
                    minima = {weight.minimum, weight.half_minimum, weight.subminimum, share};
  alignas(64) float beside[2 * kLanes];
  constexpr int16_t kOne[2] = {1, 1};
  V::store_b(beside + kLanes, V::broadcast_b(kOne));
  for (int i = 0; i < units; ++i, unit += rows) {
    BlockRows<V, kMinimum> block;
    block.beside = beside;
    prefetch(low + panel_bytes), prefetch(low + panel_bytes + 64);
    if constexpr (Bits > 4) prefetch(high + panel_high);
    if (Bits != 5 || i % 2 == 0)
      take_apart<V, Bits, 0>(low, high, block.index);
    else
      take_apart<V, Bits, 1>(low, high, block.index);
    low += 128;
    if (Bits == 6 || (Bits == 5 && i % 2 != 0)) high += 64;
    block.scale = scales.at<V>(i >> halves);
    if constexpr (kMinimum) V::store(beside, minima.at<V>(i >> halves));
    unroll<4>([&](auto group) POCKETFORMER_LAMBDA { V::pin(block.index[group]); });
    V::pin(block.scale);
    block.run(unit, rows, totals);
  }
}

// Totals of a panel, with what follows them, to where they belong.
template <class V>
__attribute__((noinline)) void store_block(const GemmArgs& g, int row, int rows, int panel, const float* total) {
  using F = typename V::F;
  const Epilogue& e = g.epilogue;
  const int column = panel * kLanes;
  const bool plain = e.activation == Activation::kNone && e.multiply == nullptr;
  const F bias = e.bias != nullptr ? V::load(e.bias + column) : V::zero();
  const float* residual = plain && e.residual != nullptr ? e.residual + row * e.ld_residual + column : nullptr;
  float* const out = g.out + row * g.ldo + column;
  float* to = out;
  for (int r = 0; r < rows; ++r, total += kLanes, to += g.ldo) {
    F y = V::add(V::load(total), bias);
    if (residual != nullptr) y = V::add(y, V::load(residual)), residual += e.ld_residual;
    V::store(to, y);
  }
  if (!plain) finish_tile<V>(e, out, g.ldo, row, column, rows, kLanes);
}

template <class V, int Bits, bool kMinimum>
__attribute__((noinline)) void multiply_blocks(const GemmArgs& g) {
  BlockUnit unit[kBlockUnits];
  alignas(64) float totals[kBlockRows * kLanes];
  const int most = 16 * kBlockUnits / g.weight.k < kBlockRows ? 16 * kBlockUnits / g.weight.k : kBlockRows;
  const int blocks = (g.m + most - 1) / most;
  for (int b = 0, row = 0, rows; b < blocks; ++b, row += rows) {
    rows = (g.m - row) / (blocks - b);
    pack_block<kMinimum>(g, row, rows, unit);
    for (int panel = g.panel_begin; panel < g.panel_end; ++panel) {
      const GemmArgs part = part_of<uint8_t>(g, 0, g.m, panel);
      for (int i = 0; i < rows * kLanes; i += kLanes) V::store(totals + i, V::zero());
      gemm_i4_block<V, Bits, kMinimum>(part.weight, unit, rows, totals);
      store_block<V>(g, row, rows, panel, totals);
    }
  }
}

template <class V>
void gemm_i4_rows(const GemmArgs& g) {
  using pocketformer::Format;
  const bool shifted = g.weight.minimum != nullptr || g.weight.half_minimum != nullptr;
  if (g.weight.format == Format::kI4)
    shifted ? multiply_blocks<V, 4, true>(g) : multiply_blocks<V, 4, false>(g);
  else if (g.weight.format == Format::kI5)
    shifted ? multiply_blocks<V, 5, true>(g) : multiply_blocks<V, 5, false>(g);
  else
    multiply_blocks<V, 6, false>(g);
}

}  // namespace

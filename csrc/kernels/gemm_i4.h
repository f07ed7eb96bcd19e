// Products with weights of 4 bits, indices into a codebook of 16 signed bytes with one scale a channel or a group of k;
// and with those of 5, 6 and 8 bits whose scales are of groups.
//
// The sums of a group are exact integers. A group's sum, as a float, is multiplied by the group's scale and added to
// the total in one rounding, groups in ascending order (docs/format.md, Arithmetic). With few rows the nibbles are
// looked up as they are multiplied and a panel is read once; with many, a panel is looked up beforehand for all of
// them. What a file stores in a smaller way (5 and 6 bits in two planes, scales as fp16) is put together beforehand,
// a panel or a few at a time, so that the tiles know bytes, nibbles and floats alone; but gemm_i4_row.h and
// gemm_i4_block.h, for one row and for several, take planes as they lie.
//
// Where the dot product takes an unsigned operand, the looked-up weights are it: the codebook is biased once and a
// group's sum begins at −128·Σx. (The activations are not, because 255·127 twice would overflow vpmaddubsw's 16 bits,
// and AVX2 shares their absolute value among the channels.)
//
// Where an ISA adds products in 16 bits (kNarrowSums) and the values are consecutive, what is multiplied is the index,
// 0 … 15, 31 or 63: no signs, and the sums of several k-groups still fit. The first value times Σx is added to them.
#pragma once

#include "kernels/gemm_i4_block.h"
#include "kernels/gemm_i4_prepare.h"
#include "kernels/gemm_i4_row.h"
#include "kernels/gemm_i4_tile.h"

namespace {

// One row: several panels at once are as many streams from memory, and share the work on the activations.
template <template <class, int, int> class Tile, class V>
POCKETFORMER_INLINE void multiply_row(GemmArgs& g) {
  if constexpr (V::kRowPanels > 1)
    if (g.m == 1)
      for (; g.panel_begin + V::kRowPanels <= g.panel_end; g.panel_begin += V::kRowPanels)
        Tile<V, 1, V::kRowPanels>::run(g, 0, g.panel_begin);
}
template <class V>
__attribute__((noinline)) void multiply_nibbles(GemmArgs g) {
  multiply_row<TileI4, V>(g);
  gemm_panels<TileI4, V>(g);
}
template <class V>
__attribute__((noinline)) void multiply_bytes(GemmArgs g) {
  if constexpr (V::kGemmGroups == 1) multiply_row<TileI4Bytes, V>(g);
  for (int panel = g.panel_begin; panel < g.panel_end; ++panel) gemm_rows<TileI4Bytes, V, 1>(g, panel);
}
template <class V>
__attribute__((noinline)) void multiply_narrow(GemmArgs g) {
  if (g.weight.format == pocketformer::Format::kI4) {
    multiply_row<TileI4Narrow, V>(g);
    gemm_panels<TileI4Narrow, V>(g);
  } else {
    gemm_panels<TileI4NarrowBytes, V>(g);
  }
}

// How many inputs are summed before scales come: a group, or half of it.
POCKETFORMER_INLINE int summed(const WeightView& weight) {
  if (weight.inputs != 0) return weight.inputs;
  return weight.group != 0 ? weight.group : weight.k;
}

// Whether indices are multiplied: whole sums of them must fit.
template <class V>
POCKETFORMER_INLINE bool takes_indices(const WeightView& weight) {
  using pocketformer::Format;
  if constexpr (!V::kNarrowSums) return false;
  const int most = weight.format == Format::kI6 ? 16 : weight.format == Format::kI8 ? 0 : 32;
  if (summed(weight) > most) return false;
  for (int i = 1; i < 16; ++i)
    if (weight.codebook[i] != weight.codebook[0] + i) return false;
  return true;
}

// −middle times what each of the two sums of a lane takes of a group's x, [rows][groups] of two 16-bit numbers each.
template <class V>
__attribute__((noinline)) void narrow_starts(const GemmArgs& g, int middle, int32_t* out) {
  const int unit = summed(g.weight), units = g.weight.k / unit;
  for (int row = 0; row < g.m; ++row) {
    const auto* x = static_cast<const int8_t*>(g.x) + row * g.ldx;
    for (int i = 0; i < units; ++i) {
      int first = 0, second = 0;
      for (int at = 0; at < unit; at += 4, x += 4) first += x[0] + x[1], second += x[2] + x[3];
      const int16_t both[2] = {static_cast<int16_t>(-middle * first), static_cast<int16_t>(-middle * second)};
      std::memcpy(out + row * g.ld_sum + i, both, sizeof(both));
    }
  }
}

// `join`: a panel's values are put together as bytes; `indices`: or as what stands for them.
template <class V>
__attribute__((noinline)) void gemm_prepared(const GemmArgs& g, bool join, bool indices) {
  using pocketformer::Format;
  alignas(64) float room[kPanelScales + kPanelBytes / sizeof(float)];
  auto* const bytes = reinterpret_cast<int8_t*>(room + kPanelScales);
  const bool halves = g.weight.half_scale != nullptr;
  const int groups = g.weight.group == 0 ? 1 : g.weight.k / g.weight.group, fit = pocketformer::kMostGroups / groups;
  int step = g.m == 1 ? V::kRowPanels : V::kGemmPanels;
  if (halves && fit < step) step = fit;
  if (join) step = 1;
  for (int panel = g.panel_begin; panel < g.panel_end; panel += step) {
    GemmArgs part = part_of<uint8_t>(g, 0, g.m, panel);
    WeightView& weight = part.weight;
    if (part.panel_end > step) part.panel_end = step;
    if (halves) {
      const int all = part.panel_end * groups,
                share = weight.subscale == nullptr ? 1 : pocketformer::kBlockK / weight.group;
      float* const minima = room + all * kLanes;
      widen_scales<V>(weight.half_scale, weight.subscale, all, share, room);
      if (weight.half_minimum != nullptr) {
        widen_scales<V>(weight.half_minimum, weight.subminimum, all, share, minima);
        weight.minimum = minima;
      }
      weight.scale = room;
    }
    const auto* low = static_cast<const uint8_t*>(weight.panels);
    if (join) {
      if (weight.format == Format::kI4)
        look_up_panel<V>(weight, bytes);
      else if (weight.format == Format::kI5)
        join_planes<1>(low, weight.high, indices ? 0 : weight.codebook[0], weight.k / 8, bytes);
      else
        join_planes<2>(low, weight.high, indices ? 0 : weight.codebook[0], weight.k / 8, bytes);
      weight.panels = bytes;
    }
    if (indices) {
      if constexpr (V::kNarrowSums) multiply_narrow<V>(part);
    } else if (join || weight.format == Format::kI8)
      multiply_bytes<V>(part);
    else
      multiply_nibbles<V>(part);
  }
}

// Products of bytes that are indices, in blocks of rows whose starts fit on the stack.
template <class V>
__attribute__((noinline)) void gemm_indices(const GemmArgs& g) {
  constexpr int kStarts = 32 * pocketformer::kLookedUpK / 16;  // 32 rows of the smallest groups
  int32_t starts[kStarts];
  const int rows = kStarts / static_cast<int>(g.ld_sum);
  for (int row = 0; row < g.m; row += rows) {
    GemmArgs part = part_of<uint8_t>(g, row, g.m - row < rows ? g.m - row : rows, g.panel_begin);
    narrow_starts<V>(part, Indices<V, 128>::middle(g.weight), starts);
    part.x_start = starts;
    gemm_prepared<V>(part, true, true);
  }
}

template <class V>
void gemm_i4_panels(const GemmArgs& g) {
  using pocketformer::Format;
  const Format format = g.weight.format;
  const bool indices = takes_indices<V>(g.weight);
  const bool look_up = V::kLookedUpRows != 0 && g.m >= V::kLookedUpRows && g.weight.k <= pocketformer::kLookedUpK;
  const bool join = format == Format::kI4 ? look_up && !indices : format != Format::kI8;
  if constexpr (V::kNarrowSums) {
    if (g.m == 1 && takes_row<V>(g.weight, indices)) return gemm_i4_row<V>(g);
    if (g.m > 1 && takes_block<V>(g.weight, indices)) return gemm_i4_rows<V>(g);
    if (indices && join) return gemm_indices<V>(g);
  }
  if (join || g.weight.half_scale != nullptr)
    gemm_prepared<V>(g, join, indices);
  else if (format == Format::kI8)
    multiply_bytes<V>(g);
  else if (!indices)
    multiply_nibbles<V>(g);
  else if constexpr (V::kNarrowSums)
    multiply_narrow<V>(g);
}

template <class V>
void gemm_i4(const GemmArgs& g) {
  gemm_any_width<V, uint8_t>(g, gemm_i4_panels<V>);
}

}  // namespace

// The int8 product of rows that are mostly zeros, as ReLU leaves them: a k-group of four inputs that is zero in all
// rows of a tile is passed over, and its 64 bytes of each panel are never fetched. Sums of integers are exact, so the
// bits are those of the whole product. Inputs are 0…127, without an offset.
#pragma once

#include "kernels/gemm.h"

namespace {

using pocketformer::kSkippedK;

// Rows of a tile that share what they skip: with more, zeros that are independent of each other are hardly ever common.
// Its accumulators have registers where those of the product's own tile have.
template <class V>
constexpr int kSkipRows = V::kGemmRows < 4 ? V::kGemmRows : 4;
// Quarters of the groups that may be left where skipping pays: a step has an index to load and no step in flight
// before it whose lines the hardware foresees (docs/performance.md).
constexpr int kSkipQuarters = 3;

// The groups that some of `rows` rows need, in ascending order; how many.
POCKETFORMER_INLINE int groups_left(const GemmArgs& g, int row, int rows, uint16_t* left) {
  const uint8_t* x = static_cast<const uint8_t*>(g.x) + row * g.ldx;
  const int groups = (g.weight.k + 3) / 4;
  int count = 0;
  for (int i = 0; i < groups; ++i, x += 4) {
    uint32_t any = 0;
    for (int r = 0; r < rows; ++r) {
      uint32_t four;
      std::memcpy(&four, x + r * g.ldx, 4);
      any |= four;
    }
    left[count] = static_cast<uint16_t>(i);  // overwritten by the next where it is not needed
    count += any != 0;
  }
  return count;
}

template <class V, int MR, int NR>
void gemm_skip_tile(const GemmArgs& g, int row, int panel, const uint16_t* left, int count) {
  using I = typename V::I;
  using B = typename V::B;
  const size_t panel_bytes = static_cast<size_t>((g.weight.k + 3) / 4) * 64;
  const uint8_t* x = static_cast<const uint8_t*>(g.x) + row * g.ldx;
  const int8_t* w = static_cast<const int8_t*>(g.weight.panels) + panel * panel_bytes;

  I acc[MR * NR];
  unroll<MR * NR>([&](auto i) POCKETFORMER_LAMBDA { acc[i] = V::zero_i32(); });
  for (int i = 0; i < count; ++i) {
    const size_t group = left[i];
    B weight[NR];
    unroll<NR>([&](auto c) POCKETFORMER_LAMBDA {
      weight[c] = V::load_b(w + 64 * group + c * panel_bytes);
      prefetch(w + 64 * group + (c + NR) * panel_bytes);
    });
    unroll<MR>([&](auto r) POCKETFORMER_LAMBDA {
      const B four = V::broadcast_b(x + 4 * group + r * g.ldx);
      unroll<NR>([&](auto c) POCKETFORMER_LAMBDA { acc[r * NR + c] = V::dot4_p(acc[r * NR + c], four, weight[c]); });
    });
  }
  store_i8<V, MR, NR>(g, row, panel, acc);
}

template <class V, int MR, int NR>
POCKETFORMER_INLINE void gemm_skip_panels(const GemmArgs& g, int row, const uint16_t* left, int count) {
  int panel = g.panel_begin;
  if constexpr (NR > 1)
    for (; panel + NR <= g.panel_end; panel += NR) gemm_skip_tile<V, MR, NR>(g, row, panel, left, count);
  for (; panel < g.panel_end; ++panel) gemm_skip_tile<V, MR, 1>(g, row, panel, left, count);
}

// Rows by fours (twos where registers are few), or one alone; those whose zeros do not pay, and the last ones of
// several, go to `whole` together.
template <class V>
__attribute__((noinline)) void gemm_skip(const GemmArgs& g, void (*whole)(const GemmArgs&)) {
  uint16_t left[kSkippedK / 4];
  const int rows = g.m == 1 ? 1 : kSkipRows<V>, groups = (g.weight.k + 3) / 4;
  int waiting = 0;
  const auto multiply_until = [&](int row) {
    if (row == waiting) return;
    GemmArgs part = part_of<uint8_t>(g, waiting, row - waiting, g.panel_begin);
    whole(part);
  };
  for (int row = 0; row + rows <= g.m; row += rows) {
    const int count = groups_left(g, row, rows, left);
    if (4 * count > kSkipQuarters * groups) continue;
    multiply_until(row);
    waiting = row + rows;
    if (rows == 1)
      gemm_skip_panels<V, 1, V::kRowPanels>(g, row, left, count);
    else
      gemm_skip_panels<V, kSkipRows<V>, V::kGemmPanels>(g, row, left, count);
  }
  multiply_until(g.m);
}

template <class V>
void gemm_i8_skipping(const GemmArgs& g) {
  gemm_skip<V>(g, gemm_i8_panels<V>);
}
template <class V>
void gemm_i8(const GemmArgs& g) {
  gemm_any_width<V, uint8_t>(g, g.skip ? gemm_i8_skipping<V> : gemm_i8_panels<V>);
}

}  // namespace

// Products: rows × panels of 16 output channels, in register tiles. Each output is one chain over k in ascending order,
// so neither the tile nor the split over threads can change a bit.
//
// The accumulators are a one-dimensional array touched by fold expressions only: with constant indices g++ 12 keeps
// them in registers, with loops it does not and the product runs two to three times slower. The pins after the loop are
// there for the same reason. scripts/check_binary.py looks at the disassembly.
#pragma once

#include "kernels/math.h"

namespace {

using pocketformer::Epilogue;
using pocketformer::GemmF32Args;
using pocketformer::GemmI8Args;

// Activation and residual on a tile that has just been written and is still in the first-level cache.
// Out of line: one copy for all tiles.
template <class V, bool kPrecise>
__attribute__((noinline)) void finish_tile(const Epilogue& e, float* out, size_t ldo, int row, int column, int rows,
                                           int columns) {
  activate<V, kPrecise>(e.activation, out, ldo, rows, columns);
  if (e.residual == nullptr) return;
  const float* residual = e.residual + row * e.ld_residual + column;
  for (int r = 0; r < rows; ++r)
    for (int c = 0; c < columns; c += kLanes) {
      float* y = out + r * ldo + c;
      V::store(y, V::add(V::load(y), V::load(residual + r * e.ld_residual + c)));
    }
}

// Bias is already in `y`; without an activation the residual is added in registers.
template <class V, int MR, int NR, bool kPrecise, class Value>
POCKETFORMER_INLINE void store_tile(const Epilogue& e, float* out, size_t ldo, int row, int column, Value value) {
  const bool add = e.residual != nullptr && e.activation == Activation::kNone;
  const float* residual = add ? e.residual + row * e.ld_residual + column : nullptr;
  float* to = out;
  unroll<MR>([&](auto r) POCKETFORMER_LAMBDA {
    unroll<NR>([&](auto c) POCKETFORMER_LAMBDA {
      typename V::F y = value(std::integral_constant<int, r * NR + c>{});
      if (add) y = V::add(y, V::load(residual + c * kLanes));
      V::store(to + c * kLanes, y);
    });
    to += ldo;
    __asm__("" : "+r"(to));  // one address that moves on, or g++ 12 prepares all of them before the first store
    if (add) residual += e.ld_residual;
  });
  if (e.activation != Activation::kNone) finish_tile<V, kPrecise>(e, out, ldo, row, column, MR, NR * kLanes);
}

// The panels after these, on their way to the second-level cache while these are multiplied: with few rows a product is
// bound by the latency of the third level. Beyond the last panel nothing is touched: a prefetch cannot fault.
POCKETFORMER_INLINE void prefetch(const void* p) { __builtin_prefetch(p, 0, 2); }

template <class V, int MR, int NR>
void gemm_i8_tile(const GemmI8Args& g, int row, int panel) {
  using F = typename V::F;
  using I = typename V::I;
  using B = typename V::B;
  const int groups = (g.k + 3) / 4;
  const size_t panel_bytes = static_cast<size_t>(groups) * 64;
  const uint8_t* a = g.a + row * g.lda;
  const int8_t* w = g.weight + panel * panel_bytes;
  const int column = panel * kLanes;

  I acc[MR * NR];
  unroll<NR>([&](auto c) POCKETFORMER_LAMBDA {
    I start = V::zero_i32();
    if constexpr (V::kActivationOffset != 0) {
      static_assert(V::kActivationOffset == 128);
      start = V::negate_i32(V::template shift_left<7>(V::load_i32(g.colsum + column + c * kLanes)));
    }
    unroll<MR>([&](auto r) POCKETFORMER_LAMBDA { acc[r * NR + c] = start; });
  });
  int left = groups;
  if constexpr (V::kGemmGroups > 1) {
    static_assert(NR == 1);
    const int steps = groups / V::kGemmGroups, whole = steps * V::kGemmGroups;
    V::template product<MR>(acc, a, g.lda, w, whole);
    a += 4 * whole;
    w += 64 * whole;
    left -= whole;
  }
  for (; left > 0; --left) {
    B weight[NR];
    unroll<NR>([&](auto c) POCKETFORMER_LAMBDA {
      weight[c] = V::load_b(w + c * panel_bytes);
      prefetch(w + (c + NR) * panel_bytes);
    });
    unroll<MR>([&](auto r) POCKETFORMER_LAMBDA {
      const B x = V::broadcast_b(a + r * g.lda);
      unroll<NR>([&](auto c) POCKETFORMER_LAMBDA { acc[r * NR + c] = V::dot4(acc[r * NR + c], x, weight[c]); });
    });
    a += 4;
    w += 64;
  }
  unroll<MR * NR>([&](auto i) POCKETFORMER_LAMBDA { V::pin(acc[i]); });

  F scale[NR], bias[NR];
  unroll<NR>([&](auto c) POCKETFORMER_LAMBDA {
    scale[c] = V::load(g.w_scale + column + c * kLanes);
    bias[c] = g.epilogue.bias != nullptr ? V::load(g.epilogue.bias + column + c * kLanes) : V::zero();
  });
  const float* a_scale = g.a_scale + row;
  store_tile<V, MR, NR, false>(g.epilogue, g.out + row * g.ldo + column, g.ldo, row, column,
                               [&](auto i) POCKETFORMER_LAMBDA {
                                 constexpr int r = i / NR, c = i % NR;
                                 return V::fma(V::mul(V::to_f32(acc[i]), scale[c]), V::set1(a_scale[r]), bias[c]);
                               });
}

template <class V, int MR, int NR>
void gemm_f32_tile(const GemmF32Args& g, int row, int panel) {
  using F = typename V::F;
  const size_t panel_floats = static_cast<size_t>(g.k) * kLanes;
  const float* a = g.a + row * g.lda;
  const float* w = g.weight + panel * panel_floats;
  const int column = panel * kLanes;

  F acc[MR * NR];
  unroll<MR * NR>([&](auto i) POCKETFORMER_LAMBDA { acc[i] = V::zero(); });
  int left = g.k;
  if constexpr (V::kGemmStepF32 > 1) {
    static_assert(NR == 1);
    const int whole = g.k / V::kGemmStepF32 * V::kGemmStepF32;
    V::template product_f32<MR>(acc, a, g.lda, w, whole);
    a += whole, w += whole * kLanes, left -= whole;
  }
  for (; left > 0; --left) {
    F weight[NR];
    unroll<NR>([&](auto c) POCKETFORMER_LAMBDA {
      weight[c] = V::load(w + c * panel_floats);
      prefetch(w + (c + NR) * panel_floats);
    });
    unroll<MR>([&](auto r) POCKETFORMER_LAMBDA {
      const F x = V::set1(a[r * g.lda]);
      unroll<NR>([&](auto c) POCKETFORMER_LAMBDA { acc[r * NR + c] = V::fma(x, weight[c], acc[r * NR + c]); });
    });
    ++a;
    w += kLanes;
  }
  unroll<MR * NR>([&](auto i) POCKETFORMER_LAMBDA { V::pin(acc[i]); });

  F bias[NR];
  unroll<NR>([&](auto c) POCKETFORMER_LAMBDA {
    bias[c] = g.epilogue.bias != nullptr ? V::load(g.epilogue.bias + column + c * kLanes) : V::zero();
  });
  store_tile<V, MR, NR, true>(g.epilogue, g.out + row * g.ldo + column, g.ldo, row, column,
                              [&](auto i) POCKETFORMER_LAMBDA {
                                constexpr int c = i % NR;
                                return V::add(acc[i], bias[c]);
                              });
}

template <class V, int MR, int NR>
struct TileI8 {
  static constexpr int kRows = V::kGemmRows;
  static void run(const GemmI8Args& g, int row, int panel) { gemm_i8_tile<V, MR, NR>(g, row, panel); }
};
template <class V, int MR, int NR>
struct TileF32 {
  static constexpr int kRows = V::kGemmRowsF32;
  static void run(const GemmF32Args& g, int row, int panel) { gemm_f32_tile<V, MR, NR>(g, row, panel); }
};

// The tile for each height 1 … kRows.
template <template <class, int, int> class Tile, class V, int NR, class Args, int... Heights>
POCKETFORMER_INLINE void dispatch_height(std::integer_sequence<int, Heights...>, int height, const Args& g, int row,
                                         int panel) {
  using Fn = void (*)(const Args&, int, int);
  static constexpr Fn kTiles[] = {&Tile<V, Heights + 1, NR>::run...};
  kTiles[height - 1](g, row, panel);
}

// Panels outside, rows inside: a panel stays in the first-level cache while the rows pass. Heights differ by at most
// one, so that no tile is much less efficient than the others.
template <template <class, int, int> class Tile, class V, int NR, class Args>
POCKETFORMER_INLINE void gemm_rows(const Args& g, int panel) {
  constexpr int kRows = Tile<V, 1, NR>::kRows;
  const int tiles = (g.m + kRows - 1) / kRows;
  for (int t = 0, row = 0; t < tiles; ++t) {
    const int height = (g.m - row) / (tiles - t);
    dispatch_height<Tile, V, NR>(std::make_integer_sequence<int, kRows>{}, height, g, row, panel);
    row += height;
  }
}

template <template <class, int, int> class Tile, class V, class Args>
POCKETFORMER_INLINE void gemm(const Args& g) {
  int panel = g.panel_begin;
  if constexpr (V::kGemmPanels > 1)
    for (; panel + V::kGemmPanels <= g.panel_end; panel += V::kGemmPanels) gemm_rows<Tile, V, V::kGemmPanels>(g, panel);
  for (; panel < g.panel_end; ++panel) gemm_rows<Tile, V, 1>(g, panel);
}

template <class V>
void gemm_i8(const GemmI8Args& g) {
  gemm<TileI8, V>(g);
}
template <class V>
void gemm_f32(const GemmF32Args& g) {
  gemm<TileF32, V>(g);
}

}  // namespace

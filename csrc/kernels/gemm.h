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
using pocketformer::GemmArgs;
using pocketformer::WeightView;

POCKETFORMER_INLINE int round_up(int x, int multiple) { return (x + multiple - 1) / multiple * multiple; }

// y ← fn(y, other) on a tile of whole vectors.
template <class V, class Fn>
POCKETFORMER_INLINE void combine(float* y, size_t ldy, const float* other, size_t ld, int rows, int columns, Fn fn) {
  for (int r = 0; r < rows; ++r, y += ldy, other += ld)
    for (int c = 0; c < columns; c += kLanes) V::store(y + c, fn(V::load(y + c), V::load(other + c)));
}

// What follows the bias, on a tile that has just been written and is still in the first-level cache.
// Out of line: one copy for all tiles.
template <class V>
__attribute__((noinline)) void finish_tile(const Epilogue& e, float* out, size_t ldo, int row, int column, int rows,
                                           int columns) {
  using F = typename V::F;
  if (e.precise)
    activate<V, true>(e.activation, out, ldo, rows, columns);
  else
    activate<V, false>(e.activation, out, ldo, rows, columns);
  if (e.multiply != nullptr)
    combine<V>(out, ldo, e.multiply + row * e.ld_multiply + column, e.ld_multiply, rows, columns,
               [](F y, F m) POCKETFORMER_LAMBDA { return V::mul(y, m); });
  if (e.residual != nullptr)
    combine<V>(out, ldo, e.residual + row * e.ld_residual + column, e.ld_residual, rows, columns,
               [](F y, F r) POCKETFORMER_LAMBDA { return V::add(y, r); });
}

// Bias is already in `y`; a residual with nothing before it is added in registers.
template <class V, int MR, int NR, class Value>
POCKETFORMER_INLINE void store_tile(const Epilogue& e, float* out, size_t ldo, int row, int column, Value value) {
  const bool plain = e.activation == Activation::kNone && e.multiply == nullptr;
  const bool add = plain && e.residual != nullptr;
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
  if (!plain) finish_tile<V>(e, out, ldo, row, column, MR, NR * kLanes);
}

// The panels after these, on their way to the second-level cache while these are multiplied: with few rows a product is
// bound by the latency of the third level. Beyond the last panel nothing is touched: a prefetch cannot fault.
POCKETFORMER_INLINE void prefetch(const void* p) { __builtin_prefetch(p, 0, 2); }

// Integers of a tile to floats, and what follows them.
template <class V, int MR, int NR>
POCKETFORMER_INLINE void store_i8(const GemmArgs& g, int row, int panel, typename V::I (&acc)[MR * NR]) {
  using F = typename V::F;
  const int column = panel * kLanes;
  unroll<MR * NR>([&](auto i) POCKETFORMER_LAMBDA { V::pin(acc[i]); });

  F scale[NR], bias[NR];
  unroll<NR>([&](auto c) POCKETFORMER_LAMBDA {
    scale[c] = V::load(g.weight.scale + column + c * kLanes);
    bias[c] = g.epilogue.bias != nullptr ? V::load(g.epilogue.bias + column + c * kLanes) : V::zero();
  });
  const float* x_scale = g.x_scale + row;
  store_tile<V, MR, NR>(g.epilogue, g.out + row * g.ldo + column, g.ldo, row, column, [&](auto i) POCKETFORMER_LAMBDA {
    constexpr int r = i / NR, c = i % NR;
    return V::fma(V::mul(V::to_f32(acc[i]), scale[c]), V::set1(x_scale[r]), bias[c]);
  });
}

// D multiplies: V, or V::Bounded.
template <class V, int MR, int NR, class D = V>
void gemm_i8_tile(const GemmArgs& g, int row, int panel) {
  using I = typename V::I;
  using B = typename V::B;
  const int groups = (g.weight.k + 3) / 4;
  const size_t panel_bytes = static_cast<size_t>(groups) * 64;
  const uint8_t* x = static_cast<const uint8_t*>(g.x) + row * g.ldx;
  const int8_t* w = static_cast<const int8_t*>(g.weight.panels) + panel * panel_bytes;
  const int column = panel * kLanes;

  I acc[MR * NR];
  unroll<NR>([&](auto c) POCKETFORMER_LAMBDA {
    I start = V::zero_i32();
    if constexpr (D::kActivationOffset != 0) {
      static_assert(D::kActivationOffset == 128);
      if (!g.skip || V::kActivationOffset == 0)
        start = V::negate_i32(V::template shift_left<7>(V::load_i32(g.weight.colsum + column + c * kLanes)));
    }
    unroll<MR>([&](auto r) POCKETFORMER_LAMBDA { acc[r * NR + c] = start; });
  });
  int left = groups;
  if constexpr (V::kGemmGroups > 1) {
    static_assert(NR == 1);
    const int steps = groups / V::kGemmGroups, whole = steps * V::kGemmGroups;
    V::template product<MR>(acc, x, g.ldx, w, whole);
    x += 4 * whole;
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
      const B four = D::broadcast_b(x + r * g.ldx);
      unroll<NR>([&](auto c) POCKETFORMER_LAMBDA { acc[r * NR + c] = D::dot4(acc[r * NR + c], four, weight[c]); });
    });
    x += 4;
    w += 64;
  }
  store_i8<V, MR, NR>(g, row, panel, acc);
}

// What sums begin with that continue no others: rows of as many panels as a tile may have.
alignas(64) constexpr float kNothing[4 * kLanes] = {};

template <class V, int MR, int NR>
void gemm_f32_tile(const GemmArgs& g, int row, int panel) {
  using F = typename V::F;
  const size_t panel_floats = static_cast<size_t>(g.weight.k) * kLanes;
  const float* x = static_cast<const float*>(g.x) + row * g.ldx;
  const float* w = static_cast<const float*>(g.weight.panels) + panel * panel_floats;
  const int column = panel * kLanes;

  const float* start = g.start != nullptr ? g.start + row * g.ld_start + column : kNothing;
  const size_t ld_start = g.start != nullptr ? g.ld_start : 0;
  F acc[MR * NR];
  unroll<MR * NR>([&](auto i) POCKETFORMER_LAMBDA { acc[i] = V::load(start + i / NR * ld_start + i % NR * kLanes); });
  int left = g.weight.k;
  if constexpr (V::kGemmStepF32 > 1) {
    static_assert(NR == 1);
    const int whole = left / V::kGemmStepF32 * V::kGemmStepF32;
    V::template product_f32<MR>(acc, x, g.ldx, w, whole);
    x += whole, w += whole * kLanes, left -= whole;
  }
  for (; left > 0; --left) {
    F weight[NR];
    unroll<NR>([&](auto c) POCKETFORMER_LAMBDA {
      weight[c] = V::load(w + c * panel_floats);
      prefetch(w + (c + NR) * panel_floats);
    });
    unroll<MR>([&](auto r) POCKETFORMER_LAMBDA {
      const F one = V::set1(x[r * g.ldx]);
      unroll<NR>([&](auto c) POCKETFORMER_LAMBDA { acc[r * NR + c] = V::fma(one, weight[c], acc[r * NR + c]); });
    });
    ++x;
    w += kLanes;
  }
  unroll<MR * NR>([&](auto i) POCKETFORMER_LAMBDA { V::pin(acc[i]); });

  F bias[NR];
  unroll<NR>([&](auto c) POCKETFORMER_LAMBDA {
    bias[c] = g.epilogue.bias != nullptr ? V::load(g.epilogue.bias + column + c * kLanes) : V::zero();
  });
  store_tile<V, MR, NR>(g.epilogue, g.out + row * g.ldo + column, g.ldo, row, column, [&](auto i) POCKETFORMER_LAMBDA {
    constexpr int c = i % NR;
    return V::add(acc[i], bias[c]);
  });
}

template <class V, int MR, int NR>
struct TileI8 {
  static constexpr int kRows = V::kGemmRows;
  static void run(const GemmArgs& g, int row, int panel) { gemm_i8_tile<V, MR, NR>(g, row, panel); }
};
template <class V, int MR, int NR>
struct TileI8Bounded {
  using D = typename V::Bounded;
  static constexpr int kRows = D::kGemmRows;
  static void run(const GemmArgs& g, int row, int panel) { gemm_i8_tile<V, MR, NR, D>(g, row, panel); }
};
template <class V, int MR, int NR>
struct TileF32 {
  static constexpr int kRows = V::kGemmRowsF32;
  static void run(const GemmArgs& g, int row, int panel) { gemm_f32_tile<V, MR, NR>(g, row, panel); }
};

// The tile for each height 1 … kRows.
template <template <class, int, int> class Tile, class V, int NR, int... Heights>
POCKETFORMER_INLINE void dispatch_height(std::integer_sequence<int, Heights...>, int height, const GemmArgs& g, int row,
                                         int panel) {
  using Fn = void (*)(const GemmArgs&, int, int);
  static constexpr Fn kTiles[] = {&Tile<V, Heights + 1, NR>::run...};
  kTiles[height - 1](g, row, panel);
}

// Panels outside, rows inside: a panel stays in the first-level cache while the rows pass. Heights differ by at most
// one, so that no tile is much less efficient than the others.
template <template <class, int, int> class Tile, class V, int NR>
POCKETFORMER_INLINE void gemm_rows(const GemmArgs& g, int panel) {
  constexpr int kRows = Tile<V, 1, NR>::kRows;
  const int tiles = (g.m + kRows - 1) / kRows;
  for (int t = 0, row = 0; t < tiles; ++t) {
    const int height = (g.m - row) / (tiles - t);
    dispatch_height<Tile, V, NR>(std::make_integer_sequence<int, kRows>{}, height, g, row, panel);
    row += height;
  }
}

template <template <class, int, int> class Tile, class V>
POCKETFORMER_INLINE void gemm_panels(const GemmArgs& g) {
  int panel = g.panel_begin;
  if constexpr (V::kGemmPanels > 1)
    for (; panel + V::kGemmPanels <= g.panel_end; panel += V::kGemmPanels) gemm_rows<Tile, V, V::kGemmPanels>(g, panel);
  for (; panel < g.panel_end; ++panel) gemm_rows<Tile, V, 1>(g, panel);
}

// Of a panel's upper bits: 64 bytes hold those of 32 inputs of kI5, 16 of kI6.
POCKETFORMER_INLINE size_t high_bytes(const WeightView& weight) {
  const int step = weight.format == pocketformer::Format::kI5 ? 32 : 16;
  return static_cast<size_t>(weight.k + step - 1) / step * 64;
}

// Rows [row, row + m) and the panels from `panel` on as a product of its own. X is what `x` points to.
template <class X>
POCKETFORMER_INLINE GemmArgs part_of(GemmArgs g, int row, int m, int panel) {
  constexpr uint8_t kBytes[pocketformer::kFormats] = {4 * kLanes, 2 * kLanes, 64, 64, 0, 64, 64, 0};
  constexpr uint8_t kDepth[pocketformer::kFormats] = {1, 1, 4, 8, 1, 8, 8, 1};
  const int format = static_cast<int>(g.weight.format), column = panel * kLanes;
  const size_t steps = (static_cast<size_t>(g.weight.k) + kDepth[format] - 1) / kDepth[format];
  const int scales = g.weight.group == 0 ? column : column * (g.weight.k / g.weight.group);
  const int halves = g.weight.subscale == nullptr ? scales : column * (g.weight.k / pocketformer::kBlockK);
  const auto advance = [](auto& pointer, size_t by) { pointer = pointer != nullptr ? pointer + by : nullptr; };
  g.x = static_cast<const X*>(g.x) + row * g.ldx;
  g.weight.panels = static_cast<const char*>(g.weight.panels) + panel * steps * kBytes[format];
  g.m = m, g.panel_begin = 0, g.panel_end -= panel, g.weight.n -= column;
  advance(g.x_scale, row * (g.ld_scale != 0 ? g.ld_scale : 1)), advance(g.x_sum, row * g.ld_sum);
  advance(g.weight.scale, scales), advance(g.weight.minimum, scales), advance(g.weight.colsum, column);
  advance(g.weight.half_scale, halves), advance(g.weight.half_minimum, halves);
  advance(g.weight.subscale, scales), advance(g.weight.subminimum, scales);
  advance(g.weight.high, panel * high_bytes(g.weight));
  advance(g.out, row * g.ldo + column), advance(g.epilogue.bias, column);
  advance(g.epilogue.multiply, row * g.epilogue.ld_multiply + column);
  advance(g.epilogue.residual, row * g.epilogue.ld_residual + column);
  return g;
}

// A last panel that is wider than the rows of `out`: by way of whole rows on the stack.
template <class V, class X>
__attribute__((noinline)) void gemm_narrow(const GemmArgs& g, void (*gemm)(const GemmArgs&)) {
  constexpr int kRows = 16;
  const int panel = g.panel_end - 1;
  const int columns = static_cast<int>(g.ldo) - panel * kLanes;
  alignas(64) float out[kRows * kLanes], multiply[kRows * kLanes], residual[kRows * kLanes];
  for (int row = 0; row < g.m; row += kRows) {
    const int rows = g.m - row < kRows ? g.m - row : kRows;
    GemmArgs part = part_of<X>(g, row, rows, panel);
    float* to = part.out;
    const auto widen = [&](const float*& from, size_t& ld, float* whole) {
      if (from == nullptr) return;
      for (int r = 0; r < rows; ++r) V::store(whole + r * kLanes, V::load_partial(from + r * ld, columns));
      from = whole, ld = kLanes;
    };
    widen(part.epilogue.multiply, part.epilogue.ld_multiply, multiply);
    widen(part.epilogue.residual, part.epilogue.ld_residual, residual);
    part.out = out, part.ldo = kLanes;
    gemm(part);
    for (int r = 0; r < rows; ++r) V::store_partial(to + r * g.ldo, V::load(out + r * kLanes), columns);
  }
}

// `gemm` writes whole panels; X is what `x` points to.
template <class V, class X>
POCKETFORMER_INLINE void gemm_any_width(const GemmArgs& g, void (*gemm)(const GemmArgs&)) {
  if (static_cast<size_t>(g.panel_end) * kLanes <= g.ldo || g.panel_begin == g.panel_end) return gemm(g);
  gemm_narrow<V, X>(g, gemm);
  GemmArgs whole = g;
  --whole.panel_end;
  gemm(whole);
}

template <class V>
void gemm_i8_panels(const GemmArgs& g) {
  if constexpr (V::kBoundedPairs) {
    if (g.weight.bounded_pairs) return gemm_panels<TileI8Bounded, V>(g);
  }
  gemm_panels<TileI8, V>(g);
}
template <class V>
void gemm_f32_panels(const GemmArgs& g) {
  gemm_panels<TileF32, V>(g);
}

// fp16 weights are widened, which is exact, and multiplied as fp32: the chain over k is the same. Few rows widen them
// in registers, each row all of them; more rows share the floats of a block of k that stay in the first-level cache.
constexpr int kFewRowsF16 = 2;
constexpr int kBlockF16 = 256;  // of k: 16 KiB a panel
constexpr int kRowsF16 = 64;    // for which a block is widened

// One row of NR panels, which lie `panel_halves` apart: Σ over all k.
template <class V, int NR>
__attribute__((noinline)) void sum_row_f16(const float* x, const uint16_t* w, size_t panel_halves, int k, float* sums) {
  typename V::F acc[NR];
  unroll<NR>([&](auto c) POCKETFORMER_LAMBDA { acc[c] = V::zero(); });
  for (; k > 0; --k, ++x, w += kLanes) {
    const typename V::F one = V::set1(*x);
    unroll<NR>([&](auto c) POCKETFORMER_LAMBDA { acc[c] = V::fma(one, V::load_f16(w + c * panel_halves), acc[c]); });
  }
  unroll<NR>([&](auto c) POCKETFORMER_LAMBDA { V::store(sums + c * kLanes, acc[c]); });
}

// part_of is long, and here it is called once for many products.
__attribute__((noinline)) GemmArgs part_of_floats(const GemmArgs& g, int row, int m, int panel) {
  return part_of<float>(g, row, m, panel);
}

template <class V>
__attribute__((noinline)) void gemm_few_f16(const GemmArgs& g) {
  const int k = g.weight.k;
  const size_t panel_halves = static_cast<size_t>(k) * kLanes;
  alignas(64) float sums[V::kRowPanels * kLanes];
  for (int panel = g.panel_begin, step; panel < g.panel_end; panel += step) {
    step = g.panel_end - panel < V::kRowPanels ? 1 : V::kRowPanels;
    for (int row = 0; row < g.m; ++row) {
      GemmArgs part = part_of_floats(g, row, 1, panel);
      const auto* x = static_cast<const float*>(part.x);
      const auto* w = static_cast<const uint16_t*>(part.weight.panels);
      if (step == 1)
        sum_row_f16<V, 1>(x, w, panel_halves, k, sums);
      else
        sum_row_f16<V, V::kRowPanels>(x, w, panel_halves, k, sums);
      part.start = sums, part.weight.k = 0, part.panel_end = step;
      gemm_f32_panels<V>(part);
    }
  }
}

template <class V>
__attribute__((noinline)) void gemm_blocks_f16(const GemmArgs& g) {
  alignas(64) static constexpr float kNoBias[2 * kLanes] = {
      -0.0f, -0.0f, -0.0f, -0.0f, -0.0f, -0.0f, -0.0f, -0.0f, -0.0f, -0.0f, -0.0f, -0.0f, -0.0f, -0.0f, -0.0f, -0.0f,
      -0.0f, -0.0f, -0.0f, -0.0f, -0.0f, -0.0f, -0.0f, -0.0f, -0.0f, -0.0f, -0.0f, -0.0f, -0.0f, -0.0f, -0.0f, -0.0f};
  static_assert(V::kGemmPanels <= 2);
  alignas(64) float weights[V::kGemmPanels * kBlockF16 * kLanes], sums[V::kGemmPanels * kRowsF16 * kLanes];
  const int k = g.weight.k;
  const size_t panel_halves = static_cast<size_t>(k) * kLanes;
  for (int panel = g.panel_begin, step; panel < g.panel_end; panel += step) {
    step = g.panel_end - panel < V::kGemmPanels ? 1 : V::kGemmPanels;
    for (int row = 0; row < g.m; row += kRowsF16) {
      const GemmArgs whole = part_of_floats(g, row, g.m - row < kRowsF16 ? g.m - row : kRowsF16, panel);
      const auto* halves = static_cast<const uint16_t*>(whole.weight.panels);
      for (int begin = 0; begin < k; begin += kBlockF16) {
        const int depth = k - begin < kBlockF16 ? k - begin : kBlockF16;
        float* to = weights;
        for (int c = 0; c < step; ++c) {
          const uint16_t* from = halves + c * panel_halves + static_cast<size_t>(begin) * kLanes;
          for (int i = 0; i < depth; ++i, from += kLanes, to += kLanes) {
            V::store(to, V::load_f16(from));
            prefetch(from + step * panel_halves);
          }
        }
        GemmArgs part = whole;
        part.x = static_cast<const float*>(whole.x) + begin;
        part.weight.panels = weights, part.weight.k = depth, part.panel_end = step;
        if (begin > 0) part.start = sums, part.ld_start = static_cast<size_t>(step) * kLanes;
        if (begin + depth < k) {
          part.out = sums, part.ldo = static_cast<size_t>(step) * kLanes;
          part.epilogue = {.bias = kNoBias};  // of −0, that no zero changes its sign
        }
        gemm_f32_panels<V>(part);
      }
    }
  }
}

template <class V>
void gemm_f16_panels(const GemmArgs& g) {
  if (g.m <= kFewRowsF16)
    gemm_few_f16<V>(g);
  else
    gemm_blocks_f16<V>(g);
}

template <class V>
void gemm_f32(const GemmArgs& g) {
  gemm_any_width<V, float>(g, gemm_f32_panels<V>);
}
template <class V>
void gemm_f16(const GemmArgs& g) {
  gemm_any_width<V, float>(g, gemm_f16_panels<V>);
}

}  // namespace

// Products with 4-bit weights: indices into a codebook of 16 signed bytes, one scale a channel or a group of k.
//
// The sums of a group are exact integers. A group's sum, as a float, is multiplied by the group's scale and added to
// the total in one rounding, groups in ascending order (docs/format.md, Arithmetic). With few rows the nibbles are
// looked up as they are multiplied and a panel is read once; with many, a panel is looked up beforehand for all of
// them.
//
// Where the dot product takes an unsigned operand, the looked-up weights are it: the codebook is biased once and a
// group's sum begins at −128·Σx. (The activations are not, because 255·127 twice would overflow vpmaddubsw's 16 bits,
// and AVX2 shares their absolute value among the channels.)
#pragma once

#include "kernels/gemm.h"

namespace {

// Where the weights of two k-groups come from: 64 bytes of nibbles, or 128 bytes that were looked up before.
template <class V>
struct Nibbles {
  static constexpr int kBytes = 64;
  static constexpr int kRows = V::kGemmRowsI4;
  typename V::B table;

  explicit POCKETFORMER_INLINE Nibbles(const WeightView& weight) : table(V::bias(V::repeat16(weight.codebook))) {}
  template <int Half>
  POCKETFORMER_INLINE typename V::B load(const int8_t* w) const {
    const typename V::B pair = V::load_b(w);
    return V::lookup(table, Half == 0 ? V::low_nibbles(pair) : V::high_nibbles(pair));
  }
};

template <class V>
struct Bytes {
  static constexpr int kBytes = 128;
  static constexpr int kRows = V::kGemmRows;

  explicit POCKETFORMER_INLINE Bytes(const WeightView&) {}
  template <int Half>
  POCKETFORMER_INLINE typename V::B load(const int8_t* w) const {
    return V::load_b(w + 64 * Half);
  }
};

// acc + Σ of four products of signed activations and weights that are biased by kActivationOffset.
template <class V>
POCKETFORMER_INLINE typename V::I dot4_weights(typename V::I acc, typename V::B x, typename V::B w) {
  if constexpr (V::kActivationOffset == 0) return V::dot4(acc, x, w);
  return V::dot4(acc, w, x);
}

// The totals of a tile: in registers where they hold them beside the sums, else in the first-level cache. There the
// compiler is told so, or it would choose what to keep, and not the totals alone.
template <class V, int N, bool kRegisters>
struct Totals {
  typename V::F total[N];

  POCKETFORMER_INLINE Totals() {
    unroll<N>([&](auto i) POCKETFORMER_LAMBDA { total[i] = V::zero(); });
  }
  template <int I>
  POCKETFORMER_INLINE void add(typename V::F x, typename V::F scale) {
    total[I] = V::fma(x, scale, total[I]);
  }
  template <int I>
  POCKETFORMER_INLINE typename V::F get() const {
    return total[I];
  }
  POCKETFORMER_INLINE void settle() {}
};

template <class V, int N>
struct Totals<V, N, false> {
  alignas(64) float total[N * kLanes];

  POCKETFORMER_INLINE Totals() {
    unroll<N>([&](auto i) POCKETFORMER_LAMBDA { V::store(total + i * kLanes, V::zero()); });
  }
  template <int I>
  POCKETFORMER_INLINE void add(typename V::F x, typename V::F scale) {
    V::store(total + I * kLanes, V::fma(x, scale, V::load(total + I * kLanes)));
  }
  template <int I>
  POCKETFORMER_INLINE typename V::F get() const {
    return V::load(total + I * kLanes);
  }
  POCKETFORMER_INLINE void settle() { __asm__ volatile("" : "+m"(total)); }
};

// A group's products added to `acc`; `x` and `w` move on to the next group.
template <class V, class Source, int MR, int NR>
POCKETFORMER_INLINE void multiply_group(typename V::I (&acc)[MR * NR], const Source& source, const uint8_t*& x,
                                        size_t ldx, const int8_t*& w, size_t panel_bytes, int pairs) {
  using B = typename V::B;
  if constexpr (V::kGemmGroups > 1 && Source::kBytes == 128) {
    static_assert(NR == 1);
    V::template product<MR>(acc, x, ldx, w, round_up(2 * pairs, V::kGemmGroups));  // padding times x's zeros
    x += 8 * pairs, w += 128 * pairs;
    return;
  }
  for (int left = pairs; left > 0; --left) {
    unroll<2>([&](auto half) POCKETFORMER_LAMBDA {
      if constexpr (half == 1) {  // both at once would not fit beside the sums
        __asm__("" : "+r"(w));
        unroll<MR * NR>([&](auto i) POCKETFORMER_LAMBDA { V::pin(acc[i]); });
      }
      const auto load = [&](auto c) POCKETFORMER_LAMBDA {
        if constexpr (half == 0) prefetch(w + (c + NR) * panel_bytes);
        return source.template load<half>(w + c * panel_bytes);
      };
      if constexpr (MR == 1) {
        const B four = V::broadcast_b(x + 4 * half);
        unroll<NR>([&](auto c) POCKETFORMER_LAMBDA { acc[c] = dot4_weights<V>(acc[c], four, load(c)); });
        return;
      }
      B weight[NR];
      unroll<NR>([&](auto c) POCKETFORMER_LAMBDA { weight[c] = load(c); });
      unroll<MR>([&](auto r) POCKETFORMER_LAMBDA {
        const B four = V::broadcast_b(x + r * ldx + 4 * half);
        unroll<NR>([&](auto c)
                       POCKETFORMER_LAMBDA { acc[r * NR + c] = dot4_weights<V>(acc[r * NR + c], four, weight[c]); });
      });
    });
    x += 8;
    w += Source::kBytes;
  }
}

template <class V, class Source, int MR, int NR>
void gemm_i4_tile(const GemmArgs& g, int row, int panel) {
  using F = typename V::F;
  using I = typename V::I;
  const WeightView& weight = g.weight;
  const Source source(weight);
  const int group = weight.group == 0 ? weight.k : weight.group;
  const int groups = weight.k / group, pairs = (group + 7) / 8, column = panel * kLanes;
  const size_t panel_bytes = static_cast<size_t>(groups) * pairs * Source::kBytes;
  const size_t panel_scales = static_cast<size_t>(groups) * kLanes;
  const size_t ldx = g.ldx, ld_sum = g.ld_sum;
  const uint8_t* x = static_cast<const uint8_t*>(g.x) + row * ldx;
  const int8_t* w = static_cast<const int8_t*>(weight.panels) + panel * panel_bytes;
  const int32_t* sum = g.x_sum + row * ld_sum;
  const float* scale = weight.scale + panel * panel_scales;
  const float* minimum = weight.minimum == nullptr ? nullptr : weight.minimum + panel * panel_scales;

  Totals<V, MR * NR, V::kTotalsInRegisters> totals;
  for (int left = groups; left > 0; --left) {
    I acc[MR * NR];
    int zero = 0;
    __asm__ volatile("" : "+r"(zero));  // or a vector of zeros would be kept through the product
    unroll<MR>([&](auto r) POCKETFORMER_LAMBDA {
      I start = V::zero_i32();
      if constexpr (V::kActivationOffset != 0) start = V::set1_i32(-V::kActivationOffset * sum[r * ld_sum]);
      if constexpr (V::kGemmGroups > 1) start = V::set1_i32(zero);
      unroll<NR>([&](auto c) POCKETFORMER_LAMBDA { acc[r * NR + c] = start; });
    });
    totals.settle();
    multiply_group<V, Source, MR, NR>(acc, source, x, ldx, w, panel_bytes, pairs);
    unroll<MR * NR>([&](auto i) POCKETFORMER_LAMBDA { V::pin(acc[i]); });

    F factor[NR];
    unroll<NR>([&](auto c) POCKETFORMER_LAMBDA { factor[c] = V::load(scale + c * panel_scales); });
    unroll<MR * NR>([&](auto i) POCKETFORMER_LAMBDA { totals.template add<i>(V::to_f32(acc[i]), factor[i % NR]); });
    scale += kLanes;
    if (minimum != nullptr) {
      unroll<NR>([&](auto c) POCKETFORMER_LAMBDA { factor[c] = V::load(minimum + c * panel_scales); });
      unroll<MR * NR>([&](auto i) POCKETFORMER_LAMBDA {
        totals.template add<i>(V::set1(static_cast<float>(sum[i / NR * ld_sum])), factor[i % NR]);
      });
      minimum += kLanes;
    }
    ++sum;
  }

  F bias[NR];
  unroll<NR>([&](auto c) POCKETFORMER_LAMBDA {
    bias[c] = g.epilogue.bias != nullptr ? V::load(g.epilogue.bias + column + c * kLanes) : V::zero();
  });
  const float* x_scale = g.x_scale + row;
  store_tile<V, MR, NR>(g.epilogue, g.out + row * g.ldo + column, g.ldo, row, column, [&](auto i) POCKETFORMER_LAMBDA {
    return V::fma(totals.template get<i>(), V::set1(x_scale[i / NR]), bias[i % NR]);
  });
}

template <class V, int MR, int NR>
struct TileI4 {
  static constexpr int kRows = Nibbles<V>::kRows;
  static void run(const GemmArgs& g, int row, int panel) { gemm_i4_tile<V, Nibbles<V>, MR, NR>(g, row, panel); }
};
template <class V, int MR, int NR>
struct TileI4Bytes {
  static constexpr int kRows = Bytes<V>::kRows;
  static void run(const GemmArgs& g, int row, int panel) { gemm_i4_tile<V, Bytes<V>, MR, NR>(g, row, panel); }
};

// On the stack, and most of it in the nearest caches: 64 KiB. Products of longer rows look their weights up as they go.
constexpr int kLookedUpK = 4096;

// A last k-group without three more has padding after it: an ISA's own product takes four at a time.
template <class V>
void look_up_panel(const WeightView& weight, const int8_t* w, int8_t* out) {
  const Nibbles<V> source(weight);
  const int pairs = (weight.k + 7) / 8;
  for (int i = 0; i < pairs; ++i, w += 64, out += 128) {
    V::store_b(out, source.template load<0>(w));
    V::store_b(out + 64, source.template load<1>(w));
  }
  if (pairs % 2 != 0) std::memset(out, 0, 128);
}

template <class V>
void gemm_i4_looked_up(const GemmArgs& g) {
  alignas(64) int8_t bytes[kLookedUpK * kLanes];
  for (int panel = g.panel_begin; panel < g.panel_end; ++panel) {
    GemmArgs one = part_of<uint8_t>(g, 0, g.m, panel);
    look_up_panel<V>(g.weight, static_cast<const int8_t*>(one.weight.panels), bytes);
    one.weight.panels = bytes;
    gemm_rows<TileI4Bytes, V, 1>(one, 0);
  }
}

// One row: several panels at once are as many streams from memory, and share the work on the activations.
template <class V>
void gemm_i4_row(GemmArgs g) {
  for (; g.panel_begin + V::kRowPanels <= g.panel_end; g.panel_begin += V::kRowPanels)
    TileI4<V, 1, V::kRowPanels>::run(g, 0, g.panel_begin);
  gemm_panels<TileI4, V>(g);
}

template <class V>
void gemm_i4_panels(const GemmArgs& g) {
  if constexpr (V::kLookedUpRows != 0)
    if (g.m >= V::kLookedUpRows && g.weight.k <= kLookedUpK) return gemm_i4_looked_up<V>(g);
  if constexpr (V::kRowPanels > 1)
    if (g.m == 1) return gemm_i4_row<V>(g);
  gemm_panels<TileI4, V>(g);
}

template <class V>
void gemm_i4(const GemmArgs& g) {
  gemm_any_width<V, uint8_t>(g, gemm_i4_panels<V>);
}

}  // namespace

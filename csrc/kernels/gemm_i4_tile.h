// A register tile of rows times weights whose scales are of groups; gemm_i4.h says what it computes.
#pragma once

#include "kernels/gemm.h"

namespace {

// Where the weights of two k-groups come from: 64 bytes of nibbles, or 128 bytes: a file's, or looked up before.
template <class V>
struct Nibbles {
  static constexpr int kBytes = 64;
  static constexpr int kRows = V::kGemmRowsI4;
  static constexpr bool kNarrow = false;
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
  // Less one where the offset of weights takes a register.
  static constexpr int kRows =
      V::kLookedUpRows != 0 ? V::kGemmRows - (V::kActivationOffset != 0 ? 1 : 0) : V::kGemmRowsI4;
  static constexpr bool kNarrow = false;

  explicit POCKETFORMER_INLINE Bytes(const WeightView&) {}
  template <int Half>
  POCKETFORMER_INLINE typename V::B load(const int8_t* w) const {
    return V::bias(V::load_b(w + 64 * Half));
  }
};

// Indices for sums in 16 bits: a file's nibbles, or bytes of 5 or 6 bits put together before. A group of 32 indices of
// 4 bits fits, 16·15·127 < 2^15; so do 32 of 5 bits and 16 of 6 once half the range is taken from each, as 16·16·127 is
// too, which narrow_starts does for all channels at once.
template <class V, int Bytes>
struct Indices {
  static constexpr int kBytes = Bytes;
  static constexpr int kRows = V::kGemmRowsNarrow - (Bytes == 64 ? 1 : 0);  // a mask takes a register
  static constexpr bool kNarrow = true;
  int first;  // what index 0 stands for, or the index in the middle of the range

  explicit POCKETFORMER_INLINE Indices(const WeightView& weight)
      : first(weight.codebook[0] + (Bytes == 64 ? 0 : middle(weight))) {}
  template <int Half>
  POCKETFORMER_INLINE typename V::B load(const int8_t* w) const {
    if constexpr (Bytes == 128) return V::load_b(w + 64 * Half);
    const typename V::B pair = V::load_b(w);
    return Half == 0 ? V::low_nibbles(pair) : V::high_nibbles(pair);
  }
  static POCKETFORMER_INLINE int middle(const WeightView& weight) {
    return weight.format == pocketformer::Format::kI5 ? 16 : 32;
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

// As multiply_group, for indices: `sum` holds Σ of the rows' x, `start` what their sums of 16 bits begin with.
template <class V, class Source, int MR, int NR>
POCKETFORMER_INLINE void multiply_indices(typename V::I (&acc)[MR * NR], const Source& source, const uint8_t*& x,
                                          size_t ldx, const int8_t*& w, size_t panel_bytes, int pairs,
                                          const int32_t* sum, size_t ld_sum, const int32_t* start) {
  using B = typename V::B;
  typename V::S sums[MR * NR];
  unroll<MR * NR>([&](auto i) POCKETFORMER_LAMBDA {
    if constexpr (Source::kBytes == 128)
      sums[i] = V::broadcast_b(start + i / NR * ld_sum);
    else
      sums[i] = V::zero_i32();
  });
  for (; pairs > 0; --pairs) {
    unroll<2>([&](auto half) POCKETFORMER_LAMBDA {
      if constexpr (half == 1) {
        __asm__("" : "+r"(w));
        unroll<MR * NR>([&](auto i) POCKETFORMER_LAMBDA { V::pin(sums[i]); });
      }
      const auto load = [&](auto c) POCKETFORMER_LAMBDA {
        if constexpr (half == 0) prefetch(w + (c + NR) * panel_bytes);
        return source.template load<half>(w + c * panel_bytes);
      };
      B weight[NR];
      if constexpr (MR > 1) unroll<NR>([&](auto c) POCKETFORMER_LAMBDA { weight[c] = load(c); });
      unroll<MR>([&](auto r) POCKETFORMER_LAMBDA {
        const B four = V::broadcast_b(x + r * ldx + 4 * half);
        unroll<NR>([&](auto c) POCKETFORMER_LAMBDA {
          if constexpr (MR == 1) weight[c] = load(c);
          sums[r * NR + c] = V::dot2_narrow(sums[r * NR + c], weight[c], four);
        });
      });
    });
    x += 8;
    w += Source::kBytes;
  }
  unroll<MR * NR>([&](auto i) POCKETFORMER_LAMBDA { V::pin(sums[i]); });
  unroll<MR * NR>([&](auto i) POCKETFORMER_LAMBDA { acc[i] = V::widen_narrow(sums[i]); });
  if (source.first != 0)
    unroll<MR * NR>([&](auto i) POCKETFORMER_LAMBDA {
      acc[i] = V::add_i32(acc[i], V::set1_i32(source.first * sum[i / NR * ld_sum]));
    });
}

template <class V, class Source, int MR, int NR>
void gemm_i4_tile(const GemmArgs& g, int row, int panel) {
  using F = typename V::F;
  using I = typename V::I;
  const WeightView& weight = g.weight;
  const Source source(weight);
  const int group = weight.group == 0 ? weight.k : weight.group;
  const int unit = weight.inputs != 0 ? weight.inputs : group;  // a group, or half of it
  const int count = weight.k / unit, pairs = (unit + 7) / 8, column = panel * kLanes, halves = unit < group ? 1 : 0;
  const size_t panel_bytes = static_cast<size_t>(count) * pairs * Source::kBytes;
  const size_t panel_scales = static_cast<size_t>(count >> halves) * kLanes;
  const size_t ldx = g.ldx, ld_sum = g.ld_sum;
  const uint8_t* x = static_cast<const uint8_t*>(g.x) + row * ldx;
  const int8_t* w = static_cast<const int8_t*>(weight.panels) + panel * panel_bytes;
  const int32_t* sum = g.x_sum + row * ld_sum;
  const int32_t* start = Source::kNarrow && Source::kBytes == 128 ? g.x_start + row * ld_sum : nullptr;
  const size_t ld_scale = g.ld_scale;  // 0: the inputs have a scale a row, which comes at the end
  const float* x_scale = g.x_scale + (ld_scale != 0 ? row * ld_scale : row);
  const float* scale = weight.scale + panel * panel_scales;
  const float* minimum = weight.minimum == nullptr ? nullptr : weight.minimum + panel * panel_scales;

  Totals<V, MR * NR, V::kTotalsInRegisters> totals;
  for (int left = count; left > 0; --left) {
    const int step = (left & halves) == halves ? kLanes : 0;  // both halves of a group have its scale
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
    if constexpr (Source::kNarrow)
      multiply_indices<V, Source, MR, NR>(acc, source, x, ldx, w, panel_bytes, pairs, sum, ld_sum, start);
    else
      multiply_group<V, Source, MR, NR>(acc, source, x, ldx, w, panel_bytes, pairs);
    unroll<MR * NR>([&](auto i) POCKETFORMER_LAMBDA { V::pin(acc[i]); });

    F factor[NR], value[MR * NR];
    unroll<NR>([&](auto c) POCKETFORMER_LAMBDA { factor[c] = V::load(scale + c * panel_scales); });
    unroll<MR * NR>([&](auto i) POCKETFORMER_LAMBDA { value[i] = V::to_f32(acc[i]); });
    if (ld_scale != 0)
      unroll<MR * NR>([&](auto i)
                          POCKETFORMER_LAMBDA { value[i] = V::mul(value[i], V::set1(x_scale[i / NR * ld_scale])); });
    unroll<MR * NR>([&](auto i) POCKETFORMER_LAMBDA { totals.template add<i>(value[i], factor[i % NR]); });
    scale += step;
    if (minimum != nullptr) {
      unroll<NR>([&](auto c) POCKETFORMER_LAMBDA { factor[c] = V::load(minimum + c * panel_scales); });
      unroll<MR>([&](auto r) POCKETFORMER_LAMBDA {
        float units = static_cast<float>(sum[r * ld_sum]);
        if (ld_scale != 0) units *= x_scale[r * ld_scale];
        unroll<NR>([&](auto c) POCKETFORMER_LAMBDA { totals.template add<r * NR + c>(V::set1(units), factor[c]); });
      });
      minimum += step;
    }
    ++sum;
    if constexpr (Source::kNarrow && Source::kBytes == 128) ++start;
    if (ld_scale != 0) ++x_scale;
  }

  F bias[NR];
  unroll<NR>([&](auto c) POCKETFORMER_LAMBDA {
    bias[c] = g.epilogue.bias != nullptr ? V::load(g.epilogue.bias + column + c * kLanes) : V::zero();
  });
  store_tile<V, MR, NR>(g.epilogue, g.out + row * g.ldo + column, g.ldo, row, column, [&](auto i) POCKETFORMER_LAMBDA {
    return V::fma(totals.template get<i>(), V::set1(ld_scale != 0 ? 1.0f : x_scale[i / NR]), bias[i % NR]);
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

template <class V, int MR, int NR>
struct TileI4Narrow {
  static constexpr int kRows = Indices<V, 64>::kRows;
  static void run(const GemmArgs& g, int row, int panel) { gemm_i4_tile<V, Indices<V, 64>, MR, NR>(g, row, panel); }
};
template <class V, int MR, int NR>
struct TileI4NarrowBytes {
  static constexpr int kRows = Indices<V, 128>::kRows;
  static void run(const GemmArgs& g, int row, int panel) { gemm_i4_tile<V, Indices<V, 128>, MR, NR>(g, row, panel); }
};

}  // namespace

// Products with weights of 4 bits, indices into a codebook of 16 signed bytes with one scale a channel or a group of k;
// and with those of 5, 6 and 8 bits whose scales are of groups.
//
// The sums of a group are exact integers. A group's sum, as a float, is multiplied by the group's scale and added to
// the total in one rounding, groups in ascending order (docs/format.md, Arithmetic). With few rows the nibbles are
// looked up as they are multiplied and a panel is read once; with many, a panel is looked up beforehand for all of
// them. What a file stores in a smaller way (5 and 6 bits in two planes, scales as fp16) is put together beforehand,
// a panel or a few at a time, so that the tiles know bytes, nibbles and floats alone.
//
// Where the dot product takes an unsigned operand, the looked-up weights are it: the codebook is biased once and a
// group's sum begins at −128·Σx. (The activations are not, because 255·127 twice would overflow vpmaddubsw's 16 bits,
// and AVX2 shares their absolute value among the channels.)
//
// Where an ISA adds products in 16 bits (kNarrowSums) and the values are consecutive, what is multiplied is the index,
// 0 … 15, 31 or 63: no signs, and the sums of several k-groups still fit. The first value times Σx is added to them.
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

// A last k-group without three more has padding after it: an ISA's own product takes four at a time.
template <class V>
void look_up_panel(const WeightView& weight, int8_t* out) {
  const typename V::B table = V::repeat16(weight.codebook);
  const auto* w = static_cast<const int8_t*>(weight.panels);
  const int pairs = (weight.k + 7) / 8;
  for (int i = 0; i < pairs; ++i, w += 64, out += 128) {
    const typename V::B pair = V::load_b(w);
    V::store_b(out, V::lookup(table, V::low_nibbles(pair)));
    V::store_b(out + 64, V::lookup(table, V::high_nibbles(pair)));
  }
  if (pairs % 2 != 0) std::memset(out, 0, 128);
}

// A panel of 4 + Bits bits: consecutive values, of which index 0 stands for `first`.
template <int Bits>
void join_planes(const uint8_t* __restrict low, const uint8_t* __restrict high, int first, int pairs,
                 int8_t* __restrict out) {
  constexpr int kPairs = 4 / Bits, kMask = (1 << Bits) - 1;  // pairs of k-groups whose upper bits share a byte
  // The next panel is on its way while this one is multiplied.
  const int low_ahead = 64 * pairs, high_ahead = 64 * ((pairs + kPairs - 1) / kPairs);
  for (; pairs > 0; pairs -= kPairs, high += 64) {
    prefetch(high + high_ahead);
    unroll<kPairs>([&](auto pair) POCKETFORMER_LAMBDA {
      if (pair >= pairs) return;
      constexpr int shift = 2 * Bits * pair;
      prefetch(low + low_ahead);
      for (int i = 0; i < 64; ++i) {
        out[i] = static_cast<int8_t>(first + (low[i] & 15) + (high[i] >> shift & kMask) * 16);
        out[64 + i] = static_cast<int8_t>(first + (low[i] >> 4) + (high[i] >> (shift + Bits) & kMask) * 16);
      }
      low += 64, out += 128;
    });
  }
}

// fp16 scales as floats, `groups` × 16; with `sub` times these, each fp16 being that of `share` groups. Exact. As many
// again are fetched, for the panels that come next.
template <class V>
__attribute__((noinline)) void widen_scales(const uint16_t* half, const int8_t* sub, int groups, int share,
                                            float* out) {
  typename V::F scale = V::zero();
  const int steps = groups / share;
  for (int left = 0; groups > 0; --groups, out += kLanes) {
    if (left == 0) {
      scale = V::load_f16(half);
      prefetch(half + steps * kLanes);
      left = share, half += kLanes;
    }
    --left;
    V::store(out, sub == nullptr ? scale : V::mul(scale, V::load_i8(sub)));
    if (sub != nullptr) {
      prefetch(sub + steps * share * kLanes);
      sub += kLanes;
    }
  }
}

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

// On the stack, and most of it in the nearest caches: 96 KiB. Either the bytes of one panel of up to kLookedUpK inputs
// and its scales, or the scales of longer channels and of more panels at once.
constexpr int kPanelBytes = pocketformer::kLookedUpK * kLanes;
constexpr int kPanelScales = 2 * pocketformer::kLookedUpK / 16 * kLanes;  // with minima, in the smallest groups
static_assert(2 * pocketformer::kMostGroups * kLanes * sizeof(float) <= kPanelBytes + kPanelScales * sizeof(float));

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
  if constexpr (V::kNarrowSums)
    if (indices && join) return gemm_indices<V>(g);
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

// Row-local operators: embedding lookup, norms, pooling, L2 normalisation. Sums of a row run in 4 × 16 virtual lanes
// that are joined by a fixed tree.
#pragma once

#include "core/half.h"
#include "kernels/quantize.h"

namespace {

using pocketformer::DepthwiseArgs;
using pocketformer::EmbedArgs;
using pocketformer::L2NormalizeArgs;
using pocketformer::NormArgs;
using pocketformer::NormKind;
using pocketformer::PoolArgs;
using pocketformer::PoolKind;
using pocketformer::SoftCapArgs;

// Σ term(vector at column c) over the row; `term` sees the number of valid lanes for the last, partial vector.
template <class V, class Term>
POCKETFORMER_INLINE float row_sum(const float* x, int width, Term term) {
  typename V::F sum[4] = {V::zero(), V::zero(), V::zero(), V::zero()};
  int c = 0;
  for (; c + 4 * kLanes <= width; c += 4 * kLanes)
    unroll<4>([&](auto i) POCKETFORMER_LAMBDA { sum[i] = term(sum[i], V::load(x + c + i * kLanes), kLanes); });
  for (; c < width; c += kLanes) {
    const int left = width - c < kLanes ? width - c : kLanes;
    sum[0] = term(sum[0], V::load_partial(x + c, left), left);
  }
  return V::reduce_add(V::add(V::add(sum[0], sum[1]), V::add(sum[2], sum[3])));
}

template <class V>
POCKETFORMER_INLINE typename V::F keep_first(typename V::F x, int n) {
  if (n == kLanes) return x;
  alignas(64) float lanes[kLanes];
  V::store(lanes, x);
  return V::load_partial(lanes, n);
}

template <class V>
POCKETFORMER_INLINE float scalar_sqrt(float x) {
  alignas(64) float lanes[kLanes];
  V::store(lanes, V::sqrt(V::set1(x)));
  return lanes[0];
}

template <class V>
void norm(const NormArgs& g) {
  using F = typename V::F;
  for (int r = 0; r < g.rows; ++r) {
    const float* x = g.x + r * g.ldx;
    float* out = g.out + r * g.ldo;
    F mean = V::zero();
    if (g.kind == NormKind::kLayer)
      mean = V::set1(row_sum<V>(x, g.width, [](F s, F v, int) { return V::add(s, v); }) / static_cast<float>(g.width));
    const float squares = row_sum<V>(x, g.width, [&](F s, F v, int n) {
      const F d = keep_first<V>(V::sub(v, mean), n);
      return V::fma(d, d, s);
    });
    const F inverse = V::set1(1.0f / scalar_sqrt<V>(squares / static_cast<float>(g.width) + g.eps));
    for (int c = 0; c < g.width; c += kLanes) {
      const F weight = V::load(g.weight + c);  // zero in the padding, and so is the result
      const F bias = g.bias != nullptr ? V::load(g.bias + c) : V::zero();
      V::store(out + c, V::fma(V::mul(V::sub(V::load(x + c), mean), inverse), weight, bias));
    }
  }
}

// One row of a table; `panels` gathers it from [rows/16][width/4][16][4] (int8) or [rows/16][width][16] (fp32, fp16).
template <class V>
POCKETFORMER_INLINE void gather_panel_row(const EmbedArgs& g, size_t row, float* out) {
  const size_t panel = row / kLanes, channel = row % kLanes;
  if (g.scale != nullptr) {
    const size_t groups = (g.width + 3) / 4;
    const auto* p = static_cast<const int8_t*>(g.table) + (panel * groups * kLanes + channel) * 4;
    for (int c = 0; c < g.width; ++c) out[c] = static_cast<float>(p[(c / 4) * 64 + c % 4]);
    return;
  }
  const size_t first = panel * g.width * kLanes + channel;
  for (int c = 0; c < g.width; ++c) {
    const size_t at = first + static_cast<size_t>(c) * kLanes;
    out[c] = g.bits == 16 ? pocketformer::widen(static_cast<const uint16_t*>(g.table)[at])
                          : static_cast<const float*>(g.table)[at];
  }
}

// What 16 consecutive indices of `bits` bits stand for; eight of them fill `bits` bytes.
template <int bits>
POCKETFORMER_INLINE void look_up(const uint8_t* packed, const int8_t* codebook, int8_t* values) {
  for (int half = 0; half < 2; ++half) {
    uint64_t codes = 0;
    std::memcpy(&codes, packed + half * bits, bits);
    for (int i = 0; i < 8; ++i) values[8 * half + i] = codebook[(codes >> (i * bits)) & ((1u << bits) - 1)];
  }
}

POCKETFORMER_INLINE void look_up(int bits, const uint8_t* packed, const int8_t* codebook, int8_t* values) {
  switch (bits) {
    case 3:
      return look_up<3>(packed, codebook, values);
    case 4:
      return look_up<4>(packed, codebook, values);
    case 5:
      return look_up<5>(packed, codebook, values);
    case 6:
      return look_up<6>(packed, codebook, values);
    default:
      return look_up<7>(packed, codebook, values);
  }
}

// Columns [c, c + 16) of a row of a table by rows, zeros beyond its width.
template <class V>
POCKETFORMER_INLINE typename V::F table_columns(const EmbedArgs& g, size_t row, int c) {
  const int left = g.width - c < kLanes ? g.width - c : kLanes;
  if (g.bits == 16) {
    alignas(32) uint16_t halves[kLanes] = {};
    std::memcpy(halves, static_cast<const uint16_t*>(g.table) + row * g.width + c, left * sizeof(uint16_t));
    return V::load_f16(halves);
  }
  if (g.scale == nullptr) return V::load_partial(static_cast<const float*>(g.table) + row * g.width + c, left);
  alignas(16) int8_t values[kLanes] = {};
  if (g.bits < 8) {
    const size_t block = 2 * static_cast<size_t>(g.bits), blocks = (g.width + kLanes - 1) / kLanes;
    look_up(g.bits, static_cast<const uint8_t*>(g.table) + (row * blocks + c / kLanes) * block, g.codebook, values);
    for (int i = left; i < kLanes; ++i) values[i] = 0;
    return V::load_i8(values);
  }
  const auto* bytes = static_cast<const int8_t*>(g.table) + row * g.width + c;
  if (left == kLanes) return V::load_i8(bytes);
  std::memcpy(values, bytes, left);
  return V::load_i8(values);
}

template <class V>
void embed(const EmbedArgs& g) {
  using F = typename V::F;
  const int padded = round_up(g.width, kLanes);
  for (int r = 0; r < g.rows; ++r) {
    const size_t row = g.index[r];
    float* out = g.out + r * g.ldo;
    const F scale = V::set1(g.scale != nullptr ? g.scale[row] : 1.0f);
    if (g.panels) {  // only ever the first table
      gather_panel_row<V>(g, row, out);
      for (int c = g.width; c < padded; ++c) out[c] = 0;
      for (int c = 0; c < padded; c += kLanes) V::store(out + c, V::mul(V::load(out + c), scale));
    } else {
      for (int c = 0; c < padded; c += kLanes) {
        const F v = table_columns<V>(g, row, c);
        // One fused step for the tables after the first; every ISA takes the same.
        V::store(out + c, g.accumulate ? V::fma(v, scale, V::load(out + c)) : V::mul(v, scale));
      }
    }
    if (g.rotate > 1) rotate_row<V>(out, out, padded, g.rotate);
  }
}

template <class V>
void pool(const PoolArgs& g) {
  using F = typename V::F;
  const bool weighted = g.kind == PoolKind::kWeightedMean, largest = g.kind == PoolKind::kMax;
  const bool sum = weighted || g.kind == PoolKind::kMean || g.kind == PoolKind::kMeanSqrt;
  const float* const x = g.kind == PoolKind::kLast ? g.x + (g.rows - 1) * g.ldx : g.x;
  const int rows = sum || largest ? g.rows : 1;
  const int64_t n = g.rows;
  const float total = static_cast<float>(weighted ? n * g.first + n * (n + 1) / 2 : n);  // exact, rounded once
  const F divisor = V::set1(g.kind == PoolKind::kMeanSqrt ? scalar_sqrt<V>(total) : total);
  for (int c = 0; c < g.width; c += kLanes) {
    F v = V::load(x + c);
    if (weighted) v = V::mul(v, V::set1(static_cast<float>(g.first + 1)));
    for (int r = 1; r < rows; ++r) {
      const F next = V::load(x + r * g.ldx + c);
      if (weighted) {
        v = V::fma(next, V::set1(static_cast<float>(g.first + r + 1)), v);
      } else {
        v = largest ? V::max(v, next) : V::add(v, next);
      }
    }
    // Adding +0 leaves no −0, whose order below +0 differs between ISAs.
    V::store(g.out + c, sum ? V::div(v, divisor) : V::add(v, V::zero()));
  }
}

// Tap after tap, fused. Four rows share a weight's load; beside it their sums fill half of AVX2's and of NEON's
// registers.
template <class V>
void depthwise(const DepthwiseArgs& g) {
  using F = typename V::F;
  constexpr int kRows = DepthwiseArgs::kRows;
  for (int c = 0; c < g.columns; c += kLanes) {
    F sum[kRows];
    const F first = g.bias != nullptr ? V::load(g.bias + c) : V::zero();
    unroll<kRows>([&](auto i) POCKETFORMER_LAMBDA { sum[i] = first; });
    const float* weight = g.weight + c;
    for (const float* const* x = g.x; x < g.x + g.taps * kRows; x += kRows, weight += g.columns) {
      const F w = V::load(weight);
      unroll<kRows>([&](auto i) POCKETFORMER_LAMBDA { sum[i] = V::fma(V::load(x[i] + c), w, sum[i]); });
    }
    unroll<kRows>([&](auto i) POCKETFORMER_LAMBDA {
      if (i < g.rows) V::store(g.out + i * g.ldo + c, sum[i]);
    });
  }
}

template <class V>
void l2_normalize(const L2NormalizeArgs& g) {
  using F = typename V::F;
  for (int r = 0; r < g.rows; ++r) {
    const float* x = g.x + r * g.ldx;
    const float squares = row_sum<V>(x, g.width, [](F s, F v, int) { return V::fma(v, v, s); });
    const float length = scalar_sqrt<V>(squares);
    const F divisor = V::set1(length > 1e-12f ? length : 1e-12f);
    for (int c = 0; c < g.width; c += kLanes) V::store(g.out + r * g.ldo + c, V::div(V::load(x + c), divisor));
  }
}

template <class V>
void soft_cap(const SoftCapArgs& g) {
  alignas(64) float ones[kLanes];
  V::store(ones, V::set1(1.0f));
  const int vectors = (g.width + kLanes - 1) / kLanes;
  for (int r = 0; r < g.rows; ++r) {
    float* out = g.out + r * g.ldo;
    if (out != g.x + r * g.ldx) std::memcpy(out, g.x + r * g.ldx, vectors * kLanes * sizeof(float));
    soft_cap_vectors<V>(out, vectors, ones, g.cap);
  }
}

}  // namespace

// Rows of floats to int8 with one scale a row or group, after an optional block Hadamard rotation (docs/format.md,
// Arithmetic).
#pragma once

#include "kernels/gemm.h"

namespace {

using pocketformer::QuantizeArgs;

// Butterflies of distance D within each vector: lane i gets x[i^D] ± x[i].
template <class V, int D>
POCKETFORMER_INLINE typename V::F butterfly(typename V::F x) {
  return V::fma(x, V::template alternate<D>(), V::template xor_lanes<D>(x));
}

// Unnormalised Walsh–Hadamard transform of R vectors of 16 (a block of 16·R), distances from far to near.
template <class V, int R>
POCKETFORMER_INLINE void hadamard(typename V::F (&x)[R]) {
  using F = typename V::F;
  const auto level = [&](auto distance) POCKETFORMER_LAMBDA {
    constexpr int D = distance;
    if constexpr (D < R)
      unroll<R / 2>([&](auto i) POCKETFORMER_LAMBDA {
        constexpr int j = (i / D) * 2 * D + i % D;
        const F a = x[j], b = x[j + D];
        x[j] = V::add(a, b);
        x[j + D] = V::sub(a, b);
      });
  };
  level(std::integral_constant<int, 4>{});
  level(std::integral_constant<int, 2>{});
  level(std::integral_constant<int, 1>{});
  unroll<R>([&](auto i) POCKETFORMER_LAMBDA { x[i] = butterfly<V, 8>(x[i]); });
  unroll<R>([&](auto i) POCKETFORMER_LAMBDA { x[i] = butterfly<V, 4>(x[i]); });
  unroll<R>([&](auto i) POCKETFORMER_LAMBDA { x[i] = butterfly<V, 2>(x[i]); });
  unroll<R>([&](auto i) POCKETFORMER_LAMBDA { x[i] = butterfly<V, 1>(x[i]); });
}

// x[columns] → y, rotated in blocks of `block` ≤ 128 that divide `columns`; x may be y.
template <class V, int R>
POCKETFORMER_INLINE void rotate_blocks(const float* x, float* y, int columns) {
  for (int c = 0; c < columns; c += R * kLanes) {
    typename V::F v[R];
    unroll<R>([&](auto i) POCKETFORMER_LAMBDA { v[i] = V::load(x + c + i * kLanes); });
    hadamard<V, R>(v);
    unroll<R>([&](auto i) POCKETFORMER_LAMBDA { V::store(y + c + i * kLanes, v[i]); });
  }
}

template <class V>
void rotate_row(const float* x, float* y, int columns, int block) {
  switch (block) {
    case 128:
      return rotate_blocks<V, 8>(x, y, columns);
    case 64:
      return rotate_blocks<V, 4>(x, y, columns);
    case 32:
      return rotate_blocks<V, 2>(x, y, columns);
    case 16:
      return rotate_blocks<V, 1>(x, y, columns);
  }
  for (int c = 0; c < columns; c += kLanes) {  // blocks of 2, 4, 8; padding holds zeros and stays zero
    typename V::F v = V::load(x + c);
    if (block >= 8) v = butterfly<V, 4>(v);
    if (block >= 4) v = butterfly<V, 2>(v);
    if (block >= 2) v = butterfly<V, 1>(v);
    V::store(y + c, v);
  }
}

template <class V>
POCKETFORMER_INLINE float row_max_abs(const float* x, int columns) {
  typename V::F a = V::zero(), b = V::zero();
  int c = 0;
  for (; c + 2 * kLanes <= columns; c += 2 * kLanes) {
    a = V::max(a, V::abs(V::load(x + c)));
    b = V::max(b, V::abs(V::load(x + c + kLanes)));
  }
  if (c < columns) a = V::max(a, V::abs(V::load(x + c)));
  return V::reduce_max(V::max(a, b));
}

// 127/amax, and 0 for a row of zeros (and for one so small that 127/amax overflows).
POCKETFORMER_INLINE float inverse_scale(float amax) { return amax > 1e-36f ? 127.0f / amax : 0.0f; }

// The same for 16 rows. The difference is above zero exactly where the comparison holds; twice 1e38 lifts even a
// subnormal one above 1.
template <class V>
POCKETFORMER_INLINE typename V::F inverse_scales(typename V::F amax) {
  const typename V::F least = V::set1(1e-36f), huge = V::set1(1e38f);
  const typename V::F usable = clamp<V>(V::mul(V::mul(V::sub(amax, least), huge), huge), 0.0f, 1.0f);
  return V::mul(V::div(V::set1(127.0f), V::max(amax, least)), usable);
}

// A row too long for the buffer is rotated a second time for its tail instead of being kept.
constexpr int kRotatedFloats = 4096;

// Σ of each group of a row of signed values, the whole row's where `group` is 0; `columns` is a multiple of 16.
template <class V>
POCKETFORMER_INLINE void sum_groups(const int8_t* q, int columns, int group, int32_t* sum) {
  const int width = group == 0 ? columns : group;
  for (int begin = 0; begin < columns; begin += width) {
    typename V::F total = V::zero();  // exact: far below 2^24
    for (int c = begin; c < begin + width; c += kLanes) total = V::add(total, V::load_i8(q + c));
    *sum++ = V::reduce_add_i32(V::to_i32(total));
  }
}

template <class V>
void quantize_rows(const QuantizeArgs& q) {
  using I = typename V::I;
  alignas(64) float rotated[kRotatedFloats];
  const int columns = round_up(q.k, kLanes);
  const int shift = q.is_signed ? 0 : V::kActivationOffset;
  const I offset = V::set1_i32(shift);
  for (int r = 0; r < q.rows; ++r) {
    const float* x = q.x + r * q.ldx;
    uint8_t* out = q.q + r * q.ldq;
    const auto emit = [&](const float* from, int begin, int end, float inverse) {
      const typename V::F scale = V::set1(inverse);
      const auto quantized = [&](int c)
                                 POCKETFORMER_LAMBDA { return V::to_i32(V::mul(V::load(from + c - begin), scale)); };
      int c = begin;
      for (; c + 4 * kLanes <= end; c += 4 * kLanes) {
        const I a = quantized(c), b = quantized(c + kLanes), d = quantized(c + 2 * kLanes),
                e = quantized(c + 3 * kLanes);
        const typename V::B bytes = V::pack64(a, b, d, e);
        V::store_b(out + c, shift == 0 ? bytes : V::bias(bytes));
      }
      for (; c < end; c += kLanes) V::store_bytes(out + c, V::add_i32(quantized(c), offset));
    };
    float* const scales = q.scale + r * (q.ld_scale != 0 ? q.ld_scale : 1);
    if (q.rotate <= 1) {
      const int width = q.ld_scale != 0 ? q.group : columns;
      for (int c = 0, i = 0; c < columns; c += width, ++i) {
        const float amax = row_max_abs<V>(x + c, width);
        emit(x + c, c, c + width, inverse_scale(amax));
        scales[i] = amax * (1.0f / 127.0f);
      }
    } else {
      float amax = 0;
      int last = 0;
      for (int c = 0; c < columns; c += kRotatedFloats) {
        last = c;
        const int n = columns - c < kRotatedFloats ? columns - c : kRotatedFloats;
        rotate_row<V>(x + c, rotated, n, q.rotate);
        const float m = row_max_abs<V>(rotated, n);
        amax = m > amax ? m : amax;
      }
      const float inverse = inverse_scale(amax);
      emit(rotated, last, columns, inverse);
      for (int c = 0; c < last; c += kRotatedFloats) {
        rotate_row<V>(x + c, rotated, kRotatedFloats, q.rotate);
        emit(rotated, c, c + kRotatedFloats, inverse);
      }
      scales[0] = amax * (1.0f / 127.0f);
    }
    if (q.sum != nullptr) sum_groups<V>(reinterpret_cast<const int8_t*>(out), columns, q.group, q.sum + r * q.ld_sum);
  }
}

}  // namespace

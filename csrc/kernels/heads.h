// Rows of heads side by side into what attention reads: queries, keys and values, quantized or as they are.
#pragma once

#include "core/half.h"
#include "kernels/quantize.h"

namespace {

using pocketformer::kMaxHeadDim;
using pocketformer::QuantizeHeadsArgs;
using pocketformer::StoreF32Args;
using pocketformer::StoreI8Args;

// A head's channels as vectors of 16. `N` vectors without a rest where that is known when compiling, or 0.
template <class V, int N, class Fn>
POCKETFORMER_INLINE void for_each_vector(int head_stride, Fn fn) {
  if constexpr (N != 0)
    unroll<N>([&](auto i) POCKETFORMER_LAMBDA { fn(i * kLanes); });
  else
    for (int d = 0; d < head_stride; d += kLanes) fn(d);
}

template <class V, int N>
POCKETFORMER_INLINE typename V::F load_head(const float* x, int d, int head_dim) {
  const int left = head_dim - d;
  return N != 0 || left >= kLanes ? V::load(x + d) : V::load_partial(x + d, left);
}

template <class V, int N>
POCKETFORMER_INLINE typename V::I quantize_head(const float* x, int d, int head_dim, float inverse) {
  return V::to_i32(V::mul(load_head<V, N>(x, d, head_dim), V::set1(inverse)));
}

template <class V, int N>
POCKETFORMER_INLINE void store_head(const float* x, int head_dim, int head_stride, float inverse, int32_t offset,
                                    void* to) {
  for_each_vector<V, N>(head_stride, [&](int d) POCKETFORMER_LAMBDA {
    V::store_bytes(static_cast<uint8_t*>(to) + d,
                   V::add_i32(quantize_head<V, N>(x, d, head_dim, inverse), V::set1_i32(offset)));
  });
}

// One head's values of `count` ≤ 4 tokens, `ld` apart, that share a group of four keys, from its number `first` on.
template <class V, int N>
POCKETFORMER_INLINE void store_values(const float* x, size_t ld, const float* inverse, int count, int head_dim,
                                      int head_stride, int8_t* group, int first) {
  for_each_vector<V, N>(head_stride, [&](int d) POCKETFORMER_LAMBDA {
    const auto quantized = [&](int i) POCKETFORMER_LAMBDA {
      return quantize_head<V, N>(x + i * ld, d, head_dim, inverse[i * kLanes]);
    };
    int8_t* out = group + d * 4;
    if (count == 4) {
      V::store_b(out, V::pack4(quantized(0), quantized(1), quantized(2), quantized(3)));
      return;
    }
    for (int i = 0; i < count; ++i) {  // a group shared with another block: only this block's bytes are written
      alignas(16) int8_t bytes[kLanes];
      V::store_bytes(bytes, quantized(i));
      for (int c = 0; c < kLanes; ++c) out[c * 4 + first + i] = bytes[c];
    }
  });
}

// Scales of up to 16 heads, head(0), head(1), …: their maxima are reduced together, as lanes of one vector.
template <class V, int N, class Head>
POCKETFORMER_INLINE void measure_heads(Head head, int heads, int head_dim, int head_stride, float* scale,
                                       float* inverse) {
  using F = typename V::F;
  F most[kLanes];
  for (int h = 0; h < kLanes; ++h) {
    F m = V::zero();
    if (h < heads) {
      const float* x = head(h);
      for_each_vector<V, N>(head_stride,
                            [&](int d) POCKETFORMER_LAMBDA { m = V::max(m, V::abs(load_head<V, N>(x, d, head_dim))); });
    }
    most[h] = m;
  }
  V::transpose(most);
  unroll<kLanes - 1>([&](auto i) POCKETFORMER_LAMBDA { most[0] = V::max(most[0], most[i + 1]); });
  V::store(scale, V::mul(most[0], V::set1(1.0f / 127.0f)));
  V::store(inverse, inverse_scales<V>(most[0]));
}

// `heads` heads side by side → out[heads][head_stride], rotated in blocks of `block`.
template <class V>
void rotate_heads(const float* x, int heads, int head_dim, int head_stride, int block, float* out) {
  for (int h = 0; h < heads; ++h, x += head_dim, out += head_stride) {
    for (int d = 0; d < head_stride; d += kLanes) V::store(out + d, load_head<V, 0>(x, d, head_dim));
    rotate_row<V>(out, out, head_stride, block);
  }
}

template <class V, int N>
void quantize_rows_of_heads(const QuantizeHeadsArgs& g) {
  alignas(64) float rotated[kLanes * kMaxHeadDim];
  for (int row = 0; row < g.rows; ++row)
    for (int begin = 0; begin < g.heads; begin += kLanes) {
      const int count = g.heads - begin < kLanes ? g.heads - begin : kLanes;
      const float* x = g.x + row * g.ldx + begin * g.head_dim;
      int pitch = g.head_dim;
      if (g.rotate > 1) {
        rotate_heads<V>(x, count, g.head_dim, g.head_stride, g.rotate, rotated);
        x = rotated, pitch = g.head_stride;
      }
      alignas(64) float scale[kLanes], inverse[kLanes];
      measure_heads<V, N>([=](int h) POCKETFORMER_LAMBDA { return x + h * pitch; }, count, g.head_dim, g.head_stride,
                          scale, inverse);
      const size_t first = static_cast<size_t>(row) * g.heads + begin;
      for (int h = 0; h < count; ++h) {
        g.scale[first + h] = scale[h];
        store_head<V, N>(x + h * pitch, g.head_dim, g.head_stride, inverse[h], 0, g.q + (first + h) * g.head_stride);
      }
    }
}

template <class V>
void quantize_heads(const QuantizeHeadsArgs& g) {
  if (g.head_dim == 2 * kLanes) return quantize_rows_of_heads<V, 2>(g);
  if (g.head_dim == 4 * kLanes) return quantize_rows_of_heads<V, 4>(g);
  quantize_rows_of_heads<V, 0>(g);
}

// Rows pass in groups that share a group of four keys; a row's heads, keys and then values, sixteen at a time.
template <class V, int N>
void store_heads(const StoreI8Args& s) {
  const auto& c = s.common;
  alignas(64) float rotated[kLanes * kMaxHeadDim];
  const int heads = 2 * c.kv_heads;
  for (int row = 0, count; row < c.rows; row += count) {
    const size_t slot = c.slot + row;
    const int first = static_cast<int>(slot % 4);
    count = c.rows - row < 4 - first ? c.rows - row : 4 - first;
    for (int begin = 0; begin < heads; begin += kLanes) {
      const int end = begin + kLanes < heads ? begin + kLanes : heads;
      const int keys_end = end < c.kv_heads ? end : c.kv_heads;
      alignas(64) float scale[4][kLanes], inverse[4][kLanes];
      for (int i = 0; i < count; ++i) {
        const float* k = c.k + (row + i) * c.ldk;
        const float* v = c.v + (row + i) * c.ldv;
        if (s.rotate > 1 && begin < keys_end)
          rotate_heads<V>(k + begin * c.head_dim, keys_end - begin, c.head_dim, c.head_stride, s.rotate, rotated);
        const auto key = [&](int head) POCKETFORMER_LAMBDA {
          return s.rotate > 1 ? rotated + (head - begin) * c.head_stride : k + head * c.head_dim;
        };
        const auto head = [&](int h) POCKETFORMER_LAMBDA {
          return begin + h < c.kv_heads ? key(begin + h) : v + (begin + h - c.kv_heads) * c.head_dim;
        };
        measure_heads<V, N>(head, end - begin, c.head_dim, c.head_stride, scale[i], inverse[i]);
        for (int h = begin; h < keys_end; ++h) {
          const size_t at = h * s.kv.capacity + slot + i;
          s.kv.k_scale[at] = scale[i][h - begin];
          store_head<V, N>(key(h), c.head_dim, c.head_stride, inverse[i][h - begin], V::kActivationOffset,
                           s.kv.k + at * c.head_stride);
        }
      }
      for (int h = begin > c.kv_heads ? begin : c.kv_heads; h < end; ++h) {
        const size_t at = (h - c.kv_heads) * s.kv.capacity + slot;
        for (int i = 0; i < count; ++i) s.kv.v_scale[at + i] = scale[i][h - begin];
        store_values<V, N>(c.v + row * c.ldv + (h - c.kv_heads) * c.head_dim, c.ldv, &inverse[0][h - begin], count,
                           c.head_dim, c.head_stride, s.kv.v + (at - first) * c.head_stride, first);
      }
    }
  }
}

template <class V>
void store_i8(const StoreI8Args& s) {
  if (s.common.head_dim == 2 * kLanes) return store_heads<V, 2>(s);
  if (s.common.head_dim == 4 * kLanes) return store_heads<V, 4>(s);
  store_heads<V, 0>(s);
}

// One head as fp16, with zeros behind it. Out of line: compilers make vectors of it, a kilobyte of them each time.
template <class V>
__attribute__((noinline)) void store_halves(const float* x, int head_dim, int head_stride, uint16_t* to) {
  for (int d = 0; d < head_dim; ++d) to[d] = pocketformer::narrow_finite(x[d]);
  for (int d = head_dim; d < head_stride; ++d) to[d] = 0;
}

template <class V>
void store_f32(const StoreF32Args& s) {
  const auto& c = s.common;
  for (int r = 0; r < c.rows; ++r)
    for (int h = 0; h < c.kv_heads; ++h) {
      const size_t at = (h * s.kv.capacity + c.slot + r) * c.head_stride;
      const float* k = c.k + r * c.ldk + h * c.head_dim;
      const float* v = c.v + r * c.ldv + h * c.head_dim;
      if (s.kv.half_k != nullptr) {
        store_halves<V>(k, c.head_dim, c.head_stride, s.kv.half_k + at);
        store_halves<V>(v, c.head_dim, c.head_stride, s.kv.half_v + at);
        continue;
      }
      for (int d = 0; d < c.head_stride; d += kLanes) {
        V::store(s.kv.k + at + d, load_head<V, 0>(k, d, c.head_dim));
        V::store(s.kv.v + at + d, load_head<V, 0>(v, d, c.head_dim));
      }
    }
}

}  // namespace

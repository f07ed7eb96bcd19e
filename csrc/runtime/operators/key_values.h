// A state's memory as the kernels take it.
#pragma once

#include "runtime/worker.h"

namespace pocketformer {

inline KeyValuesI8 key_values_i8(const Worker& w, const State& s) {
  std::byte* const start = w.state(s);
  const size_t scales = static_cast<size_t>(s.heads) * w.capacity(s),
               elements = scales * static_cast<size_t>(s.head_stride);
  float* const k_scale = reinterpret_cast<float*>(start + 2 * elements);
  return {.k = reinterpret_cast<uint8_t*>(start),
          .k_scale = k_scale,
          .v = reinterpret_cast<int8_t*>(start + elements),
          .v_scale = k_scale + scales,
          .capacity = w.capacity(s)};
}

inline KeyValuesF32 key_values_f32(const Worker& w, const State& s) {
  float* const start = reinterpret_cast<float*>(w.state(s));
  const size_t elements = static_cast<size_t>(s.heads) * w.capacity(s) * static_cast<size_t>(s.head_stride);
  return {.k = start, .v = start + elements, .capacity = w.capacity(s)};
}

}  // namespace pocketformer

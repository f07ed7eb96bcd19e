// A state's memory as the kernels take it.
#pragma once

#include "runtime/worker.h"

namespace pocketformer {

inline KeyValuesI8 key_values_i8(const State& s, const StoredState& stored) {
  const size_t scales = static_cast<size_t>(s.heads) * stored.slots,
               elements = scales * static_cast<size_t>(s.head_stride);
  float* const k_scale = reinterpret_cast<float*>(stored.data + 2 * elements);
  return {.k = reinterpret_cast<uint8_t*>(stored.data),
          .k_scale = k_scale,
          .v = reinterpret_cast<int8_t*>(stored.data + elements),
          .v_scale = k_scale + scales,
          .capacity = stored.slots};
}

inline KeyValuesF32 key_values_f32(const State& s, const StoredState& stored) {
  const size_t elements = static_cast<size_t>(s.heads) * stored.slots * static_cast<size_t>(s.head_stride);
  if (s.half) {
    uint16_t* const start = reinterpret_cast<uint16_t*>(stored.data);
    return {.k = nullptr, .v = nullptr, .capacity = stored.slots, .half_k = start, .half_v = start + elements};
  }
  float* const start = reinterpret_cast<float*>(stored.data);
  return {.k = start, .v = start + elements, .capacity = stored.slots};
}

}  // namespace pocketformer

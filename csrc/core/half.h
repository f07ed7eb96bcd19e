// fp16 as stored in files.
#pragma once

#include <cstdint>
#include <cstring>

namespace pocketformer {

// The value of a finite fp16. Its exponent moves by a power of two, which is exact for subnormal ones too. Internal and
// inlined, so that units for different CPUs have a copy each.
static inline __attribute__((always_inline)) float widen(uint16_t half) {
  const uint32_t magnitude = static_cast<uint32_t>(half & 0x7FFF) << 13;
  float value;
  std::memcpy(&value, &magnitude, 4);
  value *= 0x1p112f;
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  bits |= static_cast<uint32_t>(half & 0x8000) << 16;
  std::memcpy(&value, &bits, 4);
  return value;
}

}  // namespace pocketformer

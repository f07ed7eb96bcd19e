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

// The fp16 nearest to a finite float, of two equally near ones the even; infinite where that is beyond 65504.
static inline uint16_t narrow(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const uint32_t sign = bits >> 16 & 0x8000, size = bits & 0x7FFFFFFF;
  if (size >= 0x47800000) return static_cast<uint16_t>(sign | 0x7C00);
  if (size >= 0x38800000) {  // normal: 13 bits fewer, and another bias of the exponent
    return static_cast<uint16_t>(sign | ((size - 0x38000000 + 0x0FFF + (size >> 13 & 1)) >> 13));
  }
  float scaled;  // subnormal: rounded to multiples of 2^-24 by the addition of what has these as its last bit
  std::memcpy(&scaled, &size, 4);
  scaled += 0.5f;
  std::memcpy(&bits, &scaled, 4);
  return static_cast<uint16_t>(sign | (bits - 0x3F000000));
}

// The finite fp16 nearest to a float: ±65504 for what is beyond, and for NaN.
static inline uint16_t narrow_finite(float value) {
  constexpr uint32_t kMost = 0x477FE000;  // 65504
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const uint32_t size = bits & 0x7FFFFFFF;
  bits = (bits & 0x80000000) | (size < kMost ? size : kMost);
  std::memcpy(&value, &bits, 4);
  return narrow(value);
}

}  // namespace pocketformer

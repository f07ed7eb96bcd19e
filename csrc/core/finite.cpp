#include "core/finite.h"

#include <cstdint>
#include <cstring>

namespace pocketformer {

// The exponent of infinity and of NaN is all ones: one more unit of it carries into the sign. Only and, add and or, so
// that compilers make vectors of it on the baseline of any CPU.
bool all_finite(const float* x, size_t count) {
  uint32_t carried = 0;
  for (size_t i = 0; i < count; ++i) {
    uint32_t bits;
    std::memcpy(&bits, x + i, sizeof(bits));
    carried |= (bits & 0x7f800000u) + 0x00800000u;
  }
  return (carried & 0x80000000u) == 0;
}

int first_not_finite(const float* x, size_t width, int rows) {
  if (all_finite(x, width * static_cast<size_t>(rows))) return rows;
  int row = 0;
  while (all_finite(x + static_cast<size_t>(row) * width, width)) ++row;
  return row;
}

}  // namespace pocketformer

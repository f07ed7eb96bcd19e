// A row of zeros: what the taps of a convolution read beyond the edge of a grid or the ends of a sequence.
#pragma once

#include <cstring>

#include "core/aligned_buffer.h"
#include "runtime/lowering.h"

namespace pocketformer {

class ZeroRow {
 public:
  explicit ZeroRow(int width) {
    const size_t bytes = static_cast<size_t>(padded(width)) * sizeof(float);
    row_.reserve(bytes);
    std::memset(row_.data(), 0, bytes);
  }
  const float* data() const { return reinterpret_cast<const float*>(row_.data()); }

 private:
  AlignedBuffer row_;
};

}  // namespace pocketformer

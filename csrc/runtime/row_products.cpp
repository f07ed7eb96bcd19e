#include "runtime/row_products.h"

#include <algorithm>
#include <cstring>

namespace pocketformer {

void pack_columns(const float* x, size_t ld, int rows, int columns, float* panels) {
  for (int c = 0; c < columns; c += kLanes) {
    const size_t count = static_cast<size_t>(std::min(kLanes, columns - c));
    for (int r = 0; r < rows; ++r, panels += kLanes) {
      const float* const from = x + static_cast<size_t>(r) * ld + c;
      if (count == kLanes) {  // a size that the compiler knows: no call
        std::memcpy(panels, from, kLanes * sizeof(float));
        continue;
      }
      std::memcpy(panels, from, count * sizeof(float));
      std::fill(panels + count, panels + kLanes, 0.0f);
    }
  }
}

void pack_rows(const float* x, size_t ld, int rows, int columns, float* panels) {
  for (int r = 0; r < rows; r += kLanes, panels += static_cast<size_t>(columns) * kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const float* const from = r + lane < rows ? x + static_cast<size_t>(r + lane) * ld : nullptr;
      for (int c = 0; c < columns; ++c) panels[c * kLanes + lane] = from == nullptr ? 0.0f : from[c];
    }
  }
}

void multiply(const KernelTable& kernels, const Product& p) {
  GemmArgs args{.x = p.x,
                .ldx = p.ldx,
                .weight = {.format = Format::kF32, .panels = p.panels, .n = p.n, .k = p.k},
                .out = p.out,
                .ldo = p.ldo,
                .m = p.m,
                .panel_begin = 0,
                .panel_end = (p.n + kLanes - 1) / kLanes};
  if (p.add) args.epilogue.residual = p.out, args.epilogue.ld_residual = p.ldo;
  kernels.gemm[static_cast<int>(Format::kF32)](args);
}

}  // namespace pocketformer

// Products of rows with rows, where neither is a weight of the file: by the fp32 kernel, over panels packed on the way.
#pragma once

#include <cstddef>

#include "kernels/table.h"

namespace pocketformer {

// panels[columns/16][rows][16] ← x[rows][ld]; zeros behind the last column.
void pack_columns(const float* x, size_t ld, int rows, int columns, float* panels);
// panels[rows/16][columns][16] ← xᵀ; zeros behind the last row.
void pack_rows(const float* x, size_t ld, int rows, int columns, float* panels);

// out[m][ldo] = x[m][ldx] · panels[n/16][k][16], added to what is there with `add`; whole vectors of 16 are written.
struct Product {
  const float* x;
  size_t ldx;
  int m, k;
  const float* panels;
  int n;
  float* out;
  size_t ldo;
  bool add = false;
};
void multiply(const KernelTable& kernels, const Product& product);

}  // namespace pocketformer

// Rows of a weight whose scales are of groups, looked up one by one.
#pragma once

#include "kernels/table.h"

namespace pocketformer {

// Row `row` of `table`, in panels and not rotated, as k floats: value · scale + minimum, each rounded.
void look_up_grouped(const WeightView& table, int row, float* out);

}  // namespace pocketformer

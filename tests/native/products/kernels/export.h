// Stands before csrc's header of this name where an ISA is compiled for same_products.cpp: products and what feeds
// them, which takes seconds to compile instead of minutes.
#pragma once

#include "kernels/gemm_i4.h"
#include "kernels/gemm_skip.h"
#include "kernels/quantize.h"

#define POCKETFORMER_EXPORT_KERNELS(name)                                                                       \
  namespace pocketformer {                                                                                      \
  const KernelTable* kernel_table_##name() {                                                                    \
    static constexpr KernelTable kTable = {.isa = Isa::kName,                                                   \
                                           .activation_offset = Isa::kActivationOffset,                         \
                                           .quantize_rows = quantize_rows<Isa>,                                 \
                                           .gemm = {gemm_f32<Isa>, gemm_f16<Isa>, gemm_i8<Isa>, gemm_i4<Isa>}}; \
    return &kTable;                                                                                             \
  }                                                                                                             \
  }

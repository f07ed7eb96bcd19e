// Turns the templates into one table of functions. Included once by each isa/kernels_<name>.cpp, after `Isa`.
#pragma once

#include "kernels/attention_f32.h"
#include "kernels/attention_i8.h"
#include "kernels/gemm.h"
#include "kernels/heads.h"
#include "kernels/probe.h"
#include "kernels/quantize.h"
#include "kernels/rope.h"
#include "kernels/rows.h"

#define POCKETFORMER_EXPORT_KERNELS(name)                                              \
  namespace pocketformer {                                                             \
  const KernelTable* kernel_table_##name() {                                           \
    static constexpr KernelTable kTable = {                                            \
        Isa::kName,        Isa::kActivationOffset, Isa::kGemmRows, quantize_rows<Isa>, \
        gemm_i8<Isa>,      gemm_f32<Isa>,          embed<Isa>,     norm<Isa>,          \
        rope<Isa>,         quantize_heads<Isa>,    store_i8<Isa>,  store_f32<Isa>,     \
        attention_i8<Isa>, attention_f32<Isa>,     pool<Isa>,      l2_normalize<Isa>,  \
        probe_dot4<Isa>,   probe_fma<Isa>,         probe_read<Isa>};                   \
    return &kTable;                                                                    \
  }                                                                                    \
  }

// Turns the templates into one table of functions. Included once by each isa/kernels_<name>.cpp, after `Isa`.
#pragma once

#include "kernels/attention_f32.h"
#include "kernels/attention_i8.h"
#include "kernels/elementwise.h"
#include "kernels/gemm.h"
#include "kernels/gemm_i4.h"
#include "kernels/gemm_skip.h"
#include "kernels/heads.h"
#include "kernels/probe.h"
#include "kernels/quantize.h"
#include "kernels/rotary.h"
#include "kernels/rows.h"

#define POCKETFORMER_EXPORT_KERNELS(name)                                                                      \
  namespace pocketformer {                                                                                     \
  const KernelTable* kernel_table_##name() {                                                                   \
    static constexpr KernelTable kTable = {.isa = Isa::kName,                                                  \
                                           .activation_offset = Isa::kActivationOffset,                        \
                                           .quantize_rows = quantize_rows<Isa>,                                \
                                           .gemm = {gemm_f32<Isa>, gemm_f16<Isa>, gemm_i8<Isa>, gemm_i4<Isa>}, \
                                           .embed = embed<Isa>,                                                \
                                           .norm = norm<Isa>,                                                  \
                                           .rope = rope<Isa>,                                                  \
                                           .quantize_heads = quantize_heads<Isa>,                              \
                                           .store_i8 = store_i8<Isa>,                                          \
                                           .store_f32 = store_f32<Isa>,                                        \
                                           .attention_i8 = attention_i8<Isa>,                                  \
                                           .attention_f32 = attention_f32<Isa>,                                \
                                           .pool = pool<Isa>,                                                  \
                                           .depthwise = depthwise<Isa>,                                        \
                                           .l2_normalize = l2_normalize<Isa>,                                  \
                                           .soft_cap = soft_cap<Isa>,                                          \
                                           .activate = activate_values<Isa>,                                   \
                                           .softmax = softmax_rows<Isa>,                                       \
                                           .probe_dot4 = probe_dot4<Isa>,                                      \
                                           .probe_bounded = probe_bounded<Isa>,                                \
                                           .probe_fma = probe_fma<Isa>,                                        \
                                           .probe_read = probe_read<Isa>};                                     \
    return &kTable;                                                                                            \
  }                                                                                                            \
  }

// Attention by positive random features, in time that grows with the rows (FAVOR+; Choromanski et al., "Rethinking
// Attention with Performers", arXiv 2009.14794): φ(q) (φ(k)ᵀ v) / φ(q) (φ(k)ᵀ 1).
#pragma once

#include <cstddef>

#include "kernels/table.h"

namespace pocketformer {

// One head of one sequence. A feature of a query x is exp(ω · x · √scale − |x|² · scale / 2 − c) + eps, where c is the
// largest ω · x · √scale of its row; a key's is likewise, with the largest of all the sequence's keys. Rows are taken
// kRows at a time from the first on, whatever the number of threads; a causal query sees the keys up to its own.
struct LinearAttention {
  static constexpr int kRows = 64;

  const float* q;
  size_t ldq;
  const float* k;
  size_t ldk;
  const float* v;
  size_t ldv;
  float* out;
  size_t ldo;
  int rows, head_dim, value_dim;
  const float* features;  // [count][head_dim], count a multiple of 16
  int count;
  float scale, root;  // and its square root
  float eps;
  bool causal;
};

// Floats of memory that it takes.
size_t linear_attention_memory(int head_dim, int value_dim, int count);
void linear_attention(const KernelTable& kernels, const LinearAttention& a, float* memory);

}  // namespace pocketformer

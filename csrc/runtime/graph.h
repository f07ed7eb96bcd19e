// The model as data, as it comes from a file: operators and the tensors they name. Nothing here is checked yet.
#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>
#include <variant>
#include <vector>

namespace pocketformer {

enum class DType { kF32, kI8, kI32, kOther };

struct Tensor {
  const void* data;
  DType dtype;
  std::vector<int64_t> shape;
};

using Tensors = std::unordered_map<std::string, Tensor>;

// The fields of docs/format.md; an empty string stands for null.
struct TableSpec {
  std::string weight, index;
  int64_t rows, offset, rotate;
};

struct EmbedSpec {
  std::string out;
  int64_t width;
  std::vector<TableSpec> tables;
};

struct NormSpec {
  std::string in, out, weight, kind;
  int64_t width;
  double eps;
};

struct LinearSpec {
  std::string in, out, weight, activation, residual;
  int64_t n, k, rotate;
};

struct AttentionSpec {
  std::string in, out, dtype, bias;
  int64_t heads, kv_heads, head_dim, left, right;
  double scale;
  bool causal;
};

struct PoolSpec {
  std::string in, out, kind;
};

struct SelectSpec {
  std::string in, out;
};

struct NormalizeSpec {
  std::string in, out;
};

using OpSpec = std::variant<EmbedSpec, NormSpec, LinearSpec, AttentionSpec, PoolSpec, SelectSpec, NormalizeSpec>;

struct Graph {
  std::vector<OpSpec> ops;
  std::string output;
  int64_t vocab_size, type_vocab_size, max_length;
};

}  // namespace pocketformer

// Attention of plain arrays [tokens, heads, head_dim] over stored keys and values, for one call or from a cache.
#pragma once

#include <variant>
#include <vector>

#include "bindings/calls.h"

namespace pocketformer::bindings {

// An array [tokens, heads, head_dim].
struct Heads {
  const float* data;
  int64_t tokens;
  int heads, head_dim;

  int64_t row() const { return static_cast<int64_t>(heads) * head_dim; }
  int stride() const { return static_cast<int>(round_up(static_cast<size_t>(head_dim), kLanes)); }
};

Heads heads_of(const py::array_t<float>& array, const char* name);

// Notes the first of the rows [begin, begin + rows) that is not finite.
void note_not_finite(const Heads& x, int64_t begin, int rows, Offender& offender);

// A sequence: where its queries begin in q, its keys in k and v and in what is stored. The queries are the last of the
// keys' positions.
struct Sequence {
  int64_t first_query;
  int queries;
  int64_t first_key;
  int keys;
  size_t slot;
};

using Stored = std::variant<KeyValuesI8, KeyValuesF32>;

// Puts a sequence's keys [begin, begin + rows) where they belong.
void store_keys(const KernelTable& kernels, const Stored& stored, const Heads& k, const Heads& v, int64_t row,
                size_t slot, int rows);

class Attending {
 public:
  Attending(Heads q, int kv_heads, std::vector<Sequence> sequences, Object scale, int64_t left, int64_t right);

  // Must outlive this: [heads][2·reach + 1] or None.
  void set_bias(Object bias);
  double multiply_adds() const;
  // Notes in `offender` the first row of q that is not finite; `out` [tokens, heads, head_dim] is then unspecified.
  void run(const KernelTable& kernels, const Stored& stored, int threads, float* out, Offender& offender,
           Scratch& scratch) const;

 private:
  struct Part;
  std::vector<Part> parts() const;

  Heads q_;
  int kv_heads_;
  std::vector<Sequence> sequences_;
  float scale_;
  KeyRange range_;
  const float* bias_ = nullptr;
  int64_t reach_ = 0;
};

}  // namespace pocketformer::bindings

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

// Notes the first of the `rows` rows from `begin` on, each `step` behind the one before, that is not finite.
void note_not_finite(const Heads& x, int64_t begin, int rows, Offender& offender, int64_t step = 1);

// A sequence: where its queries begin in q, its keys in k and v and in what is stored. The queries are the last of the
// keys' positions. Where a query sees only every step-th key, tokens of one remainder are a sequence of their own: then
// `step` rows lie from one to the next, and `quantized` is where its rounded queries begin.
struct Sequence {
  int64_t first_query;
  int queries;
  int64_t first_key;
  int keys;
  size_t slot;
  int64_t step = 1;
  size_t quantized = 0;
};

using Stored = std::variant<KeyValuesI8, KeyValuesF32>;

// Puts `rows` keys from `row` on, each `step` behind the one before, where they belong.
void store_keys(const KernelTable& kernels, const Stored& stored, const Heads& k, const Heads& v, int64_t row,
                size_t slot, int rows, int64_t step = 1);

// The keys that a query sees.
struct Pattern {
  int64_t left = -1, right = -1;  // so many before and after its own, −1: all
  int64_t step = 1;               // of these every step-th
  int64_t globals = 0;            // and so many first ones, whose queries see all
  // Or, of query block b, the key blocks keys[begins[b] … begins[b + 1]); a block is so many tokens.
  int64_t block = 0;
  const int64_t *begins = nullptr, *keys = nullptr;
};

class Attending {
 public:
  Attending(Heads q, int kv_heads, std::vector<Sequence> sequences, Object scale, const Pattern& pattern);

  // Must outlive this: [heads][2·reach + 1] or None.
  void set_bias(Object bias);
  void set_softcap(Object softcap);
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
  float scale_, softcap_ = 0;
  KeyRange range_;
  Pattern pattern_;
  std::vector<KeySpan> spans_;      // of all blocks
  std::vector<size_t> block_ends_;  // of each query block in these
  std::vector<bool> own_block_;     // causal: whether it sees its own block, up to the query
  const float* bias_ = nullptr;
  int64_t reach_ = 0;
};

}  // namespace pocketformer::bindings

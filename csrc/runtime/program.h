// A graph made ready to run: steps in stages, every value's place in memory, every weight a pointer into the mapped
// file.
//
// A stage is a chain of row-local steps: a thread carries a block of rows through the whole of it. Stages are cut where
// tokens meet, and only there do threads wait for each other. Attention is therefore two steps: `store` ends a stage by
// writing queries, keys and values, `attend` begins the next one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "kernels/table.h"
#include "runtime/graph.h"

namespace pocketformer {

inline constexpr int kDomains = 3;
enum class Domain { kTokens, kSequences, kRows };

inline constexpr int kNone = -1;

// Rows of one width. A buffer that lives within one stage is scratch: each thread has its own, as high as a row block.
// One that crosses stages is shared and as high as its domain. A buffer starts at `offset` bytes per row of that
// height.
struct Buffer {
  Domain domain;
  int width;         // columns in use
  int ld;            // elements from row to row
  size_t row_bytes;  // ld · size of an element
  bool shared = false;
  size_t offset = 0;
};

enum class Index { kIds, kPositions, kTypes };

struct Lookup {
  const void* table;
  const float* scale;
  bool panels;
  Index index;
  int offset, rotate;
};

// Numbers named after operands (`in`, `out`, `q`, …) are indices into Program::buffers.
struct EmbedStep {
  std::vector<Lookup> lookups;
  int index, out;
};

struct NormStep {
  int in, out;
  const float* weight;
  const float* bias;
  float eps;
  NormKind kind;
};

struct QuantizeStep {
  int in, q, scale, rotate;
};

struct LinearI8Step {
  int q, q_scale, residual, out;
  const int8_t* weight;
  const float* scale;
  const int32_t* colsum;
  const float* bias;
  int k, panels;
  Activation activation;
};

struct LinearF32Step {
  int in, residual, out;
  const float* weight;
  const float* bias;
  int k, panels;
  Activation activation;
};

// What store and attend share.
struct AttentionShape {
  int heads, kv_heads, head_dim, head_stride;
  bool int8;
  int query_buffer, cache_buffer;  // which of the (at most) two
};

struct StoreStep {
  int in;
  AttentionShape shape;
};

struct AttendStep {
  int out;
  AttentionShape shape;
  float scale;
  KeyRange range;
  const float* bias;
  size_t ld_bias;
  int bias_center;
};

struct PoolStep {
  int in, out;
  PoolKind kind;
};

struct SelectStep {
  int in, out;
};

struct NormalizeStep {
  int in, out;
};

// Copies the graph's output to the caller's array.
struct OutputStep {
  int in;
};

using Step = std::variant<EmbedStep, NormStep, QuantizeStep, LinearI8Step, LinearF32Step, StoreStep, AttendStep,
                          PoolStep, SelectStep, NormalizeStep, OutputStep>;
inline constexpr const char* kStepNames[] = {"embed",  "norm", "quantize", "linear",    "linear", "store",
                                             "attend", "pool", "select",   "normalize", "output"};
static_assert(std::size(kStepNames) == std::variant_size_v<Step>, "one name per kind of step");

struct Stage {
  Domain domain;
  std::vector<Step> steps;
};

// Immutable once made and shared by any number of threads. The tensors' memory must outlive it.
struct Program {
  // Checks everything: whatever the arguments hold, a program that comes out cannot read or write out of bounds.
  // Throws std::invalid_argument.
  Program(const Graph& graph, const Tensors& tensors, const KernelTable& kernels);

  const KernelTable* kernels;
  std::vector<Stage> stages;
  std::vector<Buffer> buffers;
  int max_length, vocab_size, type_vocab_size;
  bool selects = false;  // some stage works on rows the caller asked for
  int output = kNone;
  size_t stage_weight_bytes = 0;  // of the stage with most
  bool weights_cached = false;    // twice that fits this machine's largest cache
  size_t scratch_row_bytes = 0;   // of one row of a block
  size_t shared_row_bytes[kDomains] = {};
  size_t query_row_bytes[2] = {};   // of one token: quantized queries and their scales, or fp32 queries
  size_t cache_slot_bytes[2] = {};  // of one key slot: keys and values of all heads
};

// Gives every buffer its place. `in_place[b]` is the buffer that `b` may overwrite if nothing reads it later, or kNone.
struct Lifetime {
  int defined, last_used;  // steps, counted through all stages
  int first_stage, last_stage;
};
void place_buffers(Program& program, const std::vector<Lifetime>& lifetimes, const std::vector<int>& in_place);
void place_attention(Program& program);
void weigh_stages(Program& program);

}  // namespace pocketformer

// What an operator becomes: steps, the buffers they read and write, and the stages they stand in. An operator's `lower`
// takes everything from here and so gets it checked; the kernels trust what comes out.
#pragma once

#include <algorithm>
#include <numeric>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "core/aligned_buffer.h"
#include "core/errors.h"
#include "runtime/program.h"

namespace pocketformer {

// 255 · 128 · K must fit int32, whatever the bytes of a file are: activations are offset to at most 255 on some ISAs,
// and a file runs on all or none.
inline constexpr int64_t kMaxInt8K = INT32_MAX / (255 * 128);

// kNone where there is none of that name.
template <class T>
int index_of(const std::vector<T>& all, const std::string& name) {
  const auto found = std::find_if(all.begin(), all.end(), [&](const T& entry) { return entry.name == name; });
  return found == all.end() ? kNone : static_cast<int>(found - all.begin());
}

inline int64_t padded(int64_t channels) { return (channels + kLanes - 1) / kLanes * kLanes; }

// A table stored by rows has a multiple of so many, which makes its bytes one of 64 (layout.py: table_rows).
inline int64_t table_row_multiple(int64_t row_bytes) {
  constexpr int64_t kLine = kAlignment;
  return kLine / std::gcd(kLine, row_bytes);
}

// What an operator writes: rows of floats, or (from quantize_heads) of int8 heads with their scales.
struct Value {
  Operand rows;
  int domain;
  Operand scale;  // of heads
  int head_dim = 0, rotate = 0;
  bool negative = true;                      // whether numbers below zero are possible
  int64_t places = 0, sizes = 0, total = 0;  // of match: tokens, those that remain, and those there were at first
  int halted = kNone;                        // of halt: the domain of the tokens
  bool heads() const { return static_cast<bool>(scale); }
};

// A value rounded to int8 for products, once for all that share it.
struct Quantized {
  int from, column, rotate, group;
  bool plain;     // without the ISA's offset
  bool by_group;  // a scale a group
  Operand q, scale, sum;
};

struct Weight {
  WeightView view;
  Layout layout;
};

// Steps during which a buffer is in use, counted through all stages.
struct Lifetime {
  int defined, last_used;
  int first_stage, last_stage;
  int overwrites;  // the buffer whose place it may take while the step that defines it reads it, or kNone
};

class Lowering {
 public:
  Lowering(Program& program, Tensors& tensors) : program_(program), tensors_(tensors) {}

  void run(const Item& graph);

  const Place& place() const { return place_; }
  Tensors& tensors() { return tensors_; }
  const Program& program() const { return program_; }
  template <typename... Parts>
  void check(bool condition, const char* field, const Parts&... problem) const {
    require(condition, place_.text(), ": field '", field, "' ", problem...);
  }

  // --- what operators name ---
  const Value& value(const char* field, const std::string& name) const;
  const Value& floats(const char* field, const std::string& name) const;  // any columns
  const Value& dense(const char* field, const std::string& name) const;   // whole vectors of 16, zeros after the last
  const Weight& weight(const char* field, const std::string& name);
  const Value* known(const std::string& name) const;  // null where there is none of that name
  const Weight* known_weight(const std::string& name) const;
  const float* vector(const std::string& name, int64_t channels);           // padded
  const float* optional_vector(const std::string& name, int64_t channels);  // null where the name is empty
  const Input& input(const char* field, const std::string& name) const;
  // Index of the input `name`, which has an index for each sequence of `of`.
  int sequence_input(const char* field, const std::string& name, const Value& of) const;
  int domain(const char* field, const std::string& name) const;
  int grid(const char* field, const std::string& name) const;  // a domain of that kind
  int state(const char* field, const std::string& name) const;
  const Domain& domain_of(const Value& value) const { return program_.domains[static_cast<size_t>(value.domain)]; }
  // `name`, a domain with a row for each sequence of the domain `of`.
  int sequences(const char* field, const std::string& name, int of) const;
  // Checks that `value`, which `name` names, has a row for each sequence of the domain `of`.
  void row_of_sequence(const char* field, const std::string& name, const Value& value, int of) const;
  // Checks that `value`, which `name` names, has the rows of the domain `of`, of `width` columns, as the result has.
  void same_shape(const char* field, const std::string& name, const Value& value, int of, int64_t width) const;
  // What `match` found, which makes the rows of the domain `of`.
  const Value& matches(const char* field, const std::string& name, int of) const;
  // What `halt` found of the tokens of the domain `of`.
  const Value& halts(const char* field, const std::string& name, int of) const;
  // `name`, a domain made from that of `from` in the way of `kind`.
  int made_domain(const char* field, const std::string& name, const Value& from, DomainKind kind) const;

  // --- what they write ---
  void define(const std::string& name, Value value);
  // Rows of floats under `name`, which may take the place of `overwrites`.
  Operand write(const std::string& name, int domain, int64_t width, Operand overwrites = {});
  void never_negative(const std::string& name) { values_.at(name).negative = false; }
  // The same of a domain that is not the stage's: by steps that take a sequence at a time.
  Operand write_apart(const std::string& name, int domain, int64_t width);
  Operand scratch(int domain, int width, int ld, size_t element_bytes);
  // At least `bytes` for each thread while it runs the step, however many rows that takes.
  Operand working(int domain, size_t bytes);

  // --- steps: what is read and written since the last one belongs to the next ---
  void enter(int domain);                                 // row-local steps on rows of `domain` follow
  void begin_stage(int domain);                           // a gathering step follows
  void enter_to_gather(int domain, const Operand& from);  // likewise, of what earlier stages have written
  Operand read(const Operand& operand);
  // Reads other rows too, of sequences that have some unless the step says that they need not.
  Operand gather(const Operand& operand, bool may_be_empty = false);
  // The halting domain `domain`, which `field` names, has the rows that `halts` counts.
  void settle(const char* field, int domain, const Value& halts);
  // A stage on rows of `domain` begins whose first step moves `windows` over a map of `from`. Until end_band, what is
  // emitted makes that map, line by line.
  void begin_band(int domain, int from, const Windows& windows);
  void end_band();
  bool in_band(const Operand& operand) const { return program_.buffers[static_cast<size_t>(operand.buffer)].ring != 0; }
  void store(int state);
  void attend(int state, const KeyRange& range);
  template <class S, class... Arguments>
  void emit(Arguments&&... arguments) {
    add(std::make_unique<S>(std::forward<Arguments>(arguments)...));
  }
  std::vector<Quantized>& quantized() { return quantized_; }
  // Has the last step write `result` into the caller's array, where it is a product that nothing else reads.
  bool write_to_caller(const Value& result);

 private:
  void take_domains(const Item* items);
  void take_inputs(const Item* items);
  void take_weights(const Item* items);
  void take_states(const Item* items);
  void keep(int domain);
  void take_operators(const Item* items, const Item* output);
  void finish(const Item* output);
  void add(std::unique_ptr<Step> step);
  void load(const std::string& name, const WeightSpec& spec);
  int root_of(int domain) const;  // that the caller fills
  bool has_row_of_sequence(int domain, int of) const;
  Buffer& buffer(int index) { return program_.buffers[static_cast<size_t>(index)]; }

  Program& program_;
  Tensors& tensors_;
  Place place_{"graph"};
  std::unordered_map<std::string, Value> values_;
  std::unordered_map<std::string, Weight> weights_;
  std::vector<Lifetime> lifetimes_;
  std::vector<Quantized> quantized_;  // in the current stage
  std::vector<int> reads_, writes_;
  std::vector<std::pair<int, int>> gathered_;  // buffer, stage
  bool gathers_ = false;
  bool makes_band_ = false;
  int steps_ = 0;
};

void place_buffers(Program& program, const std::vector<Lifetime>& lifetimes);
void place_states(Program& program);
void weigh_stages(Program& program);

}  // namespace pocketformer

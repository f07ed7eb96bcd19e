// A graph made ready to run: steps in stages, every value's place in memory, every weight a pointer into the mapped
// file.
//
// A step is row-local or it gathers rows of others, which an earlier stage has written. A thread carries a block of
// rows through the whole of a stage, and threads wait for each other only where the next begins. With few rows, a stage
// runs in columns instead: products split their panels and attention its heads, what is cheap is done by every thread
// for itself, and threads meet only where one needs what another has made.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kernels/table.h"
#include "runtime/block_pattern.h"
#include "runtime/description.h"
#include "runtime/tensors.h"
#include "runtime/window.h"

namespace pocketformer {

class Worker;

inline constexpr int kNone = -1;
inline constexpr int kMaxDomains = 64, kMaxInputs = 16, kMaxStepKinds = 32;

struct Domain {
  std::string name;
  DomainKind kind;
  int of;                        // or kNone where the caller fills it
  int64_t max_rows, least_rows;  // of a sequence
  int64_t prepended, merged;     // more and fewer than those of `of`
  int64_t height, width;         // of a grid
  bool halting;                  // how many rows remain, `halt` says during a run
  int64_t summarized;            // rows of a block of `of`, each of which has one row before the sequence's own, or 0
  int settled_by = kNone;        // its buffer, where the domain is halting
  // Of a sequence that has `rows` of `of`, or of the domain itself where the caller fills it.
  int64_t rows_for(int64_t rows) const {
    if (kind == DomainKind::kGrid) return max_rows;
    return rows + prepended - merged + (summarized == 0 ? 0 : rows / summarized);
  }
  bool has_offsets() const { return kind == DomainKind::kRagged || kind == DomainKind::kGrid; }
};

struct Input {
  std::string name;
  int domain;
  InputType dtype;
  int64_t limit;
  int width;
  bool optional;
  int buffer;  // of f32 rows, or kNone
};

// Rows of one width. One that lives within a stage is scratch; one that crosses stages is shared and as high as its
// domain. A buffer starts at `offset` bytes for each row of that height.
struct Buffer {
  int domain, width;
  int ld;                // elements from row to row
  size_t row_bytes;      // ld · size of an element
  int stage;             // that writes it
  bool apart = false;    // of a domain that is not the stage's, so that it is shared
  bool working = false;  // nothing but memory, of each thread that runs the step
  int held = 0;          // of a band: so many rows, whatever the height of the stage's scratch
  int ring = 0;          // of a band's map: row r lies in place r mod ring
  bool shared = false;
  bool split = false;   // in columns, threads write parts of it for all
  bool output = false;  // the caller's array
  int input = kNone;    // lies in the caller's array of that input
  size_t offset = 0;    // shared, or scratch in row mode
  size_t column_offset = 0;
};

// A buffer from some column on.
struct Operand {
  int buffer = kNone, column = 0, width = 0;
  explicit operator bool() const { return buffer != kNone; }
};

// Keys and values of one attention layer; bytes are those of one key, all heads.
struct State {
  std::string name;
  int domain;
  bool int8, half;  // or fp32
  bool kept;
  int heads, head_dim, head_stride, rotate;
  int window = 0;  // keys that a query sees before its own
  int first_stage = kNone, last_stage = kNone;
  size_t offset = 0, slot_bytes = 0;
  size_t element_bytes() const { return int8 ? 1 : half ? sizeof(uint16_t) : sizeof(float); }
};

// How threads divide a step in column mode: every thread does it for itself, or each takes rows, panels or heads.
enum class Split { kRepeat, kRows, kPanels, kHeads };

// What a step asks of a machine, for each row of its domain but where it says otherwise.
struct Work {
  double multiply_adds = 0;
  bool int8 = false;
  bool bounded_pairs = false;  // of the weights
  size_t weight_bytes = 0;
  double zeros = 0;  // share of a row's groups of four that a product passes over
  double elements = 0;
  double rotated = 0;              // of the elements, rotated before they are rounded
  double activated = 0;            // of the elements, through an activation function
  double scores = 0;               // for each query and key that it sees
  double score_multiply_adds = 0;  // for each of those
  int64_t left = 0, right = 0;     // keys a query sees before and after its own, where there are scores
  int64_t globals = 0;             // first rows that all see, and that see all
  int64_t summarized = 0;          // rows of a block whose summary all see too, or 0
  int keys = kNone;                // the domain of the keys, all of which are seen, if not the step's
  int rows = kNone;                // the domain whose rows these are, if not the stage's
  BlockPattern blocks = {};        // or, of these, what their queries see
};

struct Step {
  explicit Step(const char* kind, Split split) : kind(kind), split(split) {}
  virtual ~Step() = default;
  Step(const Step&) = delete;
  Step& operator=(const Step&) = delete;
  virtual void run(const Worker& worker) const = 0;
  virtual Work work() const { return {}; }

  const char* kind;
  Split split;
  int kind_index = 0;
  std::vector<int> reads, writes;  // buffers
  bool gathers = false;
  bool meets = false;  // in columns, threads meet before it
};

// A domain whose rows are counted when a stage ends: column 0 of `counts` has those of each sequence.
struct Settled {
  int domain;
  Operand counts;
};

// A product whose result, a map of a grid, nobody reads but the windows of the stage's first step: a thread makes its
// lines as the windows come to them, and keeps as many as a window is high. Neither the map nor a line of it leaves the
// thread's nearest caches.
struct Band {
  static constexpr int kRows = 32;  // of a line that are made at a time; see kMaxBlockRows
  int domain;                       // of the map
  Windows windows;
  std::vector<std::unique_ptr<Step>> steps;
};

struct Stage {
  int domain;
  std::unique_ptr<Band> band;  // or null
  std::vector<std::unique_ptr<Step>> steps;
  std::vector<Settled> settled;
  bool divisible = false;  // some step has panels or heads to split
  size_t weight_bytes = 0;
  size_t row_bytes = 0;                            // scratch of a row in row mode, a thread
  size_t own_row_bytes = 0, common_row_bytes = 0;  // in columns: of each thread, and of all together
};

// Immutable once made and shared by any number of threads. The tensors' memory must outlive it.
struct Program {
  // Checks everything: whatever the arguments hold, a program that comes out cannot read or write out of bounds.
  // Throws std::invalid_argument.
  Program(const Item& graph, Tensors tensors, const KernelTable& kernels);

  int domain(const std::string& name) const;  // or kNone

  const KernelTable* kernels;
  std::vector<Domain> domains;
  std::vector<Input> inputs;
  std::vector<State> states;
  std::vector<Stage> stages;
  std::vector<Buffer> buffers;
  std::vector<const char*> kinds;  // of steps
  int output = kNone;              // the buffer of the result
  int output_domain = kNone, output_width = 0;
  int kept_domain = kNone;        // of the states that a cache keeps
  size_t stage_weight_bytes = 0;  // of the stage with most
  bool weights_cached = false;    // twice that fits this machine's largest cache
  size_t shared_row_bytes[kMaxDomains] = {};
  size_t slot_bytes[kMaxDomains] = {};                              // of one key of all states that live at once
  int first_stage[kMaxDomains] = {}, last_stage[kMaxDomains] = {};  // in which any of these are in use
};

}  // namespace pocketformer

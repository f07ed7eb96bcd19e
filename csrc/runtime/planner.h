// What a run will need, known before it starts: a pure function of the program, the lengths and the number of threads.
#pragma once

#include <cstddef>
#include <vector>

#include "runtime/program.h"

namespace pocketformer {

// Rows: threads take row blocks through a whole stage. Columns: steps are split between the threads, for stages with
// too few rows to give every thread enough. Both give the same bits.
enum class Mode { kAuto, kRows, kColumns };

struct Tuning {
  Mode mode = Mode::kAuto;
  int block_rows = 0;  // 0: chosen by the planner
};

struct Load {
  size_t sequences = 0;
  size_t rows[kMaxDomains] = {};
  size_t slots[kMaxDomains] = {};  // keys of all sequences, each sequence rounded up to 16
};

// Rows that a thread takes at a time, so that the last thread ends soonest. Depends on whether a stage's weights stay
// in a cache from one block to the next.
size_t block_rows(size_t rows, size_t threads, bool weights_cached);

// Slots a sequence takes in a state.
size_t state_slots(size_t length);

struct StagePlan {
  bool columns;
  int block;              // rows a thread carries through the stage at a time
  int span;               // rows it takes for itself, block after block
  size_t height;          // of a scratch buffer, a multiple of 16: keeps every buffer aligned
  size_t stride, common;  // bytes of one thread's scratch, and where that of all begins
};

// Byte offsets into the arena.
struct Plan {
  int threads = 1;                  // that find work
  size_t height[kMaxDomains] = {};  // of a shared buffer
  size_t shared[kMaxDomains] = {}, states[kMaxDomains] = {};
  size_t offsets[kMaxDomains] = {}, slots[kMaxDomains] = {}, selected[kMaxDomains] = {};
  size_t indices[kMaxInputs] = {};
  size_t scratch = 0, bytes = 0;
  std::vector<StagePlan> stages;
};

// Fills `plan`, whose memory it uses again. Throws std::invalid_argument when the arena would exceed the address space.
void make_plan(const Program& program, const Load& load, int threads, const Tuning& tuning, Plan& plan);

}  // namespace pocketformer

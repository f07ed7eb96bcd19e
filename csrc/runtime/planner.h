// What a run will need, known before it starts: a pure function of the program, the lengths and the number of threads.
#pragma once

#include <cstddef>

#include "runtime/program.h"

namespace pocketformer {

// Rows: threads take row blocks through whole stages and meet once a stage. Columns: every step is split between the
// threads, which meet after each; for inputs too short to give every thread rows enough. Both give the same bits.
enum class Mode { kAuto, kRows, kColumns };

struct Tuning {
  Mode mode = Mode::kAuto;
  int block_rows = 0;  // 0: chosen by the planner
};

struct Load {
  size_t rows[kDomains];  // tokens, sequences, selected rows
  size_t slots;           // keys of all sequences, each sequence rounded up to 16
};

// Rows of one domain that a thread takes at a time, so that the last thread ends soonest. Depends on whether a stage's
// weights stay in a cache from one block to the next.
size_t block_rows(size_t rows, size_t threads, bool weights_cached);

// Slots a sequence takes in the key/value buffers.
size_t cache_slots(size_t length);

// Byte offsets into the arena.
struct Plan {
  bool columns;
  int threads;              // that find work
  int block[kDomains];      // rows a thread takes at a time
  size_t scratch_rows;      // height of a scratch buffer, a multiple of 16: keeps every buffer aligned
  size_t height[kDomains];  // of a shared buffer, likewise
  size_t ids, types, selected, offsets, slots;
  size_t shared[kDomains], query[2], cache[2];
  size_t scratch, scratch_stride;  // one per thread
  size_t bytes;
};

// Throws std::invalid_argument when the arena would exceed the address space.
Plan make_plan(const Program& program, const Load& load, int threads, const Tuning& tuning);

}  // namespace pocketformer

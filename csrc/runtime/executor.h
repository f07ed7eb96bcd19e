// Runs a program's stages over prepared tables, on the calling thread and the pool.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>

#include "runtime/planner.h"
#include "runtime/program.h"

namespace pocketformer {

// One for each thread; written by it alone.
struct alignas(64) StepTimes {
  int64_t nanoseconds[kMaxStepKinds];
};

// Asked by the calling thread between blocks of rows, not more often than every 50 ms; true ends the run early.
struct Interrupt {
  bool (*requested)(void* context) = nullptr;
  void* context = nullptr;
};

class StateCache;

struct Execution {
  const Program& program;
  const Plan& plan;
  std::byte* arena;
  int sequences;
  int rows[kMaxDomains];  // of halting domains at first as many as there can be
  size_t slots[kMaxDomains];
  bool given[kMaxInputs];          // the caller gave these indices
  const void* inputs[kMaxInputs];  // the caller's rows of floats
  StateCache* const* caches;       // one for each sequence, or null: states die with the run
  float* out;                      // [rows of the output's domain][its width], any alignment
  StepTimes* times;                // [plan.threads] or null
  Interrupt interrupt;
};

struct SharedProgress {
  alignas(64) std::atomic<int> next_block{0};
  std::atomic<bool> stop{false};
  std::chrono::steady_clock::time_point next_poll;
};

// False when it was interrupted; `out` is then unfinished.
bool execute(Execution& execution);

}  // namespace pocketformer

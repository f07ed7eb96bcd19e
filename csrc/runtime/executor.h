// Runs a program's stages over prepared tables, on the calling thread and the pool.
#pragma once

#include <atomic>
#include <cstdint>
#include <variant>
#include <vector>

#include "core/thread_pool.h"
#include "runtime/planner.h"
#include "runtime/program.h"

namespace pocketformer {

// One for each thread; written by it alone.
struct alignas(64) StepTimes {
  int64_t nanoseconds[std::variant_size_v<Step>];
};

// Asked by the calling thread between blocks of rows, not more often than every 50 ms; true ends the run early.
struct Interrupt {
  bool (*requested)(void* context) = nullptr;
  void* context = nullptr;
};

struct Execution {
  const Program& program;
  const Plan& plan;
  std::byte* arena;
  int rows[kDomains];
  size_t slots;  // capacity of the key/value buffers
  bool has_types;
  float* out;        // [rows of the output's domain][its width], any alignment
  StepTimes* times;  // [plan.threads] or null
  Interrupt interrupt;
};

// False when it was interrupted; `out` is then unfinished.
bool execute(const Execution& execution);

}  // namespace pocketformer

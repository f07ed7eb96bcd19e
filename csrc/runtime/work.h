// What a run asks of a machine, step by step: from each step's own account and the lengths. Benchmarks divide by it,
// the cost model multiplies with it.
#pragma once

#include <vector>

#include "runtime/program.h"

namespace pocketformer {

struct StepWork {
  const char* kind;
  size_t stage;
  double rows;
  double multiply_adds;
  bool int8;
  bool bounded_pairs;
  size_t weight_bytes;
  double zeros;
  double elements, rotated, activated;
  double scores;       // of attention: pairs of a query head and a key that it sees
  double score_lanes;  // the same where sixteen queries look at every key that one of them sees
};

// Of sequences with these lengths; throws as plan_load does.
std::vector<StepWork> count_work(const Program& program, const std::vector<int64_t>& lengths, size_t selected);

}  // namespace pocketformer

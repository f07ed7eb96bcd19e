// One caller's working memory over a shared program.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/aligned_buffer.h"
#include "runtime/executor.h"
#include "runtime/planner.h"
#include "runtime/program.h"

namespace pocketformer {

struct Input {
  const int32_t* ids;      // [tokens]
  const int32_t* types;    // [tokens] or null: all 0
  const int64_t* offsets;  // [sequences + 1], from 0 to tokens
  const int64_t* rows;     // [rows] token rows, or null
  size_t tokens, sequences, rows_count;
};

// What `lengths` tokens a sequence come to. Throws std::invalid_argument when one is empty or longer than the model
// allows.
Load measure(const Program& program, const int64_t* lengths, size_t sequences, size_t rows);

// Checks that a number of threads is one the pool can give.
int checked_threads(int64_t threads);

class Session {
 public:
  Session(std::shared_ptr<const Program> program, Tuning tuning) : program_(std::move(program)), tuning_(tuning) {}

  // Rows of the output for this input.
  size_t output_rows(const Input& input) const;

  // out is [output_rows][output width]. Nothing is allocated once the arena has grown to the largest input. Throws
  // std::invalid_argument for bad input and std::runtime_error when another thread is in this session. False when
  // interrupted.
  bool run(const Input& input, int threads, float* out, Interrupt interrupt = {});

  size_t arena_bytes() const { return arena_.size(); }
  const std::byte* arena() const { return arena_.data(); }
  void trim();

  bool profile() const { return profile_; }
  void set_profile(bool on);               // turning it on starts from zero
  std::map<std::string, double> phases();  // seconds by kind of step, summed over threads, since profiling began

 private:
  class Lock;
  Load inspect(const Input& input) const;
  void prepare(const Input& input, const Load& load, const Plan& plan);

  std::shared_ptr<const Program> program_;
  Tuning tuning_;
  AlignedBuffer arena_;
  std::atomic<uint32_t> owner_{0};  // the pool's generation when the run began; one from before a fork does not count
  bool profile_ = false;
  std::vector<StepTimes> times_;
};

}  // namespace pocketformer

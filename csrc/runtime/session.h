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

// A caller's array: `size` rows of an input, offsets of a ragged domain, or rows of a selected one.
struct Feed {
  const void* data = nullptr;
  size_t size = 0;
};

struct Feeds {
  Feed inputs[kMaxInputs];    // int32 [rows] or float32 [rows][width]; without data only where optional
  Feed domains[kMaxDomains];  // int64 offsets [sequences + 1] from 0 on; int64 rows
};

// One for each sequence, all of them different.
struct Caches {
  StateCache* const* data = nullptr;
  size_t count = 0;
  bool empty() const { return data == nullptr; }
};

// What sequences of these lengths come to, for the domains that the caller fills and all that are made from them;
// `selected` rows of each selected domain. Throws std::invalid_argument when one is empty or longer than the model
// allows.
Load plan_load(const Program& program, const int64_t* lengths, size_t sequences, size_t selected);

// Checks that a number of threads is one the pool can give.
int checked_threads(int64_t threads);

class Session {
 public:
  Session(std::shared_ptr<const Program> program, Tuning tuning) : program_(std::move(program)), tuning_(tuning) {}

  // Rows of the output for these arrays. Throws std::invalid_argument for bad ones.
  size_t output_rows(const Feeds& feeds) const;

  // out is [output_rows][output width]. With caches, one for each sequence, its rows follow those that its cache holds,
  // which then holds them too. Nothing is allocated once the arena has grown to the largest input. Throws
  // std::invalid_argument for bad input and std::runtime_error when another thread is in this session or has a cache.
  // False when interrupted: caches then hold what they held.
  bool run(const Feeds& feeds, int threads, float* out, Interrupt interrupt = {}, Caches caches = {});

  size_t arena_bytes() const { return arena_.size(); }
  void trim();

  std::map<std::string, int> rows();  // of each domain in the last run

  bool profile() const { return profile_; }
  void set_profile(bool on);               // turning it on starts from zero
  std::map<std::string, double> phases();  // seconds by kind of step, summed over threads, since profiling began

 private:
  void prepare(const Feeds& feeds, const Load& load, const Caches& caches);

  std::shared_ptr<const Program> program_;
  Tuning tuning_;
  AlignedBuffer arena_;
  Plan plan_;
  std::atomic<uint32_t> owner_{0};  // the pool's generation when the run began; one from before a fork does not count
  bool profile_ = false;
  int rows_[kMaxDomains] = {};
  std::vector<StepTimes> times_;
};

}  // namespace pocketformer

// One thread's view of a run: the rows it has in hand, where every buffer's rows lie for it, and its share of what is
// split. What a step's `run` is given.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "core/thread_pool.h"
#include "runtime/executor.h"
#include "runtime/state_cache.h"

namespace pocketformer {

struct Span {
  int begin, end;
  bool empty() const { return begin >= end; }
};

// Part `part` of `parts` of [0, count).
inline Span share(int count, int part, int parts) {
  return {static_cast<int>(static_cast<int64_t>(count) * part / parts),
          static_cast<int>(static_cast<int64_t>(count) * (part + 1) / parts)};
}

// Where the keys and values of one sequence lie: its position `base` in slot `first_slot` of `slots`.
struct StoredState {
  std::byte* data;
  size_t slots, first_slot;
  int base;
};

class Worker {
 public:
  Worker(Execution& execution, SharedProgress& progress, int thread, int threads, Barrier& barrier)
      : execution_(execution),
        program_(execution.program),
        plan_(execution.plan),
        progress_(progress),
        thread_(thread),
        threads_(threads),
        barrier_(barrier) {}

  void run();

  // --- the rows in hand, of the stage's domain ---
  int begin() const { return begin_; }
  int end() const { return end_; }
  int rows() const { return end_ - begin_; }

  // --- shares of what is split in columns; all of it in rows ---
  Span mine(int count) const { return share(count, part_, parts_); }
  int part() const { return part_; }
  int parts() const { return parts_; }

  const KernelTable& kernels() const { return *program_.kernels; }
  const Program& program() const { return program_; }

  // --- buffers ---
  // Row `row` of its domain.
  template <typename T = float>
  T* at(const Operand& operand, int row) const {
    const Buffer& b = buffer(operand);
    const int place = b.ring != 0 ? row % b.ring : local(b) ? row - scratch_begin_ : row;
    return reinterpret_cast<T*>(base(b) + static_cast<size_t>(place) * b.row_bytes) + operand.column;
  }
  // Memory of this thread's own, from Lowering::working.
  float* working(const Operand& operand) const { return reinterpret_cast<float*>(base(buffer(operand))); }
  size_t ld(const Operand& operand) const { return static_cast<size_t>(buffer(operand).ld); }
  size_t row_bytes(const Operand& operand) const { return buffer(operand).row_bytes; }
  int ring(const Operand& operand) const { return buffer(operand).ring; }

  // --- sequences ---
  int sequences() const { return execution_.sequences; }
  const int64_t* offsets(int domain) const { return table<int64_t>(plan_.offsets[domain]); }
  int length(int domain, int sequence) const {
    return static_cast<int>(offsets(domain)[sequence + 1] - offsets(domain)[sequence]);
  }
  // Rows of the sequence before this run's, which a cache keeps.
  int past(int domain, int sequence) const {
    return execution_.caches != nullptr && domain == program_.kept_domain ? execution_.caches[sequence]->length() : 0;
  }
  int position(int domain, int sequence, int row) const {
    return past(domain, sequence) + row - static_cast<int>(offsets(domain)[sequence]);
  }
  // Rows that a query of the sequence may see.
  int keys(int domain, int sequence) const { return past(domain, sequence) + length(domain, sequence); }
  // The parts of the rows in hand that lie in one sequence each: piece(sequence, first row, rows).
  template <typename Piece>
  void for_each_piece(int domain, Piece piece) const {
    const int64_t* const starts = offsets(domain);
    const int64_t* after = std::upper_bound(starts, starts + sequences() + 1, static_cast<int64_t>(begin_));
    int sequence = static_cast<int>(after - starts) - 1;
    for (int row = begin_; row < end_; ++sequence) {
      const int stop = static_cast<int>(std::min<int64_t>(end_, starts[sequence + 1]));
      if (stop > row) piece(sequence, row, stop - row);
      row = stop;
    }
  }
  const int64_t* selected(int domain) const { return table<int64_t>(plan_.selected[domain]); }
  // The caller's indices, or null where it gave none.
  const int32_t* indices(int input) const {
    return execution_.given[input] ? table<int32_t>(plan_.indices[input]) : nullptr;
  }

  // --- states ---
  StoredState stored(int index, int sequence) const {
    const State& state = program_.states[static_cast<size_t>(index)];
    if (execution_.caches != nullptr && state.kept) {
      const StateCache::Part& part = execution_.caches[sequence]->part(index);
      return {part.data, part.slots, 0, part.base};
    }
    const size_t slots = execution_.slots[state.domain];
    return {execution_.arena + plan_.states[state.domain] + state.offset * slots, slots,
            static_cast<size_t>(table<int64_t>(plan_.slots[state.domain])[sequence]), 0};
  }

  float* out() const { return execution_.out; }

 private:
  void run_rows(const Stage& stage, const StagePlan& plan);
  void run_columns(const Stage& stage);
  void fill(const Band& band, int first);
  void publish(const Step& step, Span rows);
  void step(const Step& step);
  void meet();
  void end_stage();
  void settle(const Settled& settled);
  bool stopped() const { return progress_.stop.load(std::memory_order_relaxed); }
  void poll();

  template <typename T>
  T* table(size_t offset) const {
    return reinterpret_cast<T*>(execution_.arena + offset);
  }
  const Buffer& buffer(const Operand& operand) const { return program_.buffers[static_cast<size_t>(operand.buffer)]; }
  // In columns every thread keeps what it makes for itself, shared or not, as long as the stage lasts.
  bool own(const Buffer& b) const { return columns_ && !b.split && b.stage == stage_; }
  bool local(const Buffer& b) const { return own(b) || !(b.shared || b.output || b.input != kNone); }
  std::byte* base(const Buffer& b) const {
    if (own(b)) return scratch_ + b.column_offset * height_;
    if (b.shared) return shared(b);
    if (b.output) return reinterpret_cast<std::byte*>(execution_.out);
    if (b.input != kNone) return const_cast<std::byte*>(static_cast<const std::byte*>(execution_.inputs[b.input]));
    return columns_ ? common_ + b.column_offset * height_ : scratch_ + b.offset * height_;
  }
  std::byte* shared(const Buffer& b) const {
    return execution_.arena + plan_.shared[b.domain] + b.offset * plan_.height[b.domain];
  }

  Execution& execution_;
  const Program& program_;
  const Plan& plan_;
  SharedProgress& progress_;
  const int thread_, threads_;
  Barrier& barrier_;
  std::byte* scratch_ = nullptr;
  std::byte* common_ = nullptr;
  size_t height_ = 0;
  int stage_ = 0;
  bool columns_ = false;
  int begin_ = 0, end_ = 0;
  int scratch_begin_ = 0;  // the row that scratch buffers begin with
  int part_ = 0, parts_ = 1;
};

}  // namespace pocketformer

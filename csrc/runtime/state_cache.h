// The kept states of one conversation: keys and values that outlive a run, in memory of their own.
//
// A state that looks back without bound has a slot for every token of the capacity. One with a window holds what later
// queries can still see, in memory that does not grow with the capacity:
//
//     position   0 … base │ base …              length │ …
//     slot       dropped  │ 0 …        length − base   │ free … slots
//
// When no slot is free, what is still in the window moves to the front. `base` is a multiple of kKeySplit: the tiles
// and splits of the softmax, which count from the start of the sequence, lie as they would in a cache that drops
// nothing, and so the bits are the same.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "core/aligned_buffer.h"
#include "runtime/program.h"

namespace pocketformer {

class StateCache {
 public:
  // For `capacity` tokens, of which one run brings at most `chunk`. Throws std::invalid_argument where the program
  // keeps no states or does not allow so many tokens.
  StateCache(std::shared_ptr<const Program> program, int64_t capacity, int64_t chunk);

  // What such a cache takes; errors as above.
  static size_t bytes(const Program& program, int64_t capacity, int64_t chunk);

  int length() const { return length_.load(std::memory_order_relaxed); }
  int capacity() const { return capacity_; }
  int chunk() const { return chunk_; }
  size_t bytes() const { return memory_.size(); }
  const Program* program() const { return program_.get(); }

  // Forgets the tokens from `length` on. Throws std::invalid_argument where a later one would see keys that a window
  // has dropped, std::runtime_error while a run uses the cache.
  void truncate(int64_t length);
  std::unique_ptr<StateCache> fork();

  // --- for a run, which has the cache's turn ---
  std::atomic<uint32_t>& owner() { return owner_; }
  // Throws std::invalid_argument unless `rows` more tokens fit; `sequence` is for the message.
  void check_room(size_t sequence, int64_t rows) const;
  // Frees slots for `rows` more tokens.
  void make_room(int rows);
  void grow(int rows) { length_.store(length() + rows, std::memory_order_relaxed); }

  struct Part {
    std::byte* data;
    size_t slots;
    int base;  // position of slot 0
  };
  const Part& part(int state) const { return parts_[static_cast<size_t>(state)]; }

 private:
  StateCache(const StateCache& other);
  void take_memory();

  std::shared_ptr<const Program> program_;
  const int capacity_, chunk_;
  std::atomic<int> length_{0};
  std::atomic<uint32_t> owner_{0};
  AlignedBuffer memory_;
  std::vector<Part> parts_;  // of every state of the program; of those that are not kept without data
};

}  // namespace pocketformer
